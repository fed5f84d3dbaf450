"""From a pilot to a number of units: how many samples or rounds to buy, and how sure that is.

Reads outcomes of a pilot, fits a curve of `saturation`, and returns what to buy as a `Plan` with
its interval over problems and warnings in words. `compare` chooses between samples and rounds
at a budget of tokens, by their curves; `Budgeter` decides for one request while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from capax.errors import ConfigError
from capax.scaling.coverage import Counts
from capax.scaling.rethinking import Chains, constancy, fit_two_state, hazards
from capax.scaling.run_costs import UnitCost
from capax.scaling.saturation import (
    MAX_UNITS,
    Curve,
    Model,
    Rule,
    first_at_most,
    fit,
    fit_ceiling,
    jeffreys,
    n_star,
    n_tail,
    refuse_votes,
)

Mode = Literal["parallel", "sequential"]
RESAMPLES = 1000
WIDE = 4.0  # ratio of the ends of an interval beyond which the pilot is too small


@dataclass(frozen=True, slots=True)
class Plan:
    """What to buy. Curves and accuracy are of the named selector; tokens are expected per problem.

    `expected_seconds`: per problem too, at the pace of the pilot; of rounds, one after another.
    `n_star`: 0 if not even the first unit pays its price; then one unit is the plan all the same.
    """

    mode: Mode
    model: Model
    selector: str
    rule: Rule
    p: float | None
    beta: tuple[float, float] | None
    f_max: float
    eps: float
    n_star: int
    n_star_interval: tuple[int, int]
    n_star_per_problem: dict[str, float]
    expected_accuracy: float
    expected_tokens: float | None
    warnings: list[str]
    fitted_ceiling: dict[str, float] | None = None
    rounds: dict[str, Any] | None = None
    expected_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def threshold_of(eps: float | None, price: float | None, unit_tokens: float | None) -> float:
    """Return eps, or what a unit costs at `price` accuracy per token.

    Raises ConfigError unless exactly one of them is given, a price with the tokens of a unit.
    """
    if (eps is None) == (price is None):
        raise ConfigError("give either eps (accuracy per unit) or a price (accuracy per token)")
    if eps is not None:
        return eps
    if unit_tokens is None or not unit_tokens > 0:
        raise ConfigError("a price per token needs the tokens of a unit, a number above 0")
    assert price is not None
    return price * unit_tokens


def plan(
    pilot: Counts | Chains,
    eps: float,
    *,
    model: Model = "mixture",
    rule: Rule = "gain",
    f_max: float = 1.0,
    selector: str = "oracle",
    unit_tokens: float | None = None,
    cost: UnitCost | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Plan:
    """Return how many units the pilot says are worth buying at a gain of `eps` each.

    Chains are fitted as their hazards say: each round at risk is one draw of its problem's coin.
    The interval is the 5 to 95 % range over resampled problems. `cost`: what units of the pilot
    took, for seconds. Raises ConfigError for a pilot
    without any success, and for a selector that votes.
    """
    refuse_votes(selector)
    counts = rounds_at_risk(pilot) if isinstance(pilot, Chains) else pilot
    if not counts.correct.any():
        raise ConfigError("no answer of the pilot is right, so nothing can be planned; sample more")
    curve = fit(counts, model, f_max)
    found = curve.saturation(eps, rule)
    interval = _interval(counts, curve, eps, rule, resamples, seed)
    of_one = n_star if rule == "gain" else n_tail
    own = np.array([of_one(float(p), eps) for p in jeffreys(counts)])
    quantiles = np.quantile(own, (0.1, 0.5, 0.9)).tolist()
    units = max(found, 1)
    warnings = _warnings(pilot, counts, found, interval, selector)
    ceiling = None
    if isinstance(pilot, Counts) and counts.n_min >= 4:
        fitted = fit_ceiling(counts)
        ceiling = {"f_max": fitted.f_max, "p": fitted.p, "f_max_half": fitted.f_max_half}
        if fitted.moves:
            warnings.append(
                f"a fitted ceiling is {fitted.f_max:.3f} on {fitted.window} samples and "
                f"{fitted.f_max_half:.3f} on half of them: it belongs to the window, not the model"
            )
    return Plan(
        "sequential" if isinstance(pilot, Chains) else "parallel",
        model,
        selector,
        rule,
        float(curve.p[0]) if model == "single" else None,
        None if curve.beta is None else (curve.beta.alpha, curve.beta.beta),
        f_max,
        eps,
        found,
        interval,
        dict(zip(("p10", "median", "p90"), quantiles, strict=True)),
        float(curve.at([units])[0]),
        None if unit_tokens is None else unit_tokens * units,
        warnings,
        ceiling,
        _rounds_of(pilot, eps, cost) if isinstance(pilot, Chains) else None,
        None if cost is None else _seconds(pilot, cost, units),
    )


def _seconds(pilot: Counts | Chains, cost: UnitCost, units: int) -> float | None:
    if isinstance(pilot, Chains):
        return cost.chain_seconds(units)
    return None if cost.seconds is None else cost.seconds * units


def rounds_at_risk(chains: Chains) -> Counts:
    """Return per problem the rounds at risk and the first successes among them."""
    n, correct = [], []
    for name in np.unique(chains.problems):
        own = hazards(chains.take(chains.problems == name))
        n.append(int(own.at_risk.sum()))
        correct.append(int(own.successes.sum()))
    return Counts(np.array(n), np.array(correct))


def _interval(
    counts: Counts, curve: Curve, eps: float, rule: Rule, resamples: int, seed: int
) -> tuple[int, int]:
    rng = np.random.default_rng(seed)
    found = np.zeros(resamples)
    for i in range(resamples):
        again = counts.take(rng.integers(0, counts.n_problems, counts.n_problems))
        if again.correct.any():
            found[i] = fit(again, curve.model, curve.f_max).saturation(eps, rule)
    low, high = np.quantile(found, (0.05, 0.95))
    return int(low), math.ceil(high)


def _warnings(
    pilot: Counts | Chains, counts: Counts, found: int, interval: tuple[int, int], selector: str
) -> list[str]:
    warnings = []
    window = pilot.n_rounds if isinstance(pilot, Chains) else counts.n_min
    if found > window:
        warnings.append(
            f"N* = {found:,} lies beyond the {window:,} units of the pilot: it is extrapolated"
        )
    if found >= MAX_UNITS:
        warnings.append(f"no saturation within {MAX_UNITS:,} units")
    low, high = max(interval[0], 1), max(interval[1], 1)
    if high / low > WIDE:
        # the variance of ln N* falls as one over the problems
        factor = math.ceil((math.log(high / low) / math.log(WIDE)) ** 2)
        warnings.append(
            f"N* is somewhere from {interval[0]:,} to {interval[1]:,}: the pilot is too small; "
            f"ask {factor * counts.n_problems:,} problems"
        )
    if selector != "oracle":
        warnings.append(f"the selector is {selector!r}: wrong answers that it accepts lower this")
    if isinstance(pilot, Chains) and constancy(hazards(pilot)).fails:
        warnings.append("rounds differ in their chance of success; read the hazard of each round")
    return warnings


def _rounds_of(chains: Chains, eps: float, cost: UnitCost | None) -> dict[str, Any]:
    """Return hazards, their test, and both readings: ever right and last answer right."""
    found, states = hazards(chains), fit_two_state(chains)
    test = constancy(found)
    later = int(found.at_risk[1:].sum())
    return {
        "hazard": [None if math.isnan(x) else x for x in found.rate.tolist()],
        "p_first": float(found.rate[0]),
        "p_later": found.pooled(2) if later else None,
        "constancy": {**test._asdict(), "fails": test.fails},
        "two_state": states._asdict(),
        "ever_right": chains.ever_right().tolist(),
        "last_right": chains.last_right().tolist(),
        "cost": [asdict(round_cost) for round_cost in cost.rounds] if cost else None,
        "last_saturation": states.last_saturation(eps) if states.q01 + states.q10 < 2 else None,
    }


# --- width or depth -----------------------------------------------------------------------


class Chosen(NamedTuple):
    """What each mode reaches with a budget of tokens, and the better one."""

    tokens: float
    parallel: float
    sequential: float
    mode: Mode


def compare(
    parallel: Curve, sequential: Curve, costs: tuple[float, float], budgets: Sequence[float]
) -> list[Chosen]:
    """Choose samples or rounds at each budget of tokens; `costs`: tokens of a sample, of a round.

    By the curves, not by one hazard over cost: that ranks only curves of one shape.
    """
    if not all(cost > 0 for cost in costs):
        raise ConfigError(f"the tokens of a unit are {costs} but must be above 0")
    chosen: list[Chosen] = []
    for tokens in budgets:
        wide, deep = (
            float(curve.at([min(int(tokens // cost), MAX_UNITS)])[0]) if tokens >= cost else 0.0
            for curve, cost in zip((parallel, sequential), costs, strict=True)
        )
        chosen.append(Chosen(tokens, wide, deep, "parallel" if wide >= deep else "sequential"))
    return chosen


def kappa(p: float, unit_tokens: float) -> float:
    """Return the hazard of success per token, -ln(1 - p) / tokens."""
    return -math.log1p(-p) / unit_tokens if p < 1 else math.inf


class Budgeter:
    """Decides for one request: after each checked answer, whether another one pays.

    Its chance of success starts as Beta(alpha, beta), for example of a mixture's fit.
    """

    def __init__(self, prior: tuple[float, float], eps: float, max_units: int = 1024) -> None:
        if not (prior[0] > 0 and prior[1] > 0):
            raise ConfigError(f"the prior is {prior} but both numbers must be above 0")
        if not 0 < eps <= 1 or max_units < 1:
            raise ConfigError(f"eps is {eps} and max_units {max_units}; 0 < eps <= 1 <= max_units")
        self._curve_of_prior = prior
        self._eps, self._max_units = eps, max_units
        self.n_wrong = 0
        self.is_solved = False

    def update(self, is_right: bool) -> None:
        """Count an answer that was checked."""
        self.is_solved |= is_right
        self.n_wrong += not is_right

    @property
    def more(self) -> int:
        """How many further answers pay if all before them are wrong; 0: stop."""
        if self.is_solved:
            return 0
        alpha, beta = self._curve_of_prior
        left = max(self._max_units - self.n_wrong, 0)
        # after k more failures the next answer is right with chance alpha / (alpha + beta + k)
        return min(
            first_at_most(
                lambda k: alpha / (alpha + beta + self.n_wrong + k), self._eps, max(left, 1)
            ),
            left,
        )


# --- files --------------------------------------------------------------------------------


class _Line(msgspec.Struct):
    id: str | int
    outcomes: list[bool]


def read_outcomes(path: Path, mode: Mode = "parallel") -> Counts | Chains:
    """Read a JSONL file with lines {"id": ..., "outcomes": [true, false, ...]}.

    Parallel: samples of a problem, whose lines add up; sequential: the rounds of one chain per
    line. Raises ConfigError naming the line that is not as expected.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    rows: list[_Line] = []
    for number, line in enumerate(lines, 1):
        try:
            row = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} line {number} holds no outcomes: {e}") from None
        if not row.outcomes:
            raise ConfigError(f"{path} line {number} has no outcome; leave it out")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} has no line; give {{'id', 'outcomes'}} per problem or chain")
    names = [str(row.id) for row in rows]
    if mode == "sequential":
        if len({len(row.outcomes) for row in rows}) != 1:
            raise ConfigError(f"{path}: chains differ in their rounds; give the same for all")
        _, where = np.unique(names, return_inverse=True)
        return Chains(np.array([row.outcomes for row in rows]), where)
    n: dict[str, list[int]] = {}
    for name, row in zip(names, rows, strict=True):
        sums = n.setdefault(name, [0, 0])
        sums[0] += len(row.outcomes)
        sums[1] += sum(row.outcomes)
    both = np.array(list(n.values()))
    return Counts(both[:, 0], both[:, 1])
