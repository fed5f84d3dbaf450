"""One call in a thread of its own."""

from __future__ import annotations

import threading

import pytest

from capax.engine.background import Background


def test_work_runs_beside_and_its_result_is_returned() -> None:
    go_on = threading.Event()

    def work() -> int:
        go_on.wait(10)
        return threading.get_ident()

    with Background(work) as background:
        go_on.set()
        assert background.result() != threading.get_ident()


def test_error_is_raised_where_the_result_is_wanted() -> None:
    def work() -> None:
        raise ValueError("of the work")

    with Background(work) as background, pytest.raises(ValueError, match="of the work"):
        background.result()


def test_leaving_with_an_error_waits_for_the_work() -> None:
    finished = threading.Event()
    with pytest.raises(KeyError), Background(finished.set):
        raise KeyError
    assert finished.is_set()
