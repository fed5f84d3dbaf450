"""Idealized runtime: what a query costs on stated hardware with nothing else running.

"Cheaply Evaluating Inference Efficiency Metrics for Autoregressive Transformer APIs" (2023, arXiv
2305.02440). The time of p prompt tokens and o output tokens, alone on the machine, separates:

    T(p, o) = g(p) + beta * (o - 1) + kappa * sum of (p + i) for i = 1 .. o - 1      seconds

g(p): the prompt and the first token, interpolated between measured lengths. beta: a further token
at depth 0. kappa: reading one more position of the cache, our term; the paper's stack hid it behind
launches, a CPU does not. A few dozen timed cells (p, o) so price any query. On a shared machine or
behind an API the minimum of a cell's repeats stands for the quiet time (`denoise`).

Ours differs from the paper: beta and kappa come from least squares on relative errors with one
intercept per p, so that an error of g(p) does not move them; kappa >= 0 is kept only if a
likelihood ratio test at 1 % wants it (half chi-square on the boundary: 5.41). `fit_helm` is the
paper's fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from capax.errors import CapaxError, ConfigError

Rule = Literal["interpolate", "helm"]
Reduction = Literal["median", "quartile", "mean", "min"]
Floats = npt.NDArray[np.float64]
KAPPA_CRITICAL = 5.41  # P(half chi-square of one degree > 5.41) = 0.01
LEAST_R2 = 0.5  # shuffled labels give about 0, a forgotten cache term still 0.7
STABLE_WITHIN = 0.05
MAX_TOKENS = 10**9  # of a prompt or an answer; more is a mistake in a file


class Sample(NamedTuple):
    """One timed query: prompt tokens, output tokens, seconds; `round` of the profile it is from."""

    p: int
    o: int
    seconds: float
    round: int = 0


class Cell(NamedTuple):
    """All repeats of one (p, o), as one number."""

    p: int
    o: int
    seconds: float


@dataclass(frozen=True)
class RuntimeModel:
    """T(p, o) of one model on one machine; all times in seconds.

    `g`: prompt tokens -> time to the first token, kept as measured even where it falls with p.
    `overhead`: fixed time of a query at a service, its network included.
    """

    g: Mapping[int, float]
    beta: float
    kappa: float = 0.0
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if not self.g or not 1 <= min(self.g) <= max(self.g) <= MAX_TOKENS:
            raise ConfigError(f"g needs prompt lengths, from 1 to {MAX_TOKENS:,} tokens")
        numbers = {"beta": self.beta, "kappa": self.kappa, "overhead": self.overhead}
        for name, value in {**{f"g({p})": s for p, s in self.g.items()}, **numbers}.items():
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name} is {value} s; it must be finite and not negative")
        object.__setattr__(self, "g", dict(sorted(self.g.items())))

    def prompt_seconds(self, p: int, rule: Rule = "interpolate") -> float:
        """Seconds to the first token of p prompt tokens.

        `helm` scales the next longer measured prompt by p: far too little for short prompts,
        and only there to reproduce HELM's numbers.
        """
        if p < 0:
            raise ConfigError(f"p is {p}; a query has 0 prompt tokens or more")
        if rule == "helm":
            key = next((k for k in self.g if k >= p), max(self.g))
            return self.g[key] * p / key
        keys, values = list(self.g), list(self.g.values())
        if p > keys[-1] and len(keys) > 1:
            slope = (values[-1] - values[-2]) / (keys[-1] - keys[-2])
            return values[-1] + max(slope, 0.0) * (p - keys[-1])
        return float(np.interp(p, keys, values))

    def seconds(
        self,
        p: int,
        o: int,
        *,
        cached: int = 0,
        tokens_per_step: float = 1.0,
        rule: Rule = "interpolate",
    ) -> float:
        """Seconds of a query of p prompt and o output tokens; 0 output tokens cost no decode.

        `cached`: prompt tokens a prefix cache has. `tokens_per_step`: what speculative decoding
        gains per step, 1 without. Raises ConfigError for counts that are none.
        """
        if o < 0 or not 0 <= cached <= p or not tokens_per_step >= 1:
            raise ConfigError(
                f"o = {o}, cached = {cached} of {p}, tokens_per_step = {tokens_per_step}: "
                "expected o >= 0, cached from 0 to p, tokens_per_step >= 1"
            )
        decode = self.beta * (o - 1) + self.kappa * _positions_read(p, o) if o else 0.0
        return self.prompt_seconds(p - cached, rule) + decode / tokens_per_step + self.overhead

    def total_seconds(self, queries: Iterable[tuple[int, int]]) -> float:
        """Seconds of a benchmark: its (p, o), one after the other."""
        return math.fsum(self.seconds(p, o) for p, o in queries)

    def cost(self, p: int, o: int, *, price_per_hour: float, n_devices: int = 1) -> float:
        """Price of a query on n devices, in the currency of the price of one device's hour."""
        return self.seconds(p, o) * n_devices * price_per_hour / 3600

    def energy(self, p: int, o: int, *, watts: float, n_devices: int = 1) -> float:
        """Joules of a query on n devices of so many watts."""
        return self.seconds(p, o) * n_devices * watts

    def token_seconds(self, depth: int) -> float:
        """Seconds of one further token after `depth` cached ones."""
        return self.beta + self.kappa * depth

    def to_helm(self) -> dict[str, Any]:
        """Return an entry of HELM's table, in full precision; terms of ours only where not 0."""
        entry: dict[str, Any] = {
            "runtime_per_output_token": self.beta,
            "runtime_for_prompt_tokens": {str(p): s for p, s in self.g.items()},
        }
        if self.overhead:
            entry["overhead"] = self.overhead
        if self.kappa:
            entry["runtime_per_cached_token"] = self.kappa
        return entry

    @classmethod
    def from_helm(cls, entry: Any) -> RuntimeModel:
        """Read an entry of HELM's table. Raises ConfigError for what is none."""
        try:
            return cls(
                {int(p): float(s) for p, s in entry["runtime_for_prompt_tokens"].items()},
                float(entry["runtime_per_output_token"]),
                float(entry.get("runtime_per_cached_token", 0.0)),
                float(entry.get("overhead", 0.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise ConfigError(
                f"this is no runtime profile ({type(e).__name__}: {e}); expected "
                "runtime_per_output_token and runtime_for_prompt_tokens"
            ) from None


def _positions_read(p: int, o: int) -> float:
    """Return the sum of p + i for i = 1 .. o - 1: no decode step, none read."""
    return (o - 1) * p + o * (o - 1) / 2 if o else 0.0


# --- fitting ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A fitted model and how well it describes its own cells."""

    model: RuntimeModel
    r2: float  # of T(p, o) - g(p), over the cells
    errors: Mapping[tuple[int, int], float]  # (p, o) -> |predicted / measured - 1|
    kappa_ratio: float | None  # the likelihood ratio that decided on kappa; None: not tested
    intercept: float = 0.0  # of the paper's fit, which ignores it

    @property
    def median_error(self) -> float:
        return float(np.median(list(self.errors.values())))

    @property
    def max_error(self) -> float:
        return max(self.errors.values())


def cells(samples: Iterable[Sample], by: Reduction = "quartile") -> list[Cell]:
    """Reduce the repeats of each (p, o). Raises ConfigError for a time or count that is none.

    Disturbances only add time, so the lower quartile of seven repeats stays undisturbed where the
    median already does not: of draws in which 30 % of the queries take half as long again, it is
    unbiased, and on a quiet machine with 1 % of noise 0.6 % below the median.
    """
    repeats: dict[tuple[int, int], list[float]] = {}
    for s in samples:
        is_time = math.isfinite(s.seconds) and s.seconds > 0
        if not (1 <= min(s.p, s.o) <= max(s.p, s.o) <= MAX_TOKENS and is_time):
            raise ConfigError(
                f"{s!s:.100} is no timed query: 1 to {MAX_TOKENS:,} tokens and a positive time "
                "are needed"
            )
        repeats.setdefault((s.p, s.o), []).append(s.seconds)
    quantities: dict[str, Callable[[list[float]], Any]]
    quantities = {"median": np.median, "quartile": _quartile, "mean": np.mean, "min": min}
    reduce = quantities[by]
    return [Cell(p, o, float(reduce(times))) for (p, o), times in sorted(repeats.items())]


def _quartile(times: list[float]) -> float:
    return float(np.quantile(times, 0.25))


def fit(measured: Sequence[Cell], kappa: bool | Literal["test"] = "test") -> Fit:
    """Fit T(p, o); g(p) is the cell with o = 1.

    `kappa`: with the cache term, without it, or as the likelihood ratio decides. Raises
    ConfigError for cells that cannot be fitted, CapaxError if the output tokens do not explain
    the times (R2 below 0.5, or a negative beta): then the samples or their labels are wrong.
    """
    g = _first_tokens(measured)
    slopes, ratio = _slopes(measured, kappa)
    return _checked(_judge(_positive(g, *slopes), measured, ratio))


def fit_helm(measured: Sequence[Cell], *, round_ms: bool = False) -> Fit:
    """Fit as the paper's script does: least squares with an intercept over all cells.

    `round_ms` rounds g before the regression and beta after it to 1 ms, as the published tables.
    """
    g = _first_tokens(measured)
    if round_ms:
        g = {p: round(s, 3) for p, s in g.items()}
    o = np.array([c.o - 1.0 for c in measured])
    y = np.array([c.seconds - g[c.p] for c in measured])
    if np.ptp(o) == 0:
        raise ConfigError("every cell has the same o; beta needs several output lengths")
    beta, intercept = np.polyfit(o, y, 1)
    model = _positive(g, round(beta, 3) if round_ms else float(beta), 0.0)
    return _checked(_judge(model, measured, None, float(intercept)))


def denoise(samples: Iterable[Sample], *, remove_overhead: bool = True) -> Fit:
    """Fit the quiet times under interruptions that only add time, by the minimum of each cell.

    The minimum of R repeats still carries about 1 / R of the mean contention, and it is a lower
    bound, not a typical latency. `remove_overhead` takes g(1) - beta for the fixed time of the
    service, as the paper does for APIs, and keeps it apart. Raises as `fit`.
    """
    measured = cells(samples, "min")
    (beta, kappa), ratio = _slopes(measured, "test" if not remove_overhead else False)
    lengths = sorted({c.p for c in measured})
    g = {p: _intercept([c for c in measured if c.p == p], beta, kappa) for p in lengths}
    if not remove_overhead:
        return _checked(_judge(_positive(g, beta, kappa), measured, ratio))
    if 1 not in g:
        raise ConfigError("the overhead is g(1) - beta: time p = 1, or keep the overhead in g")
    g = {p: max(s, g[1]) for p, s in g.items()}
    overhead = max(g[1] - beta, 0.0)
    model = _positive({p: s - overhead for p, s in g.items()}, beta, kappa)
    return _checked(_judge(replace(model, overhead=overhead), measured, ratio))


def token_gap_beta(gaps_s: Sequence[float], depths: Sequence[int], kappa: float = 0.0) -> float:
    """Return beta from the gaps between streamed tokens under a load that never pauses.

    The 5 % quantile of gaps whose cache term is taken away: a gap is short enough to fall between
    two interruptions where a whole query is not. g(p) cannot be had that way.
    """
    if not gaps_s or len(gaps_s) != len(depths):
        raise ConfigError(f"{len(gaps_s)} gaps and {len(depths)} depths; give one depth per gap")
    return float(np.quantile(np.array(gaps_s) - kappa * np.array(depths), 0.05))


def check_stable(samples: Sequence[Sample], within: float = STABLE_WITHIN) -> float:
    """Return by how much the rounds of a profile differ in the time per token.

    What is compared is the machine's own speed, from the lower quartile of each cell's repeats: a
    stranger's moments are not its instability, a clock or a neighbour that stays is.
    Raises CapaxError "unstable machine" above `within`, ConfigError for a single round.
    """
    rounds = sorted({s.round for s in samples})
    if len(rounds) < 2:
        raise ConfigError("the samples have one round; a stable machine shows in two or more")
    depth = int(np.median([s.p for s in samples]))
    times = [
        fit(cells([s for s in samples if s.round == r]), kappa=True).model.token_seconds(depth)
        for r in rounds
    ]
    spread = max(times) / min(times) - 1
    if spread > within:
        raise CapaxError(
            f"unstable machine: rounds of the profile take {min(times) * 1e3:.3f} to "
            f"{max(times) * 1e3:.3f} ms per token, {spread:.0%} apart where {within:.0%} is "
            "allowed; nothing is published, profile again when nothing else runs"
        )
    return spread


def held_out_errors(
    measured: Sequence[Cell], kappa: bool | Literal["test"] = "test"
) -> tuple[Floats, Floats]:
    """Return relative errors of cells the model was not fitted on: the model's, and a baseline's.

    Each prompt length between the shortest and the longest is left out in turn, and the largest
    o everywhere. The baseline is two constants, prefill and decode tokens per second, from the
    same fitting cells. `kappa` as in `fit`. Raises ConfigError for fewer than four lengths or
    three o.
    """
    lengths = sorted({c.p for c in measured})
    longest = max(c.o for c in measured)
    if len(lengths) < 4 or len({c.o for c in measured}) < 3:
        raise ConfigError("held-out errors need four prompt lengths and three output lengths")
    ours: list[float] = []
    baseline: list[float] = []
    for p in lengths[1:-1]:
        known = [c for c in measured if c.p != p and c.o != longest]
        model = fit(known, kappa).model
        prefill, decode = _two_rates(known)
        for cell in (c for c in measured if c.p == p):
            ours.append(abs(model.seconds(p, cell.o) / cell.seconds - 1))
            baseline.append(abs((p / prefill + cell.o / decode) / cell.seconds - 1))
    return np.array(ours), np.array(baseline)


def break_even(profiling_s: float, model: RuntimeModel, p: int, o: int, repeats: int = 10) -> float:
    """Queries of (p, o) whose repeated measurement takes as long as the profile did."""
    return profiling_s / (repeats * model.seconds(p, o))


def _two_rates(measured: Sequence[Cell]) -> tuple[float, float]:
    """Tokens per second of prefill and decode, as a pp512 and a tg run would show them."""
    first = _first_tokens(measured)
    p = min(first, key=lambda length: abs(length - 512))
    shortest = min(first)
    o, seconds = max((c.o, c.seconds) for c in measured if c.p == shortest)
    return p / first[p], (o - 1) / (seconds - first[shortest])


def _first_tokens(measured: Sequence[Cell]) -> dict[int, float]:
    first = {c.p: c.seconds for c in measured if c.o == 1}
    missing = sorted({c.p for c in measured} - set(first))
    if missing or not first:
        raise ConfigError(f"no cell with o = 1 for the prompt lengths {missing}; g(p) is its time")
    return first


def _slopes(
    measured: Sequence[Cell], kappa: bool | Literal["test"]
) -> tuple[tuple[float, float], float | None]:
    """Return (beta, kappa) and the likelihood ratio of kappa.

    Weighted least squares of T on o - 1 and on the positions read, weights 1 / T^2; the intercept
    of each p is eliminated by taking its weighted means away.
    """
    seconds = np.array([c.seconds for c in measured])
    columns = np.array([[c.o - 1.0, _positions_read(c.p, c.o)] for c in measured])
    lengths, group = np.unique([c.p for c in measured], return_inverse=True)
    weight = seconds**-2
    mass = np.bincount(group, weight)
    root = np.sqrt(weight)

    def within(values: Floats) -> Floats:
        centred: Floats = (values - (np.bincount(group, weight * values) / mass)[group]) * root
        return centred

    y = within(seconds)
    x = np.stack([within(column) for column in columns.T], 1)
    free = len(measured) - len(lengths) - 1
    if free < 1 or not np.any(x[:, 0]):
        raise ConfigError("too few cells: beta needs several output lengths per prompt length")
    plain = float(x[:, 0] @ y / (x[:, 0] @ x[:, 0]))
    if kappa is False or free < 2:
        return (plain, 0.0), None
    both, _, rank, _ = np.linalg.lstsq(x / np.linalg.norm(x, axis=0), y)
    both = both / np.linalg.norm(x, axis=0)
    if rank < 2:
        return (plain, 0.0), None
    left = [float(np.sum((y - x @ b) ** 2)) for b in (np.array([plain, 0.0]), both)]
    if both[1] <= 0:
        return (plain, 0.0), 0.0
    ratio = (free - 1) * math.log(left[0] / left[1]) if left[1] > 0 else math.inf
    if kappa == "test" and ratio < KAPPA_CRITICAL:
        return (plain, 0.0), ratio
    return (float(both[0]), float(both[1])), ratio


def _intercept(row: Sequence[Cell], beta: float, kappa: float) -> float:
    """Return g(p) from all cells of one p."""
    weight = np.array([c.seconds**-2 for c in row])
    rest = [c.seconds - beta * (c.o - 1) - kappa * _positions_read(c.p, c.o) for c in row]
    return float(weight @ np.array(rest) / weight.sum())


def _positive(g: dict[int, float], beta: float, kappa: float) -> RuntimeModel:
    if beta <= 0 or min(g.values()) < 0:
        raise CapaxError(
            f"beta is {beta:.3g} s per token and the least g {min(g.values()):.3g} s: more output "
            "does not take longer here, so these samples or their labels are wrong"
        )
    return RuntimeModel(g, beta, kappa)


def _judge(
    model: RuntimeModel, measured: Sequence[Cell], ratio: float | None, intercept: float = 0.0
) -> Fit:
    seconds = np.array([c.seconds for c in measured])
    predicted = np.array([model.seconds(c.p, c.o) for c in measured])
    first = np.array([model.seconds(c.p, 1) for c in measured])
    y = seconds - first
    # The intercept belongs to what was fitted, not to what is predicted.
    r2 = 1 - float(np.sum((seconds - predicted - intercept) ** 2) / np.sum((y - y.mean()) ** 2))
    errors = np.abs(predicted / seconds - 1).tolist()
    return Fit(
        model,
        r2,
        {(c.p, c.o): e for c, e in zip(measured, errors, strict=True)},
        ratio,
        intercept,
    )


def _checked(result: Fit) -> Fit:
    if not result.r2 >= LEAST_R2:
        raise CapaxError(
            f"R2 is {result.r2:.3f} where {LEAST_R2} is needed: the number of output tokens does "
            "not explain the times, so these samples or their labels are wrong"
        )
    return result
