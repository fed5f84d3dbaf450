"""The model that `capax scale` asks: in this process, or behind a URL."""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from capax.cli.console import console
from capax.cli.options import machine_options
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.endpoints import Endpoint, Ledger

F = TypeVar("F", bound=Callable[..., Any])
CONTEXTS = 4  # whole contexts of KV cache; answers are far shorter, so many fit


@dataclass(frozen=True)
class Where:
    """Where a model is asked, and what it may take there."""

    base_url: str | None
    api_key: str | None = field(repr=False)
    workers: int
    ctx_size: int | None
    threads: int | None
    memory: int | None

    def identity(self, model: str) -> str:
        """Return what tells this model from another."""
        return identity(model, self.base_url)

    def facts(self, model: str, seed: int, max_total_tokens: int | None = None) -> dict[str, Any]:
        """Return what the manifest of a run says of this model, this machine and this moment."""
        from capax.cli.run_facts import run_facts

        limits = {
            "memory_bytes": self.memory, "threads": self.threads, "ctx_size": self.ctx_size,
            "workers": self.workers, "max_total_tokens": max_total_tokens,
        }  # fmt: skip
        return run_facts(model, self.base_url, seeds={"run": seed}, limits=limits)

    def open(
        self, model: str, *, parallel: int, ledger: Ledger
    ) -> AbstractAsyncContextManager[Endpoint]:
        """Open the model, up to `parallel` answers in a step."""
        limits = {"ctx_size": self.ctx_size, "threads": self.threads, "memory": self.memory}
        return open_endpoint(
            model, self.base_url, self.api_key, limits, parallel=parallel, ledger=ledger,
            workers=self.workers,
        )  # fmt: skip


def where_options(function: F) -> F:
    """Add the options of `Where`, given to the command as `where`."""

    @functools.wraps(function)
    def collected(**given: Any) -> Any:
        own = {part.name: given.pop(part.name) for part in fields(Where)}
        return function(where=Where(**own), **given)

    options = (
        click.option(
            "--base-url", metavar="URL",
            help="Ask this OpenAI-compatible server (http://host:port/v1), where MODEL is its "
            "name.",
        ),
        click.option("--api-key", metavar="KEY", help="Key for the server."),
        click.option(
            "--workers", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
            help="Processes that answer, by Ray (capax[ray]); RAY_ADDRESS names a cluster.",
        ),
        click.option(
            "-c", "--ctx-size", type=click.IntRange(1), metavar="N", help="Context in tokens."
        ),
        machine_options,
    )  # fmt: skip
    for option in reversed(options):
        collected = option(collected)
    return cast(F, collected)


@asynccontextmanager
async def open_endpoint(
    model: str,
    base_url: str | None,
    api_key: str | None,
    limits: Mapping[str, Any],
    *,
    parallel: int,
    ledger: Ledger,
    workers: int = 1,
) -> AsyncIterator[Endpoint]:
    """Open a model of this machine, up to `parallel` answers in a step, or a server's.

    `workers`: processes that share the requests; the threads of this machine are shared out.
    """
    if workers > 1:
        async with _pool(model, base_url, api_key, limits, parallel, ledger, workers) as pool:
            yield pool
        return
    if base_url is None:
        from capax import LLM
        from capax.endpoints.local import LocalEndpoint

        n_sequences = _n_sequences(model, limits.get("ctx_size"), parallel)
        llm = LLM(model, n_sequences=n_sequences, parallel=parallel, **limits)
        async with LocalEndpoint(llm, ledger=ledger) as local:
            yield local
        return
    try:
        from capax.endpoints.http import HTTPEndpoint
    except ImportError:
        raise ConfigError("asking a server needs: pip install 'capax[scale]'") from None
    async with HTTPEndpoint(base_url, model, api_key=api_key, ledger=ledger) as server:
        yield server


def _pool(
    model: str, base_url: str | None, api_key: str | None, limits: Mapping[str, Any],
    parallel: int, ledger: Ledger, workers: int,
) -> AbstractAsyncContextManager[Endpoint]:  # fmt: skip
    from capax.endpoints.pool import EngineWorker, RayPool, ServerWorker
    from capax.planning.machine import read_machine, usable_threads

    worker: EngineWorker | ServerWorker
    if base_url is not None:
        worker = ServerWorker(base_url, model, api_key)
    else:
        threads = limits.get("threads") or usable_threads(read_machine()).n
        own = math.ceil(parallel / workers)
        memory, ctx_size = limits.get("memory"), limits.get("ctx_size")
        worker = EngineWorker(
            model, max(1, threads // workers), memory and memory // workers, ctx_size,
            _n_sequences(model, ctx_size, own), own,
        )  # fmt: skip
    return RayPool([worker] * workers, ledger=ledger)


def _n_sequences(model: str, ctx_size: int | None, parallel: int) -> int:
    """Return whole contexts of KV cache: a few, and at least a page for each answer in a step."""
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.kv import PAGE_TOKENS

    length = ctx_size or open_model(resolve(model)).config.context_len
    return max(CONTEXTS, math.ceil(2 * parallel * PAGE_TOKENS / max(length, PAGE_TOKENS)))


def identity(model: str, base_url: str | None) -> str:
    """Return what tells this model from another: a digest of its weights, or where it is."""
    if base_url is not None:
        from capax.cli.run_facts import without_password

        return f"{model}@{without_password(base_url)}"
    from capax.files.digest import weights_digest
    from capax.files.model_file import open_model
    from capax.files.registry import resolve

    return f"sha256:{weights_digest(open_model(resolve(model))).hex()}"


def progress_of(noun: str) -> Callable[[int, int], None] | None:
    """Return what writes how many are done on one line of the terminal, if there is one."""
    if not console().shows_progress():
        return None

    def show(done: int, total: int) -> None:
        click.echo(f"\r{done:,} of {total:,} {noun}", err=True, nl=done >= total)

    return show
