"""`capax serve`: answer HTTP clients with one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.console import console
from capax.cli.options import DurationType, SizeType, capacity_options, chosen_kv, model_argument
from capax.errors import CapacityError, ConfigError
from capax.planning.sizes import format_size

if TYPE_CHECKING:
    from capax import LLM, Embedder
    from capax.serving.config import ServerConfig
    from capax.serving.nodes import NodesFile
    from capax.serving.state import Models, Progress

MAX_KEY_FILE_NBYTES = 1 << 20
LEAST_KEY_CHARS = 8


@click.command("serve")
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0: any free one.",
)
@click.option(
    "-np",
    "--parallel",
    "--max-num-seqs",
    "parallel",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="N",
    help="Sequences at a time.",
)
@capacity_options
@click.option(
    "-a",
    "--alias",
    "--served-model-name",
    "alias",
    metavar="NAME",
    help="What clients call the model.",
)
@click.option(
    "--strategy",
    metavar="STRATEGY",
    help="Answer chats by spending more, e.g. majority:n=8; see 'capax methods strategy'.",
)
@click.option(
    "--nodes", "nodes_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Nodes of a swarm, as for 'capax scale swarm': clients call it swarm:NAME of the file.",
)  # fmt: skip
@click.option(
    "--registry", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="With --nodes: what 'capax scale swarm' knows of them; it is read, not written.",
)  # fmt: skip
@click.option(
    "--embedding-model",
    metavar="MODEL",
    help="A sentence embedder to serve beside MODEL, for /v1/embeddings.",
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    envvar="CAPAX_API_KEY",
    help="A key that clients must send; may be repeated. Obligatory off loopback.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file with one key per line.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="HOST",
    help="A further name in the Host header to answer to; may be repeated.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web origin whose pages may use the server; may be repeated.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(0, 100_000),
    default=256,
    show_default=True,
    metavar="N",
    help="Requests that may wait; further ones get 429.",
)
@click.option(
    "--max-per-key",
    type=click.IntRange(1, 100_000),
    default=256,
    show_default=True,
    metavar="N",
    help="Requests of one key that may run and wait.",
)
@click.option(
    "--max-body-size",
    "max_body_nbytes",
    type=SizeType(),
    default="8MiB",
    show_default=True,
    metavar="SIZE",
    help="Largest request body.",
)
@click.option(
    "--request-timeout",
    "request_timeout_s",
    type=DurationType(),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Longest time a request may take.",
)
@click.option(
    "--drain",
    "drain_s",
    type=DurationType(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How long running requests may finish after SIGTERM.",
)
@click.option(
    "--metrics-compat",
    type=click.Choice(["vllm"]),
    help="Repeat the metrics under another server's names.",
)
@click.option("--strict-params", is_flag=True, help="Refuse request fields that are unknown.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the log on stderr.",
)
@click.option(
    "--request-log",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Append a line of token counts and times per request, as JSON, no texts.",
)
@click.option("--log-prompts", is_flag=True, help="Write prompts to the log. Off by default.")
def command(
    model: str,
    alias: str | None,
    embedding_model: str | None,
    nodes_file: Path | None,
    registry: Path | None,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    memory: int | None,
    ctx_size: int | None,
    threads: int | None,
    kv: str | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    **settings: Any,
) -> int:
    """Serve MODEL over HTTP: OpenAI's and Anthropic's protocols, and a page at /.

    Listens on 127.0.0.1:8080 and answers from the first moment: /ready says how far loading
    is. SIGTERM lets running requests finish; a second one leaves at once.
    """
    kv = chosen_kv(kv, cache_type_k, cache_type_v)
    keys = (*api_keys, *(() if api_key_file is None else read_keys(api_key_file)))
    _check_keys(keys)
    _import_extra()
    nodes = _nodes(nodes_file, registry)
    if settings["strategy"] is not None:
        from capax.scaling.strategies.strategy import parse_strategy
        from capax.serving.strategies import check_nodes

        check_nodes(parse_strategy(settings["strategy"]), nodes)
    from capax.serving.config import OWN_NBYTES, ServerConfig
    from capax.serving.launch import serve
    from capax.serving.load import load_models

    config = ServerConfig(
        model_name=alias or shown_name(model),
        embedding_model_name="" if embedding_model is None else shown_name(embedding_model),
        api_keys=keys,
        memory=memory,
        **settings,
    )

    left = _left_for_models(memory, OWN_NBYTES)

    def load(progress: Progress) -> Models:
        return load_models(
            progress, model, embedding_model, memory=left, ctx_size=ctx_size, threads=threads,
            kv=kv, parallel=config.parallel, nodes=nodes,
        )  # fmt: skip

    return serve(
        config,
        load,
        announce=lambda port, loaded: _announce(config, port, loaded),
        is_quiet=console().is_quiet,
    )


def _nodes(file: Path | None, registry: Path | None) -> NodesFile | None:
    """Return the nodes of a served swarm, if a file names them."""
    if file is None:
        if registry is not None:
            raise ConfigError("--registry says what nodes weigh; name them: --nodes FILE")
        return None
    from capax.serving.nodes import read_file

    return read_file(file, registry)


def shown_name(model: str) -> str:
    """Return what clients call a model that has no alias: its name, or that of its file."""
    return Path(model).name.removesuffix(".gguf") or model


def _left_for_models(memory: int | None, own_nbytes: int) -> int | None:
    """Return what of --memory is left for models when the server has taken its own part."""
    if memory is None:
        return None
    if memory <= own_nbytes:
        raise CapacityError(
            f"--memory {format_size(memory)} is not enough: the server itself takes up to "
            f"{format_size(own_nbytes)} of it, and the model comes on top"
        )
    return memory - own_nbytes


def read_keys(path: Path) -> list[str]:
    """Return the keys of a file, one per line; empty lines and '#' lines are none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_KEY_FILE_NBYTES + 1)
    except OSError as e:
        raise ConfigError(f"cannot read the API keys in {path}: {e.strerror}") from None
    if len(raw) > MAX_KEY_FILE_NBYTES:
        raise ConfigError(f"{path} has more than {MAX_KEY_FILE_NBYTES:,} bytes: it is no key file")
    try:
        lines = [line.strip() for line in raw.decode("utf-8").splitlines()]
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 at byte {e.start}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{path} holds no API key; write one per line")
    return keys


def _check_keys(keys: tuple[str, ...]) -> None:
    for key in keys:
        if len(key) < LEAST_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"an API key of {len(key)} characters is not acceptable; use at least "
                f"{LEAST_KEY_CHARS} printable ASCII characters without spaces"
            )


def _import_extra() -> None:
    """Say which extra is missing, rather than which module."""
    import importlib

    for name in ("fastapi", "httptools", "prometheus_client", "uvicorn"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(
                f"'capax serve' needs the package {name}, which comes with the extra 'serve'; "
                "run pip install 'capax[serve]'"
            ) from None


def _announce(config: ServerConfig, port: int, model: LLM | Embedder) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{port}"
    access = f"{len(config.api_keys)} API keys" if len(config.api_keys) > 1 else "one API key"
    if not config.api_keys:
        access = "no key, loopback only"
    beside = f" and {config.embedding_model_name}" if config.embedding_model_name else ""
    for note in model.plan.notes:
        console().note(f"note: {note}")
    console().note(
        f"ready in {model.load_seconds:.1f} s · model {config.model_name}{beside} · chat {url} · "
        f"API {url}/v1 ({access})"
    )
