"""What a unit of a run took: tokens, and seconds by the kept times of its calls.

Calls of a run overlap, so its time is the length of all intervals in which any of them was under
way; time between two stops does not count. Latency is another figure: what one call took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capax.files.run_folder import read_manifest
from capax.scaling.run_directory import Sample, Timing, read_rows


@dataclass(frozen=True, slots=True)
class RoundCost:
    """What a round took on average: seconds of its call, tokens read anew and tokens written."""

    seconds: float
    prefilled_tokens: float
    new_tokens: float


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What a unit (a sample, a round) took on average.

    `tokens`: new ones, None where nobody says; `seconds`: of the whole run by its
    units, with as many under way as it had, None without kept times. `rounds`: in order, of a run
    of rounds.
    """

    tokens: float | None
    seconds: float | None
    rounds: tuple[RoundCost, ...] = ()

    def chain_seconds(self, n: int) -> float | None:
        """Return the time of a chain of n rounds, one after another.

        Rounds beyond those that were run are taken to be like the last one. None without rounds.
        """
        if not self.rounds:
            return None
        known = [cost.seconds for cost in self.rounds[:n]]
        return sum(known) + self.rounds[-1].seconds * max(n - len(self.rounds), 0)


def unit_cost(path: Path) -> UnitCost:
    """Return what a unit of a run took. Raises what reading the run does."""
    timings = _timings(path)
    n_units = sum(timing.n for timing in timings)
    seconds = _busy((t.finished_at - t.seconds, t.finished_at) for t in timings)
    n_rounds = read_manifest(path)["config"].get("rounds")
    return UnitCost(
        _tokens(path, timings),
        seconds / n_units if n_units else None,
        _rounds(timings, n_rounds) if isinstance(n_rounds, int) else (),
    )


def _tokens(path: Path, timings: list[Timing]) -> float | None:
    """Return the new tokens of a unit; of a server that counts whole calls only, by its calls."""
    known = [sample.new_tokens for sample in read_rows(path, Sample)]
    if known and None not in known:
        return float(np.mean([n for n in known if n is not None]))
    n_units = sum(timing.n for timing in timings)
    return sum(t.completion_tokens for t in timings) / n_units if n_units else None


def _timings(path: Path) -> list[Timing]:
    """Return the times of calls; of several for the same samples, after a stop, the last."""
    if not (path / "timings.jsonl").exists():
        return []
    rows = read_rows(path, Timing)
    return list({(row.problem_id, row.first_idx): row for row in rows}.values())


def _busy(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, until = 0.0, -np.inf
    for begin, end in sorted(intervals):
        total += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return float(total)


def _rounds(timings: list[Timing], n_rounds: int) -> tuple[RoundCost, ...]:
    found = []
    for number in range(n_rounds):
        own = [t for t in timings if t.first_idx % n_rounds == number]
        if not own:
            return ()
        rows = [(t.seconds, t.prompt_tokens - t.cached_tokens, t.completion_tokens) for t in own]
        found.append(RoundCost(*np.mean(rows, axis=0).tolist()))
    return tuple(found)
