"""Densing law: the quality of a model per parameter, and how fast the best of them rises.

"Densing Law of LLMs" (2024, arXiv 2412.04315; Nature Machine Intelligence 2025). A model's
*effective parameters* are what a fixed reference family, trained on D0 tokens, would need for the
same score; its *density* is effective / actual parameters. The ruler has two steps:

    loss(N, D) = a * N^-alpha + b * D^-beta          nats per answer token, from small models
    score      = c / (1 + exp(-gamma (loss - l))) + d     gamma < 0, from larger checkpoints

and is read backwards. Where it cannot be (score at chance, saturated, loss below what an infinite
reference reaches on D0 tokens) there is a status and no number. The law is the growth of the best
density so far, ln rho = A * t + B: a running maximum can only rise, so A comes with a permutation
test and with the slope of all models.

Ours: Huber loss (1e-3) on log losses, from a grid of starts; the running maximum is evaluated at
every release date; intervals by resampling models, and the ruler's residuals. N of the ladder are
non-embedding parameters, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from capax.errors import ConfigError
from capax.measuring.least_squares import minimise

Floats = npt.NDArray[np.float64]
Four = tuple[float, float, float, float]
Status = Literal["ok", "ill-conditioned", "at or below chance", "saturated", "beyond the ruler"]
HUBER = 1e-3
WELL_CONDITIONED = (0.15, 0.85)  # (score - d) / c: outside, a point of score moves rho too far
INVERTIBLE = (1e-6, 1 - 1e-6)  # outside, float64 has no inverse worth having
FIGURES = ("a", "alpha", "b", "beta", "c", "gamma", "l", "d", "d0")


# --- the ruler ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ruler:
    """A reference family: its loss law, its sigmoid, and the tokens D0 it is read at."""

    a: float
    alpha: float
    b: float
    beta: float
    c: float
    gamma: float
    l: float  # noqa: E741  # the paper's letter
    d: float
    d0: float

    def __post_init__(self) -> None:
        for name in FIGURES:
            value = getattr(self, name)
            if not math.isfinite(value) or (name not in ("gamma", "l", "d") and value <= 0):
                raise ConfigError(f"the ruler's {name} is {value}; it must be finite and positive")
        if self.gamma >= 0 or self.d < 0:
            raise ConfigError(
                f"the ruler has gamma {self.gamma} and d {self.d}; scores fall with loss, so "
                "gamma is negative, and d, the score of chance, is 0 or more"
            )

    @classmethod
    def fit(
        cls, ladder: npt.ArrayLike, scores: npt.ArrayLike, d0: float, chance: float = 0.0
    ) -> Ruler:
        """Fit a ladder [n, 3] of (N, D, loss) and scores [n, 2] of (loss, score from 0 to 1).

        Raises ConfigError for too few points or values that are none.
        """
        n_params, n_tokens, losses = _columns(ladder, 3, "ladder")
        law = fit_loss(n_params, n_tokens, losses)
        marks, values = _columns(scores, 2, "scores")
        return cls(*law, *fit_score(marks, values, chance), d0)

    @classmethod
    def from_json(cls, document: Any) -> Ruler:
        """Read what `to_json` gave. Raises ConfigError for what is none."""
        try:
            return cls(**{name: float(document[name]) for name in FIGURES})
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(
                f"this is no ruler ({type(e).__name__}: {e}); expected {', '.join(FIGURES)}"
            ) from None

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def loss(self, n_params: float, n_tokens: float | None = None) -> float:
        """Nats per answer token of a reference model; on D0 tokens if none are given."""
        tokens = self.d0 if n_tokens is None else n_tokens
        return float(self.a * n_params**-self.alpha + self.b * tokens**-self.beta)

    def score_of_loss(self, loss: float) -> float:
        """Score of a reference checkpoint."""
        return self.c * _logistic(self.gamma * (loss - self.l)) + self.d

    def score(self, n_params: float, n_tokens: float | None = None) -> float:
        """Score of a reference model."""
        return self.score_of_loss(self.loss(n_params, n_tokens))

    def share(self, score: float) -> float:
        """Return how far up the sigmoid a score is, (score - d) / c."""
        return (score - self.d) / self.c

    def loss_of_score(self, score: float) -> float:
        """Invert the sigmoid. The score must lie inside it."""
        return self.l - math.log(self.c / (score - self.d) - 1) / self.gamma

    def effective_params(
        self, score: float | None = None, *, loss: float | None = None
    ) -> tuple[float | None, Status]:
        """Parameters a reference model on D0 tokens needs for this score, or for this loss.

        None, and a status that says why, where the ruler cannot tell.
        """
        status: Status = "ok"
        if loss is None:
            if score is None:
                raise ConfigError("effective parameters need a score or a loss")
            share = self.share(score)
            if not share >= INVERTIBLE[0]:
                return None, "at or below chance"
            if share > INVERTIBLE[1]:
                return None, "saturated"
            if not WELL_CONDITIONED[0] <= share <= WELL_CONDITIONED[1]:
                status = "ill-conditioned"
            loss = self.loss_of_score(score)
        left = (loss - self.b * self.d0**-self.beta) / self.a
        if not left > 0:
            return None, "beyond the ruler"
        return float(left ** (-1 / self.alpha)), status

    def error_per_point(self, score: float, n_params: float) -> float:
        """By how much ln(rho) moves when the score moves by one percentage point."""
        share = self.share(score)
        per_loss = float(1 / (self.alpha * self.a * n_params**-self.alpha))
        return abs(0.01 * per_loss / (self.gamma * self.c * share * (1 - share)))

    def density_of_reference(self, n_params: float, n_tokens: float) -> float | None:
        """Density of a reference model on other than D0 tokens: 1 on D0 tokens only."""
        effective, _ = self.effective_params(loss=self.loss(n_params, n_tokens))
        return None if effective is None else effective / n_params


def fit_loss(n_params: Floats, n_tokens: Floats, losses: Floats, near: Ruler | None = None) -> Four:
    """Return (a, alpha, b, beta) of loss(N, D) = a N^-alpha + b D^-beta.

    `near`: start from this ruler instead of a grid. Raises ConfigError for fewer than five points,
    one size or one token count only, or values that are not positive.
    """
    if len(losses) < 5 or np.ptp(n_params) == 0 or np.ptp(n_tokens) == 0:
        raise ConfigError(
            f"{len(losses)} points of the ladder cannot fix four parameters; give five or more, of "
            "several sizes and token counts"
        )
    for name, values in (("params", n_params), ("tokens", n_tokens), ("loss", losses)):
        if not np.all(values > 0):
            raise ConfigError(f"a {name} of the ladder is {values.min()}; all must be positive")
    # Centred logarithms: the two factors and their exponents are nearly independent then.
    n, d, y = np.log(n_params), np.log(n_tokens), np.log(losses)
    n0, d0 = float(n.mean()), float(d.mean())

    def residuals(x: Floats) -> tuple[Floats, Floats]:
        first = x[:, :1] - x[:, 1:2] * (n - n0)
        second = x[:, 2:3] - x[:, 3:4] * (d - d0)
        log_loss = np.logaddexp(first, second)
        share = np.exp(first - log_loss)
        rest = 1 - share
        columns = [share, -share * (n - n0), rest, -rest * (d - d0)]
        return log_loss - y, np.stack(columns, axis=2)

    middle = float(np.median(y))
    starts = [
        (middle + math.log(share), alpha, middle + math.log(1 - share), beta)
        for share in (0.2, 0.5, 0.8)
        for alpha in (0.1, 0.3, 0.7)
        for beta in (0.1, 0.3, 0.7)
    ]
    if near is not None:
        at_centre = math.log(near.a) - near.alpha * n0, math.log(near.b) - near.beta * d0
        starts = [(at_centre[0], near.alpha, at_centre[1], near.beta)]
    x, _ = minimise(residuals, np.array(starts), delta=HUBER)
    if not 0 < min(x[1], x[3]) <= max(x[1], x[3]) < 10:
        raise ConfigError(
            f"the ladder's exponents are {x[1]:.3g} for parameters and {x[3]:.3g} for tokens; "
            "loss must fall with both, and slowly, so this ladder is no ruler"
        )
    first, alpha, second, beta = (float(value) for value in x)
    return math.exp(first + alpha * n0), alpha, math.exp(second + beta * d0), beta


def fit_score(
    losses: Floats, scores: Floats, chance: float = 0.0, near: Ruler | None = None
) -> Four:
    """Return (c, gamma, l, d) of the sigmoid from loss to score.

    d starts at `chance` and c at 1 - chance; 0 <= d and c + d <= 1. `near` as in `fit_loss`.
    Raises ConfigError for fewer than four points, one loss only, or scores outside [0, 1].
    """
    if len(scores) < 4 or np.ptp(losses) == 0:
        raise ConfigError(f"{len(scores)} scores cannot fix a sigmoid; give four or more losses")
    if scores.min() < 0 or scores.max() > 1 or not 0 <= chance < 1:
        raise ConfigError("scores and chance are fractions: from 0 to 1")

    def residuals(x: Floats) -> tuple[Floats, Floats]:
        gamma, middle, c, d = (x[:, i : i + 1] for i in range(4))
        share = _sigmoid(gamma * (losses - middle))
        slope = c * share * (1 - share)
        ones = np.ones_like(share)
        columns = [slope * (losses - middle), -slope * gamma, share, ones]
        return c * share + d - scores, np.stack(columns, axis=2)

    def project(x: Floats) -> Floats:
        x = x.copy()
        x[:, 0] = np.minimum(x[:, 0], -1e-6)
        x[:, 3] = x[:, 3].clip(0.0, 1 - 1e-6)
        x[:, 2] = x[:, 2].clip(1e-6, 1 - x[:, 3])
        return x

    starts: list[Four] = [
        (-steepness / float(np.ptp(losses)), float(middle), 1 - chance, chance)
        for steepness in (1.0, 3.0, 10.0, 30.0)
        for middle in np.quantile(losses, (0.0, 0.25, 0.5, 0.75, 1.0))
    ]
    if near is not None:
        starts = [(near.gamma, near.l, near.c, near.d)]
    x, _ = minimise(residuals, np.array(starts), project=project)
    return float(x[2]), float(x[0]), float(x[1]), float(x[3])


def resampled_rulers(
    ruler: Ruler, ladder: npt.ArrayLike, scores: npt.ArrayLike, n_draws: int = 100, seed: int = 0
) -> list[Ruler]:
    """Refit the ruler on its own points with their residuals drawn again.

    The points of a size share most of their error, so a residual of the ladder is drawn in two
    parts: the mean of some size for a whole size, and what is left for each point. What cannot be
    fitted in a draw is left out of the list.
    """
    rng = np.random.default_rng(seed)
    n, d, losses = _columns(ladder, 3, "ladder")
    x, y = _columns(scores, 2, "scores")
    fitted = ruler.a * n**-ruler.alpha + ruler.b * d**-ruler.beta
    curve = ruler.c * _sigmoid(ruler.gamma * (x - ruler.l)) + ruler.d
    residuals = np.log(losses / fitted)
    sizes, of_size = np.unique(n, return_inverse=True)
    shared = np.bincount(of_size, residuals) / np.bincount(of_size)
    left = residuals - shared[of_size]
    rulers = []
    for _ in range(n_draws):
        error = rng.choice(shared, len(sizes))[of_size] + rng.choice(left, len(left))
        drawn = fitted * np.exp(error)
        drawn_scores = (curve + rng.choice(y - curve, len(y))).clip(0, 1)
        try:
            law = fit_loss(n, d, drawn, ruler)
            rulers.append(Ruler(*law, *fit_score(x, drawn_scores, ruler.d, ruler), ruler.d0))
        except ConfigError:
            continue
    return rulers


def reference_params(
    n_layers: int, d_model: int, d_ffn: int, n_heads: int, n_kv_heads: int, head_dim: int = 64
) -> int:
    """Non-embedding parameters of a reference model: gated, grouped-query, RMSNorm weights too."""
    attention = 2 * d_model * head_dim * (n_heads + n_kv_heads)
    return n_layers * (attention + 3 * d_model * d_ffn + 2 * d_model) + d_model


# --- density ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Density:
    """Where a model stands on a ruler; None where `status` says that the ruler cannot tell.

    `rho_mem`: effective parameters x 16 / the bits of all weights. `rho_flop`: effective / active
    parameters. `interval`: 90 %, over the resampled rulers; its upper end is infinite where many of
    them cannot tell. `error_per_point`: by how much ln(rho) moves per percentage point of score.
    """

    status: Status
    effective_params: float | None = None
    rho: float | None = None
    rho_mem: float | None = None
    rho_flop: float | None = None
    error_per_point: float | None = None
    interval: tuple[float, float] | None = None
    draws: tuple[float, ...] = ()  # rho on each resampled ruler


def density(
    ruler: Ruler,
    n_params: float,
    score: float | None = None,
    *,
    loss: float | None = None,
    weight_bits: float | None = None,
    active_params: float | None = None,
    rulers: Sequence[Ruler] = (),
) -> Density:
    """Place a model of `n_params` on a ruler, by its score or by its answer loss.

    The loss skips the sigmoid: less noisy, and the better instrument for small effects. Zeros of
    a pruned model count as parameters unless they are not stored.
    """
    for name, value in (
        ("n_params", n_params), ("weight_bits", weight_bits), ("active_params", active_params),
    ):  # fmt: skip
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}; it must be positive")
    effective, status = ruler.effective_params(score, loss=loss)
    if effective is None:
        return Density(status)
    draws = [drawn_params(r.effective_params(score, loss=loss)) / n_params for r in rulers]
    amplified = None
    if loss is None and score is not None:
        amplified = ruler.error_per_point(score, effective)
    return Density(
        status=status,
        effective_params=effective,
        rho=effective / n_params,
        rho_mem=effective * 16 / weight_bits if weight_bits else None,
        rho_flop=effective / active_params if active_params else None,
        error_per_point=amplified,
        interval=middle_of(draws, 0.9),
        draws=tuple(draws),
    )


def drawn_params(found: tuple[float | None, Status]) -> float:
    """Return the effective parameters of a draw: infinite above what its ruler can tell, 0 below.

    Leaving such draws out would pull the end of an interval towards the middle.
    """
    effective, status = found
    if effective is not None:
        return effective
    return 0.0 if status == "at or below chance" else math.inf


def middle_of(values: Sequence[float], share: float) -> tuple[float, float] | None:
    """Return the bounds of the middle `share`, which may be infinite; None of fewer than 20."""
    if len(values) < 20:
        return None
    ends = ((1 - share) / 2, (1 + share) / 2)
    low, high = np.quantile(values, ends, method="inverted_cdf")
    return float(low), float(high)


# --- the law ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trend:
    """ln(best density so far) = A * days + B.

    `growth_interval`: 95 %, models resampled. `p_value`: how often dates that mean nothing give
    as much growth. `growth_of_all`, `intercept_of_all`: the line through all models.
    """

    growth: float  # A, per day
    intercept: float  # B, at the first release
    r2: float
    growth_interval: tuple[float, float]
    p_value: float
    growth_of_all: float
    intercept_of_all: float
    n_models: int

    @property
    def is_law(self) -> bool:
        """Tell whether the growth is more than a running maximum shows by itself."""
        return self.p_value <= 0.05 and self.growth > 0


def fit_trend(
    days: npt.ArrayLike,
    densities: npt.ArrayLike,
    *,
    draws: Floats | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Trend:
    """Fit the frontier of densities over release days.

    draws: [n, n_models] densities on resampled rulers, to let the interval know their errors.
    Raises ConfigError for fewer than three models or release days, or a density that is none.
    """
    t, rho = np.asarray(days, np.float64), np.asarray(densities, np.float64)
    if t.shape != rho.shape or len(np.unique(t)) < 3:
        raise ConfigError("a trend needs three release dates or more, with one density each")
    if not (np.all(np.isfinite(t)) and np.all(np.isfinite(rho)) and np.all(rho > 0)):
        raise ConfigError("dates must be finite and densities positive; leave the others out")
    order = np.lexsort((-rho, t))
    t, y = t[order] - t.min(), np.log(rho[order])
    last = np.searchsorted(t, np.unique(t), side="right") - 1
    dates = t[last]
    rng = np.random.default_rng(seed)

    best = np.maximum.accumulate(y)[last]
    growth, intercept = np.polyfit(dates, best, 1)
    left = best - growth * dates - intercept
    spread = float(np.sum((best - best.mean()) ** 2))

    shuffled = rng.permuted(np.tile(y, (n_draws, 1)), axis=1)
    by_chance = _growths(dates, np.maximum.accumulate(shuffled, axis=1)[:, last])
    at_least = int(np.sum(by_chance >= growth - 1e-12 * abs(growth)))

    picks = np.sort(rng.integers(0, len(t), (n_draws, len(t))), axis=1)
    values = y[picks]
    if draws is not None:
        rulers = np.log(np.asarray(draws, np.float64))[:, order]
        values = rulers[rng.integers(0, len(rulers), n_draws)[:, None], picks]
    resampled = _growths(t[picks], np.maximum.accumulate(values, axis=1))
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    of_all, intercept_of_all = np.polyfit(t, y, 1)
    return Trend(
        growth=float(growth),
        intercept=float(intercept),
        r2=1 - float(left @ left) / spread if spread > 0 else 0.0,
        growth_interval=(float(low), float(high)),
        p_value=(1 + at_least) / (1 + n_draws),
        growth_of_all=float(of_all),
        intercept_of_all=float(intercept_of_all),
        n_models=len(t),
    )


def frontier(days: Sequence[float], densities: Sequence[float]) -> list[bool]:
    """Tell of each model whether it was the densest at its release; of equal ones the first day."""
    table = list(zip(days, densities, strict=True))
    return [
        all(other < rho or (other == rho and t == day) for t, other in table if t <= day)
        for day, rho in table
    ]


def doubling_days(growth: float) -> float:
    """Days in which density doubles at this growth per day; infinite without growth."""
    return math.log(2) / growth if growth > 0 else math.inf


def combined_doubling(*times: float) -> float:
    """Doubling time of a product of growths, such as density and compute per price."""
    return 1 / sum(1 / time for time in times)


def report(trend: Trend) -> Mapping[str, Any]:
    """Return a trend as plain data, doubling times in days included."""
    low, high = trend.growth_interval
    return {
        **asdict(trend),
        "is_law": trend.is_law,
        "doubling_days": doubling_days(trend.growth),
        "doubling_days_interval": [doubling_days(high), doubling_days(low)],
    }


def _growths(t: Floats, y: Floats) -> Floats:
    """Return the least-squares slope of each row of y; NaN where all its dates are one."""
    centred = t - t.mean(axis=-1, keepdims=True)
    square = np.sum(centred**2, axis=-1)
    slopes: Floats = np.sum(centred * y, axis=-1) / np.where(square > 0, square, np.nan)
    return slopes


def _logistic(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x)) if x > -700 else 0.0


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _columns(table: npt.ArrayLike, n: int, name: str) -> tuple[Floats, ...]:
    values = np.asarray(table, np.float64)
    if values.ndim != 2 or values.shape[1] != n or not np.all(np.isfinite(values)):
        raise ConfigError(f"the {name} must be a table of {n} columns of finite numbers")
    return tuple(values.T)
