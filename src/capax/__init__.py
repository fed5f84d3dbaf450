"""capax: run, scale and measure language models within a fixed inference capacity.

Names are imported when they are first used, so that `import capax` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capax.decoding.params import SamplingParams
    from capax.decoding.structured import StructuredOutputs
    from capax.engine.embedder import Embedder
    from capax.engine.llm import LLM
    from capax.engine.outputs import CompletionOutput, RequestOutput, Score, StreamPiece

    __version__: str

__all__ = [
    "LLM",
    "CompletionOutput",
    "Embedder",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "StreamPiece",
    "StructuredOutputs",
    "__version__",
]

_HOMES = {
    "Embedder": "capax.engine.embedder",
    "LLM": "capax.engine.llm",
    "SamplingParams": "capax.decoding.params",
    "StructuredOutputs": "capax.decoding.structured",
    "CompletionOutput": "capax.engine.outputs",
    "RequestOutput": "capax.engine.outputs",
    "Score": "capax.engine.outputs",
    "StreamPiece": "capax.engine.outputs",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        from importlib import import_module

        from capax.starting import import_numpy, without_collector

        with without_collector():
            import_numpy()
            value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'capax' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("capax")
    except PackageNotFoundError:
        return _source_version()


def _source_version() -> str:
    """Return the version of a source tree that is on the path without being installed."""
    import tomllib
    from pathlib import Path

    try:
        text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
    except (OSError, ValueError, KeyError):
        return "0+unknown"
    return str(project["version"]) if project.get("name") == "capax" else "0+unknown"
