"""The server's fixtures, for hostile requests."""

from tests.serving.conftest import (  # noqa: F401  # fixtures are found by their names
    anyio_backend,
    closed_sockets,
    live_server,
    tiny_llm,
    tiny_model,
)
