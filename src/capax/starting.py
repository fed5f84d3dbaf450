"""What makes a start quick: no collector at work, no thread of OpenBLAS spinning.

Importing and loading make many objects and no garbage, and every few hundred of them the
collector would visit the young ones: 18 ms of a start. numpy's OpenBLAS starts a thread for
every core, and each spins for about 20 ms before it sleeps, on cores that could pack weights;
capax hands it no work (measured 2026-11-23 on two cores: 320 ms of processor time up to the
first token without this module, 240 with it).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Read once, when OpenBLAS is loaded: a thread without work spins for 2^N cycles.
OPENBLAS_SPIN = "OPENBLAS_THREAD_TIMEOUT"
LEAST_SPIN = "4"


@contextmanager
def without_collector() -> Iterator[None]:
    """Hold the collector off; it is as before afterwards, and what was made counts as old.

    Else the first collection would visit all of it at once, for as long as all those saved.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled and gc.get_freeze_count() == 0:
            gc.freeze()  # everything moves to a generation apart,
            gc.unfreeze()  # and from there to the oldest, unvisited
        if was_enabled:
            gc.enable()


def import_numpy() -> None:
    """Import numpy for the first time with OpenBLAS told to sleep rather than to spin.

    Its number of threads stays what the user wants. Does nothing where numpy is there already
    or the variable is set.
    """
    if "numpy" in sys.modules or OPENBLAS_SPIN in os.environ:
        return
    os.environ[OPENBLAS_SPIN] = LEAST_SPIN
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[OPENBLAS_SPIN]
