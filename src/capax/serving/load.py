"""Load the model while the listener is open, and let /ready see how far it is.

The weights arrive in one native call that tells nothing, so progress is what the process holds:
the anonymous memory that has been added, of what the weights will take.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from capax import LLM, Embedder
from capax.errors import ConfigError
from capax.files.model_file import open_model
from capax.files.registry import resolve
from capax.serving.nodes import NodesFile, load_nodes
from capax.serving.state import Models, Progress, own_nbytes

LOOK_S = 0.1
HEADERS_SHARE, WEIGHTS_SHARE = 0.05, 0.9  # of the whole, by time


def load_models(
    progress: Progress,
    model: str | Path,
    embedding_model: str | Path | None = None,
    *,
    memory: int | None = None,
    threads: int | None = None,
    ctx_size: int | None = None,
    kv: str | None = None,
    parallel: int = 1,
    nodes: NodesFile | None = None,
) -> Models:
    """Load what is served: `model`, which may be an embedding model, one beside it, and `nodes`.

    `memory` bounds all together: the embedding model is loaded first, then the nodes, and `model`
    is planned within what they leave.
    """
    progress.enter("headers", 0.0)
    if open_model(resolve(model)).config.encoder is not None:
        if embedding_model is not None:
            raise ConfigError(
                f"{model} embeds texts and writes none; it cannot stand beside the embedding "
                f"model {embedding_model}: leave --embedding-model out"
            )
        if nodes is not None:
            raise ConfigError(
                f"{model} embeds texts and writes none; a swarm needs a model that writes: leave "
                "--nodes out"
            )
        return Models(
            None, Embedder(model, memory=memory, threads=threads, ctx_size=ctx_size, kv=kv)
        )
    embedder = None
    if embedding_model is not None:
        embedder = Embedder(embedding_model, memory=memory, threads=threads)
        memory = None if memory is None else max(1, memory - own_nbytes(embedder))
    loaded = None
    if nodes is not None:
        loaded, memory = load_nodes(nodes, model, memory=memory, threads=threads, ctx_size=ctx_size)
    llm = watched_load(
        progress, model, memory=memory, threads=threads, ctx_size=ctx_size, kv=kv,
        n_sequences=parallel, parallel=parallel,
    )  # fmt: skip
    return Models(llm, embedder, loaded)


def watched_load(progress: Progress, model: str | Path, **options: Any) -> LLM:
    """Return `LLM(model, **options)`, telling `progress` about it."""
    progress.enter("headers", 0.0)
    file = open_model(resolve(model))
    expected = sum(tensor.nbytes for tensor in file.tensors.values())
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(progress, expected, done), name="capax-load-progress", daemon=True
    )
    progress.enter("weights", HEADERS_SHARE)
    watcher.start()
    try:
        llm = LLM(model, **options)
    finally:
        done.set()
        watcher.join()
    progress.enter("starting", HEADERS_SHARE + WEIGHTS_SHARE)
    return llm


def _watch(progress: Progress, expected: int, done: threading.Event) -> None:
    begin = _anonymous_nbytes()
    while not done.wait(LOOK_S):
        share = min(1.0, max(0, _anonymous_nbytes() - begin) / max(1, expected))
        progress.enter("weights", HEADERS_SHARE + WEIGHTS_SHARE * share)


def _anonymous_nbytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        resident, shared = file.read().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")
