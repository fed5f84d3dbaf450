"""Run a server in this process until it is told to stop; the exit code says how it ended."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

from capax.errors import ConfigError
from capax.serving.app import create_app
from capax.serving.config import ServerConfig
from capax.serving.hosts import is_loopback
from capax.serving.listen import Listener
from capax.serving.logs import start_logging
from capax.serving.state import Load, Server

if TYPE_CHECKING:
    from capax import LLM, Embedder

SPARE_FILES = 64  # besides connections: the model, the log, pipes


def serve(
    config: ServerConfig,
    load: Load,
    announce: Callable[[int, LLM | Embedder], None],
    *,
    is_quiet: bool = False,
) -> int:
    """Serve until a signal; returns 0. `announce(port, model)` is called when requests are taken.

    Raises ConfigError for settings that would not be safe, and whatever ended the server: an
    error of loading, or of the engine's thread.
    """
    check_safe(config)
    start_logging(config.log_format, is_quiet=is_quiet)
    config = with_room_for_connections(config)
    app = create_app(config, load)
    server: Server = app.state.server

    def on_ready() -> None:
        # What is there now stays: a full collection need not walk it between two tokens.
        gc.collect()
        gc.freeze()
        announce(listener.port, server.primary)

    listener = Listener(app, on_ready=on_ready)
    listener.run(handles_signals=True)
    if server.failure is not None:
        raise server.failure
    if not server.loaded.is_set():
        os._exit(0)  # weights are still coming, and an orderly exit would wait for them
    return 0


def check_safe(config: ServerConfig) -> None:
    """Raise ConfigError for a server that strangers could use."""
    if not config.api_keys and not is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} can be reached from the network, so a key is needed: give "
            "--api-key or --api-key-file, or listen on 127.0.0.1"
        )
    if "*" in config.cors_origins and not config.api_keys:
        raise ConfigError(
            "--cors-origin '*' lets every web page use the server, so a key is needed: give "
            "--api-key, or name the origins"
        )


def with_room_for_connections(config: ServerConfig) -> ServerConfig:
    """Raise this process's limit of open files, and keep the connections below it."""
    import dataclasses

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.max_connections + SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    n_open = len(os.listdir("/proc/self/fd"))
    room = max(1, soft - n_open - SPARE_FILES)
    return dataclasses.replace(config, max_connections=min(config.max_connections, room))
