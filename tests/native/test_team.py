"""The thread team as the engine uses it: any number, any caller, any floating-point mode."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capax import LLM, SamplingParams
from tests.faults.child import run_child
from tests.models import gguf_model

PARAMS = SamplingParams(max_tokens=16, seed=4, ignore_eos=True, logprobs=2, prompt_logprobs=2)
IDS = list(range(3, 90))

# <fenv.h> of x86-64: rounding modes, and where fenv_t keeps MXCSR with its FTZ and DAZ bits.
ROUNDING = {"down": 0x400, "up": 0x800, "zero": 0xC00}
FLUSH_BITS = 0x8040


class FloatEnvironment(ctypes.Structure):
    _fields_ = (("x87", ctypes.c_uint8 * 28), ("mxcsr", ctypes.c_uint32))


@contextmanager
def floating_point(mode: str) -> Iterator[Any]:
    """Set the rounding mode, or the flushing of denormals, of this thread."""
    libm = ctypes.CDLL("libm.so.6")
    before = FloatEnvironment()
    libm.fegetenv(ctypes.byref(before))
    try:
        if mode == "flush":
            changed = FloatEnvironment.from_buffer_copy(before)
            changed.mxcsr |= FLUSH_BITS
            libm.fesetenv(ctypes.byref(changed))
        else:
            assert libm.fesetround(ROUNDING[mode]) == 0
        yield libm
    finally:
        libm.fesetenv(ctypes.byref(before))


@pytest.fixture(params=["Q8_0", "Q4_1", "F32"])
def path(request: pytest.FixtureRequest) -> Path:
    return gguf_model("llama", encoding=request.param)


def everything(llm: LLM) -> tuple[Any, ...]:
    """All that a model says: tokens, log-probabilities, scores and the bits of its logits."""
    answer = llm.generate(IDS, PARAMS)
    llm.close()
    return (
        answer.token_ids,
        answer.logprobs,
        answer.prompt_logprobs,
        llm.score(IDS),
        llm.logits(IDS).tobytes(),
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the modes are set as x86-64 has them")
@pytest.mark.parametrize("mode", [*ROUNDING, "flush"])
def test_the_callers_floating_point_mode_changes_no_bit(path: Path, mode: str) -> None:
    expected = everything(LLM(path, threads=2))
    loaded_before = LLM(path, threads=2)
    with floating_point(mode) as libm:
        assert everything(loaded_before) == expected
        assert everything(LLM(path, threads=2)) == expected  # loaded in this mode
        if mode in ROUNDING:
            assert libm.fegetround() == ROUNDING[mode]  # and given back as it was


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the modes are set as x86-64 has them")
def test_negative_control_the_mode_does_change_numpy() -> None:
    one, tiny = np.ones(8, np.float32), np.full(8, 1e-10, np.float32)
    plain = one + tiny
    with floating_point("up"):
        up = one + tiny
    assert not np.array_equal(plain, up)


def test_denormals_stay_what_they_are(path: Path) -> None:
    """Neither importing nor generating may flush denormals, on this or any other thread."""
    done = run_child(
        """
        import sys, threading
        import numpy as np
        def keeps_denormals():
            tiny = np.full(4, 1e-40, np.float32)
            halves = tiny * np.float32(0.5)
            return bool((halves > 0).all() and np.finfo(np.float32).smallest_subnormal > 0)
        from capax import LLM, SamplingParams
        seen = [keeps_denormals()]
        llm = LLM(sys.argv[1], threads=2)
        def work():
            llm.generate([5, 6], SamplingParams(max_tokens=4))
            seen.append(keeps_denormals())
        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(seen)
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "[True, True, True]\n"), done.stderr


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 16])
def test_any_number_of_threads_gives_the_same_bits(path: Path, threads: int) -> None:
    expected = LLM(path, threads=1).logits(IDS)
    llm = LLM(path, threads=threads)
    for chunk in (1, 5, None):
        assert np.array_equal(llm.logits(IDS, chunk=chunk), expected)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_rows_of_a_long_prompt_are_shared_out_without_changing_a_bit(
    path: Path, threads: int, kv: str
) -> None:
    ids = [3 + 7 * i % 60 for i in range(461)]  # 200 rows and more for each thread, no whole tile
    expected = LLM(path, threads=1, kv=kv).logits(ids)
    for chunk in (461, 256):
        llm = LLM(path, threads=threads, kv=kv, prefill_chunk=chunk)
        assert np.array_equal(llm.logits(ids), expected)


def test_several_teams_work_at_once_and_end_with_their_models(path: Path) -> None:
    expected = LLM(path, threads=1).logits(IDS).tobytes()

    def load_and_run(_: int) -> bytes:
        return LLM(path, threads=3).logits(IDS).tobytes()

    n_before = n_system_threads()
    with ThreadPoolExecutor(4) as callers:
        assert set(callers.map(load_and_run, range(12))) == {expected}
    wait_for_threads(n_before)


def n_system_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def wait_for_threads(n: int) -> None:
    """The kernel may list a thread for a moment after it was joined."""
    deadline = time.monotonic() + 10
    while n_system_threads() > n:
        assert time.monotonic() < deadline, f"{n_system_threads()} threads, {n} expected"
        os.sched_yield()


def test_threads_that_cannot_be_started_are_an_error_and_may_come_later(path: Path) -> None:
    """The limit on address space leaves no room for the workers' stacks."""
    done = run_child(
        """
        import resource, sys
        from capax import LLM, SamplingParams
        from capax.errors import CapacityError
        llm = LLM(sys.argv[1], threads=8)
        params = SamplingParams(max_tokens=4, seed=1)
        # Everything a step needs beside its threads is there: one ran before without them.
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), before[1]))
        try:
            llm.generate([5, 6], params)
        except CapacityError as error:
            assert "threads" in str(error), error
        else:
            raise SystemExit("threads were started in no memory")
        resource.setrlimit(resource.RLIMIT_AS, before)
        llm.engine.check_integrity()
        assert llm.generate([5, 6], params).token_ids == (
            LLM(sys.argv[1], threads=1).generate([5, 6], params).token_ids
        )
        print("fine")
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_model_dropped_in_another_thread_than_it_ran_in_ends_its_team(path: Path) -> None:
    n_before = n_system_threads()
    models = [LLM(path, threads=3)]
    models[0].logits(IDS)
    assert n_system_threads() >= n_before + 2
    thread = threading.Thread(target=models.clear)
    thread.start()
    thread.join()
    wait_for_threads(n_before)
