"""A start without the collector at work, and without OpenBLAS's threads spinning."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capax.starting import LEAST_SPIN, OPENBLAS_SPIN, without_collector

SOURCES = str(Path(__file__).parents[1] / "src")


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_off_within_and_as_before_afterwards(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(KeyError), without_collector():
            seen = gc.isenabled()
            raise KeyError
        assert not seen
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_what_was_made_is_old_and_garbage_among_it_is_still_found() -> None:
    class Loop:
        alive = 0

        def __init__(self) -> None:
            self.self = self
            Loop.alive += 1

        def __del__(self) -> None:
            Loop.alive -= 1

    with without_collector():
        Loop()
        young = gc.get_count()[0]
    assert gc.get_count()[0] <= young
    gc.collect(0)
    assert Loop.alive == 1
    gc.collect()
    assert Loop.alive == 0


def test_what_a_user_froze_stays_frozen() -> None:
    """In a process of its own: elsewhere another thread may end something that is frozen."""
    program = """
import gc
from capax.starting import without_collector
gc.freeze()
frozen = gc.get_freeze_count()
with without_collector():
    pass
print(frozen > 0, gc.get_freeze_count() == frozen)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True True\n"


PROGRAM = """
import json, os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            seen.append(os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
sys.meta_path.insert(0, Watch())
from capax import SamplingParams
print(json.dumps([seen, os.environ.get("OPENBLAS_THREAD_TIMEOUT")]))
"""


@pytest.mark.parametrize(
    ("given", "expected"), [(None, [[LEAST_SPIN], None]), ("20", [["20"], "20"])]
)
def test_openblas_is_told_to_sleep_while_numpy_is_imported(
    given: str | None, expected: list[object]
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != OPENBLAS_SPIN}
    environment |= {"PYTHONPATH": SOURCES} | ({OPENBLAS_SPIN: given} if given else {})
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(found.stdout) == expected
