"""Contestants take turns, and rates are of the rounds that count."""

from typing import Any

import pytest

from benchmarks import contest
from benchmarks.peers.base import peak_rss_bytes, prompt_ids


class Recorder(contest.Contestant):
    """A contestant without a process that notes when it was asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def ask(self, **request: Any) -> dict[str, Any]:
        self.log.append(self.name)
        return {"seconds": float(len(self.log))}


def test_contestants_alternate_and_the_warm_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contest, "PAUSE_S", 0.0)
    log: list[str] = []
    entrants = {name: Recorder(name, log) for name in "AB"}
    seconds = contest.alternate(entrants, 2, do="prefill", n_tokens=4)
    assert log == ["A", "B", "A", "B", "A", "B"]
    assert seconds == {"A": [3.0, 5.0], "B": [4.0, 6.0]}


def test_rates_are_tokens_over_seconds() -> None:
    assert contest.rates(10, [1.0, 2.0, 5.0]) == contest.Rates(min=2.0, median=5.0, max=10.0)


def test_prompt_ids_are_distinct_and_a_longer_prompt_continues_a_shorter() -> None:
    ids = prompt_ids(8192)
    assert len(set(ids)) == 8192
    assert prompt_ids(100) == ids[:100]
    assert min(ids) >= 100


def test_peak_rss_sees_an_allocation() -> None:
    before = peak_rss_bytes()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_rss_bytes() >= before
    assert peak_rss_bytes() > len(block)
