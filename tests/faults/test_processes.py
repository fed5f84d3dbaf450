"""Forks, exits and interrupts in the middle of work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.child import run_child
from tests.models import gguf_model


@pytest.fixture
def path() -> Path:
    return gguf_model("llama", encoding="Q8_0")


def test_a_forked_child_gives_the_same_tokens_and_the_parent_goes_on(path: Path) -> None:
    """Forked while one thread is in the middle of steps and a stream of this one is open."""
    done = run_child(
        """
        import os, signal, sys, threading
        from capax import LLM, SamplingParams
        llm = LLM(sys.argv[1], threads=2, ctx_size=512, n_sequences=2)
        params = SamplingParams(max_tokens=40, seed=4, ignore_eos=True)
        expected = llm.generate([5, 6, 7], params).token_ids
        done = threading.Event()
        def work():
            while not done.is_set():
                llm.generate([9] * 100, SamplingParams(max_tokens=50, ignore_eos=True))
        thread = threading.Thread(target=work)
        thread.start()
        stream = llm.stream([5, 6, 7], params)
        got = next(stream).token_ids
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                mine = got + [t for piece in stream for t in piece.token_ids]
                again = llm.generate([5, 6, 7], params).token_ids
                os._exit(0 if mine == again == expected else 3)
            assert os.waitpid(pid, 0)[1] == 0
        done.set()
        thread.join()
        assert got + [t for piece in stream for t in piece.token_ids] == expected
        assert llm.generate([5, 6, 7], params).token_ids == expected
        llm.engine.check_integrity()
        print("fine")
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_pool_of_forked_workers_answers_as_the_parent(path: Path) -> None:
    done = run_child(
        """
        import multiprocessing, sys
        from capax import LLM, SamplingParams
        llm = LLM(sys.argv[1], threads=2)
        def answer(i):
            return llm.generate([5, 6, i], SamplingParams(max_tokens=8, seed=1)).token_ids
        expected = [answer(i) for i in range(8)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(answer, range(8)) == expected
        print("fine")
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize("what", ["stream", "generate", "score"])
def test_exiting_while_a_thread_is_at_work_neither_hangs_nor_crashes(path: Path, what: str) -> None:
    done = run_child(
        """
        import sys, threading
        from capax import LLM, SamplingParams
        llm = LLM(sys.argv[1], threads=2)
        begun = threading.Event()
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        def work():
            while True:
                if sys.argv[2] == "stream":
                    for _ in llm.stream([5] * 300, params):
                        begun.set()
                elif sys.argv[2] == "generate":
                    llm.generate([5] * 300, params)
                else:
                    llm.score([5] * 500)
                begun.set()
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        print("bye")
        """,
        path,
        what,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


def test_an_open_stream_at_exit_is_no_obstacle(path: Path) -> None:
    done = run_child(
        """
        import sys
        from capax import LLM, SamplingParams
        llm = LLM(sys.argv[1], threads=2)
        stream = llm.stream([5, 6], SamplingParams(max_tokens=100, ignore_eos=True))
        next(stream)
        """,
        path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_interrupt_ends_the_answer_and_nothing_else(path: Path) -> None:
    """Signals at many moments of many answers: the next answer is the right one each time.

    Pages are not counted: a signal between two bytecodes may cost one until the model goes.
    """
    done = run_child(
        """
        import itertools, signal, sys
        from capax import LLM, SamplingParams
        llm = LLM(sys.argv[1], threads=2)
        params = SamplingParams(max_tokens=60, seed=4, n=2, ignore_eos=True)
        expected = llm.generate([5, 6, 7], params).outputs
        n_interrupted = 0
        for i in range(40):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            # Again and again: an interrupt within a finaliser is swallowed by Python.
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-4 * (i % 23), 0.02)
            try:
                for _ in itertools.count():
                    llm.generate([9] * (3 + i), params)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                n_interrupted += 1
            assert llm.engine.n_unfinished == 0
            assert llm.generate([5, 6, 7], params).outputs == expected
        print(n_interrupted)
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "40\n"), done.stderr
