"""Flags that several commands share, and their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from capax.errors import ConfigError
from capax.planning.sizes import parse_duration, parse_size

F = TypeVar("F", bound=Callable[..., Any])


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Bytes, typed as 512MiB or 6G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value, "the size")
        except ConfigError as e:
            self.fail(str(e), param, ctx)


class DurationType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Seconds, typed as 30s, 5m or 1h."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration(str(value), "the time")
        except ConfigError as e:
            self.fail(str(e), param, ctx)


class KVTypeType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A KV precision; q8_0 is accepted for int8."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from capax.kv import kv_name

        try:
            return kv_name(str(value))
        except ConfigError as e:
            self.fail(str(e), param, ctx)


def model_argument(function: F) -> F:
    """Add MODEL: a name, a GGUF file or a Hugging Face directory."""
    return click.argument("model")(function)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def machine_options(function: F) -> F:
    """Add --threads and --memory, for commands that take the rest as it comes."""
    for option in (
        click.option(
            "--memory", type=SizeType(), metavar="SIZE", help="Hard limit on everything held."
        ),
        click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads."),
    ):
        function = option(function)
    return function


def capacity_options(function: F) -> F:
    """Add --ctx-size, --threads, --memory and the KV flags."""
    for option in reversed(
        (
            click.option(
                "-c", "--ctx-size", "--max-model-len", "ctx_size", type=click.IntRange(1),
                metavar="N", help="Context in tokens. Default: the model's, shrunk if it must be.",
            ),
            click.option(
                "-t", "--threads", type=click.IntRange(1, 1024), metavar="N",
                help="Threads. Default: the cores this process may use.",
            ),
            click.option(
                "--memory", type=SizeType(), metavar="SIZE",
                help="Hard limit on everything held, e.g. 300MiB. Default: what is available.",
            ),
            click.option(
                "--kv", metavar="METHOD",
                help="KV cache: f32, f16, bf16, int8, or a method ('capax methods').",
            ),
            click.option(
                "-ctk", "--cache-type-k", "cache_type_k", type=KVTypeType(),
                help="Precision of K; must equal that of V.",
            ),
            click.option(
                "-ctv", "--cache-type-v", "cache_type_v", type=KVTypeType(),
                help="Precision of V; must equal that of K.",
            ),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def chosen_kv(kv: str | None, type_k: str | None, type_v: str | None) -> str | None:
    """Return the one KV choice that --kv, -ctk and -ctv make together.

    Raises UsageError for an unknown one and for choices that differ.
    """
    if kv:
        from capax.kv import kv_name

        try:
            kv = kv_name(kv)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
    if type_k and type_v and type_k != type_v:
        raise click.UsageError(
            f"-ctk {type_k} and -ctv {type_v} differ; K and V are kept in the same type"
        )
    by_type = type_k or type_v
    if kv and by_type and kv != by_type:
        raise click.UsageError(f"--kv {kv} contradicts -ctk/-ctv {by_type}; give one of them")
    return kv or by_type
