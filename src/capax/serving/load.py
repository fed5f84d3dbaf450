"""Load the model while the listener is open, and let /ready see how far it is.

The weights arrive in one native call that tells nothing, so progress is what the process holds:
the anonymous memory that has been added, of what the weights will take.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from capax import LLM
from capax.files.model_file import open_model
from capax.files.registry import resolve
from capax.serving.state import Progress

LOOK_S = 0.1
HEADERS_SHARE, WEIGHTS_SHARE = 0.05, 0.9  # of the whole, by time


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
