"""Threads are laid off while others keep the cores busy, and called back."""

from __future__ import annotations

import numpy as np
import pytest

from capax import LLM, _native
from tests.faults.child import run_child
from tests.models import gguf_model

MS = 1_000_000
LONGEST_BACKOFF = 3200 * MS


class Machine:
    """A clock and cores: more than `free` threads stand waiting for nine tenths of a step."""

    def __init__(self, n_threads: int, free: int) -> None:
        self.pace = _native.Pace(n_threads)
        self.free = free
        self.now = 0
        self.used: list[int] = []

    def step(self) -> int:
        n = self.pace.next(self.now)
        crowded = n > self.free
        took = (20 if crowded else 2) * MS
        self.now += took
        self.pace.record(self.now, took, took * 9 // 10 * (n - 1) if crowded else 0)
        self.used.append(n)
        return n

    def run_for(self, ns: int) -> list[int]:
        """Steps until so much time has gone; return the threads of each."""
        begin, end = len(self.used), self.now + ns
        while self.now < end:
            self.step()
        return self.used[begin:]


def test_a_quiet_machine_keeps_all_threads() -> None:
    assert set(Machine(8, free=8).run_for(10_000 * MS)) == {8}


@pytest.mark.parametrize(
    ("n_threads", "free", "left"), [(2, 1, 1), (8, 4, 4), (8, 3, 2), (7, 1, 1)]
)
def test_threads_that_stand_waiting_are_laid_off_by_halves(
    n_threads: int, free: int, left: int
) -> None:
    machine = Machine(n_threads, free)
    machine.run_for(100 * MS)
    assert machine.used[0] == n_threads
    assert machine.used[-1] == left
    assert machine.used == sorted(machine.used, reverse=True)


def test_more_threads_are_tried_ever_more_rarely_while_the_machine_is_busy() -> None:
    machine = Machine(2, free=1)
    machine.run_for(60_000 * MS)
    times = np.cumsum([20 * MS if n == 2 else 2 * MS for n in machine.used])
    trials = times[np.array(machine.used) == 2]
    pauses = np.diff(trials)
    assert (np.diff(pauses[:5]) > 0).all()
    assert pauses.max() < LONGEST_BACKOFF + 30 * MS
    assert len(trials) < 30  # of 60 seconds


def test_all_threads_come_back_when_the_cores_are_free() -> None:
    machine = Machine(8, free=1)
    machine.run_for(20_000 * MS)
    machine.free = 8
    assert machine.run_for(LONGEST_BACKOFF + 200 * MS)[-1] == 8


def test_a_return_to_full_strength_forgets_how_long_it_took() -> None:
    machine = Machine(2, free=1)
    machine.run_for(20_000 * MS)
    machine.free = 2
    machine.run_for(5_000 * MS)
    machine.free = 1
    machine.run_for(100 * MS)
    assert machine.used[-1] == 1
    machine.free = 2
    assert machine.run_for(200 * MS)[-1] == 2  # the first pause again, not the longest


def test_one_thread_never_asks_for_more() -> None:
    assert set(Machine(1, free=0).run_for(1000 * MS)) == {1}


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_that_come_and_go_change_no_bit(threads: int) -> None:
    path = gguf_model("llama", encoding="Q4_1")
    ids = [3 + 7 * i % 60 for i in range(90)]
    expected = LLM(path, threads=1).logits(ids)
    llm = LLM(path, threads=threads)
    program = llm._model.native
    for n in [*range(threads + 1), *range(threads, 0, -1), 1, threads, 1, 0]:
        program.fix_threads(n)
        for chunk in (1, 7, None):
            assert np.array_equal(llm.logits(ids, chunk=chunk), expected)
            assert n == 0 or program.n_active_threads == n
    with pytest.raises(
        ValueError, match=f"a program of {threads} threads cannot use {threads + 1}"
    ):
        program.fix_threads(threads + 1)


def test_threads_left_out_are_there_after_a_fork_too() -> None:
    path = gguf_model("llama", encoding="Q4_1")
    done = run_child(
        """
        import os, sys
        from capax import LLM
        llm = LLM(sys.argv[1], threads=3)
        expected = llm.logits([5, 6, 7]).tobytes()
        llm._model.native.fix_threads(2)
        assert llm.logits([5, 6, 7]).tobytes() == expected
        child = os.fork()
        if child == 0:
            llm._model.native.fix_threads(3)
            os._exit(0 if llm.logits([5, 6, 7]).tobytes() == expected else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
