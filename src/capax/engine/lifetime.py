"""What a fork and the interpreter's exit mean for engines.

Neither may happen in the middle of a step. A child would inherit locks that no thread of its
own ever opens; and a thread that comes back from native code after the interpreter has begun
to tear down is killed there, which C++ answers with abort(). So both wait for the steps that
are running: a fork then lets them go on, an exit does not.
"""

from __future__ import annotations

import atexit
import os
import threading
from functools import cache
from typing import Protocol
from weakref import WeakSet


class Pausable(Protocol):
    """Something with steps that can be held up between two of them."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def stop(self) -> None: ...


_engines: WeakSet[Pausable] = WeakSet()
_paused: list[Pausable] = []
_forking = threading.Lock()  # one thread forks at a time: it alone writes `_paused`


def watch(engine: Pausable) -> None:
    """Pause `engine` around forks and stop it at exit, as long as it lives."""
    _register()
    _engines.add(engine)


@cache
def _register() -> None:
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
    atexit.register(_at_exit)


def _before_fork() -> None:
    _forking.acquire()
    for engine in list(_engines):
        engine.pause()
        _paused.append(engine)


def _after_fork() -> None:
    while _paused:
        _paused.pop().resume()
    _forking.release()


def _at_exit() -> None:
    for engine in list(_engines):
        engine.stop()
