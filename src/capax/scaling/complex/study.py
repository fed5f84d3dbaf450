"""What repeated runs of a set of tasks show: bounds, spread, votes, tokens, difficulty.

"Inference-Time Scaling for Complex Tasks" (2025, arXiv 2504.00294). With R answers to each of M
instances: worst and best of n <= R are the unbiased estimates C(c, n)/C(R, n) and
1 - C(R - c, n)/C(R, n) of each instance's c right ones, then averaged (never from an average); the
average is n = 1 of both. Votes count answers in one spelling; an answer that could not be read does
not vote. Next to them stands what uniform guessing gives, and what a constant answer gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.families import family_named
from capax.scaling.complex.instance import Instance
from capax.scaling.coverage import Counts, pass_at_k
from capax.scaling.selection import Answers, majority


@dataclass(frozen=True)
class Played:
    """An instance with R answers in one spelling (None: unreadable), verdicts and tokens, [R]."""

    instance: Instance
    answers: Sequence[str | None]
    correct: np.ndarray
    tokens: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.answers)
        if not n or len(self.correct) != n or len(self.tokens) != n:
            raise ConfigError(f"{n} answers need as many verdicts and token counts, at least one")


def best_of(played: Sequence[Played], n: int) -> np.ndarray:
    """Return each instance's chance that at least one of n answers is right, [M]."""
    return pass_at_k(_counts(played), n)


def worst_of(played: Sequence[Played], n: int) -> np.ndarray:
    """Return each instance's chance that all of n answers are right, [M]."""
    counts = _counts(played)
    return 1 - pass_at_k(Counts(counts.n, counts.n - counts.correct), n)


def vote(played: Sequence[Played]) -> np.ndarray:
    """Return each instance's chance that the most frequent answer is right, ties shared, [M].

    Unreadable answers are no candidate; if all are, it is wrong.
    """
    return np.array(
        [
            float(majority(Answers(p.answers, p.correct).codes, None) @ p.correct)
            if any(a is not None for a in p.answers)
            else 0.0
            for p in played
        ]
    )


def blind_best_of(played: Sequence[Played], n: int) -> float:
    """Return best of n for uniform guesses, exactly."""
    q = np.array([p.instance.blind for p in played])
    return float(np.mean(-np.expm1(n * np.log1p(-np.minimum(q, 1 - 1e-15)))))


def report(played: Sequence[Played]) -> dict[str, Any]:
    """Return the figures of one model on one family.

    `by_level`, `by_cell` and `by_truth` (whether there is anything to find) have the same fields.
    """
    levels = sorted({p.instance.level for p in played})
    cells = sorted({p.instance.cell for p in played})
    return {
        **_figures(played),
        "by_level": {
            str(v): _figures([p for p in played if p.instance.level == v]) for v in levels
        },
        "by_cell": {c: _figures([p for p in played if p.instance.cell == c]) for c in cells if c},
        "by_truth": {
            name: _figures(those)
            for name, is_found in (("something to find", True), ("nothing to find", False))
            if (those := [p for p in played if (_constant(p.instance) is None) == is_found])
            and len(those) < len(played)
        },
        "constant_answers": constant_answers([p.instance for p in played]),
    }


def _figures(played: Sequence[Played]) -> dict[str, Any]:
    if not played:
        raise ConfigError("a report needs at least one instance with answers")
    repeats = min(len(p.answers) for p in played)
    rates = np.array([p.correct.mean() for p in played])
    runs = np.array([[p.correct[r] for p in played] for r in range(repeats)], float).mean(axis=1)
    powers = sorted({1 << i for i in range(repeats.bit_length())} | {repeats})
    best = {n: float(best_of(played, n).mean()) for n in powers}
    blind = {n: blind_best_of(played, n) for n in powers}
    tokens = [np.asarray(p.tokens, float) for p in played]
    classes = {
        "always right": rates == 1,
        "always wrong": rates == 0,
        "mixed": (rates > 0) & (rates < 1),
    }
    return {
        "n_instances": len(played),
        "repeats": repeats,
        "worst": float(worst_of(played, repeats).mean()),
        "average": float(rates.mean()),
        "majority": float(vote(played).mean()),
        "best": best[repeats],
        "sd_over_repeats": float(runs.std(ddof=1)) if repeats > 1 else None,
        "format_failure_rate": float(np.mean([a is None for p in played for a in p.answers])),
        "best_of": {str(n): value for n, value in best.items()},
        "worst_of": {str(n): float(worst_of(played, n).mean()) for n in powers},
        "blind_best_of": {str(n): value for n, value in blind.items()},
        "above_blind": {str(n): best[n] - blind[n] for n in powers},
        "tokens_mean": float(np.mean([t.mean() for t in tokens])),
        "tokens_of_all_repeats": float(sum(t.sum() for t in tokens)),
        "tokens_sd_within": float(np.mean([t.std(ddof=1) for t in tokens]))
        if repeats > 1
        else None,
        "tokens_by_outcome": {
            name: float(
                np.mean([t.mean() for t, is_in in zip(tokens, which, strict=True) if is_in])
            )
            for name, which in classes.items()
            if which.any()
        },
    }


ALWAYS = {"3sat": "unsatisfiable", "calendar": "No common time slot available"}


def constant_answers(instances: Sequence[Instance]) -> dict[str, float]:
    """Return what always giving the same answer scores, for the answers where that is a score."""
    scores: dict[str, float] = {}
    for family, answer in ALWAYS.items():
        those = [i for i in instances if i.family == family]
        if those:
            scores[answer] = float(np.mean([_constant(i) is not None for i in those]))
    return scores


def _constant(instance: Instance) -> str | None:
    """Return the family's constant answer if it is right: then there is nothing to find."""
    answer = ALWAYS.get(instance.family)
    if answer is None or not family_named(instance.family).is_right(instance.truth, answer):
        return None
    return answer


def gap(reasoning: Mapping[str, float], conventional_best: Mapping[str, float]) -> float:
    """Return the gap between kinds of models on one task.

    reasoning: average pass@1 per model; conventional_best: best of 5 per model. It is the highest
    of the first less the lowest of the second. Raises ConfigError if one is empty.
    """
    if not reasoning or not conventional_best:
        raise ConfigError("a gap needs a reasoning and a conventional model at least")
    return max(reasoning.values()) - min(conventional_best.values())


def gap_band(
    reasoning: Mapping[str, Sequence[Played]], conventional: Mapping[str, Sequence[Played]],
    *, n: int = 5, resamples: int = 1000, seed: int = 0,
) -> tuple[float, float, float]:  # fmt: skip
    """Return the gap from answers to the same instances, with a 95 % interval over instances.

    Raises ConfigError if a kind is missing, or models answered different instances.
    """
    kinds = (*reasoning.values(), *conventional.values())
    keys = {tuple(p.instance.key for p in played) for played in kinds}
    if len(keys) > 1:
        raise ConfigError("a gap compares models on the same instances, in the same order")
    averages = {name: best_of(played, 1) for name, played in reasoning.items()}
    bests = {name: best_of(played, n) for name, played in conventional.items()}

    def of(pick: np.ndarray) -> float:
        return gap(
            {name: float(x[pick].mean()) for name, x in averages.items()},
            {name: float(x[pick].mean()) for name, x in bests.items()},
        )

    m = len(next(iter(keys), ()))
    whole = of(np.arange(m))
    picks = np.random.default_rng(seed).integers(0, m, (resamples, m))
    low, high = np.quantile([of(pick) for pick in picks], (0.025, 0.975))
    return whole, float(low), float(high)


def gap_of_runs(
    reasoning: Mapping[str, Mapping[str, Sequence[Played]]],
    conventional: Mapping[str, Mapping[str, Sequence[Played]]],
    *,
    n: int = 5,
) -> dict[str, dict[str, Any]]:
    """Return the gap on every family that all runs answered, of runs by name and family.

    Raises ConfigError if there is no such family, runs answered different instances of one, or a
    conventional run has fewer than n answers to a task.
    """
    runs = [*reasoning.values(), *conventional.values()]
    families = [name for name in runs[0] if all(name in run for run in runs)] if runs else []
    if not families:
        raise ConfigError("the runs share no family of tasks")
    found: dict[str, dict[str, Any]] = {}
    for family in families:
        thinking = {name: _in_order(run[family]) for name, run in reasoning.items()}
        plain = {name: _in_order(run[family]) for name, run in conventional.items()}
        for name, played in plain.items():
            fewest = min(len(p.answers) for p in played)
            if fewest < n:
                raise ConfigError(
                    f"{name} has {fewest} answers to a task of {family} but the best of {n} is "
                    "asked for; sample more or lower --best-of"
                )
        whole, low, high = gap_band(thinking, plain, n=n)
        found[family] = {
            "gap": whole,
            "interval": [low, high],
            "n_tasks": len(next(iter(plain.values()))),
            "reasoning": {k: float(best_of(p, 1).mean()) for k, p in thinking.items()},
            "conventional": {k: float(best_of(p, n).mean()) for k, p in plain.items()},
        }
    return found


def _in_order(played: Sequence[Played]) -> list[Played]:
    return sorted(played, key=lambda p: p.instance.key)


def _counts(played: Sequence[Played]) -> Counts:
    return Counts(
        np.array([len(p.answers) for p in played]),
        np.array([int(p.correct.sum()) for p in played]),
    )
