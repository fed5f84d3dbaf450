"""Fit the trained ladder, judge it on what was held out, and place the targets on it.

Everything here is arithmetic on measured points: `study` repeats the committed result from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from capax.errors import ConfigError
from capax.measuring.densing_law import (
    Ruler,
    drawn_params,
    fit_loss,
    fit_score,
    middle_of,
    resampled_rulers,
)

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]
HELD_OUT_SIZE = "93k"
LEAST_LOSS = 0.05  # below, tasks are learnt one by one and no power law holds
N_DRAWS = 100
GATES = {
    "fitted_error": 0.03, "held_out_error": 0.06, "score_error": 0.04, "score_span": 0.5,
    "score_error_over_constant": 1 / 3,
}  # fmt: skip


class Answers(NamedTuple):
    """What a target made of every problem of the exam; of several seeds, on average."""

    losses: Floats
    right: Floats


def study(
    points: Sequence[Row], targets: Sequence[Row], answers: Mapping[str, Answers], d0: float
) -> dict[str, Any]:
    """Return laws, gates, ruler and densities; ruler and densities are None where a gate fails."""
    runs, points = points, averaged(points)
    law, score = loss_study(points), score_study(points)
    failed = [g["gate"] for g in (*law["gates"], *score["gates"]) if not g["holds"]]
    result: dict[str, Any] = {
        "d0": d0, "loss_law": law, "sigmoid": score, "failed_gates": failed,
        "measured": list(targets), "seeds": training_error(targets),
    }  # fmt: skip
    targets, answers = merged(targets, answers)
    result |= {"seed_spread": seed_spread(runs), "paired": paired(targets, answers)}
    result |= {"ruler": None, "targets": None}
    if failed:
        return result
    ladder, marks = tables(points)
    ruler = Ruler.fit(ladder, marks, d0)
    rulers = resampled_rulers(ruler, ladder, marks, N_DRAWS)
    result["ruler"] = ruler.to_json()
    result["exponents"] = {
        name: interval([getattr(r, name) for r in rulers], 0.9) for name in ("alpha", "beta")
    }
    seeds = np.array(result["seeds"]["factors"]) if result["seeds"] else None
    placed = Placing(ruler, rulers, ladder, marks, seeds)
    result["targets"] = [placed.target(row, answers[row["name"]]) for row in targets]
    result["sensitivity"] = sensitivity(ruler, targets)
    result["target_gates"] = target_gates({row["name"]: row for row in result["targets"]})
    return result


def averaged(points: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the mean loss and score of points that differ in their seed only."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for p in points:
        groups.setdefault((p["size"], p["phase"], p["tokens"]), []).append(p)
    return [
        {**rows[0], "runs": len(rows)}
        | {name: float(np.mean([r[name] for r in rows])) for name in ("loss", "score")}
        for rows in groups.values()
    ]


def seed_spread(points: Sequence[Row]) -> dict[str, float]:
    """Return of each size how its seeds differ: standard deviation of the log loss, pooled."""
    found = {}
    for size in dict.fromkeys(p["size"] for p in points):
        groups: dict[int, list[float]] = {}
        for p in points:
            if p["size"] == size and p["phase"] == "decayed":
                groups.setdefault(p["tokens"], []).append(np.log(p["loss"]))
        variances = [np.var(logs, ddof=1) for logs in groups.values() if len(logs) > 1]
        if variances:
            found[size] = float(np.mean(variances) ** 0.5)
    return found


def kind_of(name: str) -> str:
    """Return the name of a target without the number of its seed."""
    return name.partition(" #")[0]


def merged(
    targets: Sequence[Row], answers: Mapping[str, Answers]
) -> tuple[list[dict[str, Any]], dict[str, Answers]]:
    """Return targets averaged over seeds, problem by problem; `self` keeps its seeds apart."""
    groups: dict[str, list[Row]] = {}
    for row in targets:
        kind = kind_of(row["name"])
        groups.setdefault(row["name"] if kind == "self" else kind, []).append(row)
    rows, means = [], {}
    for name, each in groups.items():
        mean = Answers(*(
            np.mean([getattr(answers[r["name"]], field) for r in each], axis=0)
            for field in Answers._fields
        ))  # fmt: skip
        means[name] = mean
        rows.append({
            **each[0], "name": name, "runs": len(each), "loss": float(mean.losses.mean()),
            "score": float(mean.right.mean()),
        })  # fmt: skip
    return rows, means


def tables(points: Sequence[Row]) -> tuple[Floats, Floats]:
    """Return the ladder (N, D, loss) of decayed points and (loss, score) of all checkpoints."""
    ladder = [(p["params"], p["tokens"], p["loss"]) for p in points
              if p["phase"] == "decayed" and p["loss"] >= LEAST_LOSS]  # fmt: skip
    return np.array(ladder, np.float64), np.array([(p["loss"], p["score"]) for p in points])


def gate(name: str, value: float, bound: float, *, at_least: bool = False) -> dict[str, Any]:
    """Return a gate with its verdict."""
    holds = value >= bound if at_least else value <= bound
    return {"gate": name, "value": value, "bound": bound, "holds": bool(holds)}


# --- the law of the loss ------------------------------------------------------------------


def loss_study(points: Sequence[Row]) -> dict[str, Any]:
    """Fit all sizes but the largest; judge on the largest, beside two simpler laws."""
    known, _ = tables([p for p in points if p["size"] != HELD_OUT_SIZE])
    unseen, _ = tables([p for p in points if p["size"] == HELD_OUT_SIZE])
    a, alpha, b, beta = fit_loss(*known.T)

    def ours(t: Floats) -> Floats:
        return np.asarray(a * t[:, 0] ** -alpha + b * t[:, 1] ** -beta)

    n, d, y = np.log(known).T
    by_size = np.polyfit(n, y, 1)
    plane, *_ = np.linalg.lstsq(np.stack([n, d, np.ones_like(n)], 1), y, rcond=None)
    laws = {
        "two terms": ours,
        "N only": lambda t: np.exp(np.polyval(by_size, np.log(t[:, 0]))),
        "log-linear in N and D": lambda t: np.exp(np.log(t[:, :2]) @ plane[:2] + plane[2]),
    }
    errors = {
        name: {"fitted": mean_error(f(known), known), "held_out": mean_error(f(unseen), unseen)}
        for name, f in laws.items()
    }
    residuals = ours(known) / known[:, 2] - 1
    mine = errors["two terms"]
    return {
        "law": {"a": a, "alpha": alpha, "b": b, "beta": beta},
        "n_points": [len(known), len(unseen)],
        "mean_relative_error": errors,
        "held_out_residuals": (ours(unseen) / unseen[:, 2] - 1).tolist(),
        "residuals_by_size": by(known[:, 0], residuals),
        "residuals_by_ratio": by(np.round(known[:, 1] / known[:, 0] / 5) * 5, residuals),
        "gates": [
            gate("fitted_error", mine["fitted"], GATES["fitted_error"]),
            gate("held_out_error", mine["held_out"], GATES["held_out_error"]),
            gate("better_than_size_alone", mine["held_out"], errors["N only"]["held_out"]),
        ],
    }


def mean_error(fitted: Floats, table: Floats) -> float:
    """Return the mean relative error of the losses in a table."""
    return float(np.mean(np.abs(fitted / table[:, 2] - 1)))


def by(keys: Floats, residuals: Floats) -> dict[str, float]:
    """Return the mean residual of each key, to see runs of one sign."""
    return {f"{k:.0f}": float(residuals[keys == k].mean()) for k in np.unique(keys)}


# --- the sigmoid --------------------------------------------------------------------------


def score_study(points: Sequence[Row]) -> dict[str, Any]:
    """Fit the sigmoid on all sizes but the largest; judge on the checkpoints of the largest."""
    _, known = tables([p for p in points if p["size"] != HELD_OUT_SIZE])
    _, unseen = tables([p for p in points if p["size"] == HELD_OUT_SIZE])
    c, gamma, middle, d = fit_score(*known.T)
    fitted = c / (1 + np.exp(-gamma * (unseen[:, 0] - middle))) + d
    error = float(np.mean(np.abs(fitted - unseen[:, 1])))
    constant = float(np.mean(np.abs(known[:, 1].mean() - unseen[:, 1])))
    best = float(np.mean(np.abs(unseen[:, 1].mean() - unseen[:, 1])))
    return {
        "sigmoid": {"c": c, "gamma": gamma, "l": middle, "d": d},
        "n_checkpoints": [len(known), len(unseen)],
        "mean_absolute_error": error,
        "constant_of_the_fitted": constant,
        "constant_of_the_held_out": best,
        "gates": [
            gate("score_error", error, GATES["score_error"]),
            gate("score_span", float(np.ptp(unseen[:, 1])), GATES["score_span"], at_least=True),
            gate("score_error_over_constant", error / min(constant, best),
                 GATES["score_error_over_constant"]),
        ],
    }  # fmt: skip


# --- targets ------------------------------------------------------------------------------


def paired(targets: Sequence[Row], answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """Return loss and score of each target minus its parent's, on the same problems.

    What was trained has the mean of all seeds of `self` for a parent, and `seed_se`: the standard
    error that the seeds of one recipe give such a difference. A seed of `self` stands beside
    the mean of all.
    """
    own = [answers[r["name"]] for r in targets if kind_of(r["name"]) == "self"]
    mean = Answers(*(np.mean([getattr(a, f) for a in own], axis=0) for f in Answers._fields))
    seeds = training_error(targets)
    rows = []
    for row in targets:
        parent = answers[row["parent"]] if "parent" in row else mean
        losses = answers[row["name"]].losses - parent.losses
        right = answers[row["name"]].right - parent.right
        n = len(losses) ** 0.5
        found = {
            "name": row["name"], "loss": float(losses.mean()), "loss_se": float(losses.std() / n),
            "score": float(right.mean()), "score_se": float(right.std() / n),
        }  # fmt: skip
        if seeds and "parent" not in row:
            of_both = (1 / row.get("runs", 1) + 1 / len(own)) ** 0.5
            found["seed_se"] = float(seeds["sd_of_log_loss"] * mean.losses.mean() * of_both)
        rows.append(found)
    return rows


def target_gates(placed: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return what must hold of densities by loss; a target that is not there has no gate.

    Same recipe on D0 tokens: rho from 0.7 to 1.4, 1 in its 90 % interval; on other tokens the
    closed form in it. Better data above 1 and noisy data below, their 80 % intervals apart;
    pruning by half lowers rho; Q8_0 moves it by less than 5 %, and rho_mem follows the file's bits.
    """
    gates = []

    def holds(name: str, is_so: bool) -> None:
        gates.append({"gate": name, "holds": bool(is_so)})

    for name, row in placed.items():
        if name.startswith("self"):
            holds(f"{name}: rho in [0.7, 1.4]", 0.7 <= (row["rho"] or 0) <= 1.4)
            holds(f"{name}: 1 in the 90 % interval", _within(1.0, row["interval_90"]))
    if "half the tokens" in placed:
        row = placed["half the tokens"]
        is_so = _within(row["predicted_rho"], row["interval_90"])
        holds("half the tokens: closed form in the 90 % interval", is_so)
    if {"better data", "noisy data"} <= set(placed):
        better, noisy = placed["better data"], placed["noisy data"]
        high, low = better["interval_80"], noisy["interval_80"]
        holds("better data > 1 > noisy data", (better["rho"] or 0) > 1 > (noisy["rho"] or 0) > 0)
        holds("their 80 % intervals are apart", bool(high and low and low[1]) and high[0] > low[1])
    own = placed["self"]
    if own["rho"] and "pruned 50%" in placed:
        holds("pruned 50% below its parent", (placed["pruned 50%"]["rho"] or 0) < own["rho"])
    half, quantised = placed.get("F16"), placed.get("Q8_0")
    if half and quantised and half["rho"] and quantised["rho"]:
        holds("Q8_0 moves rho by less than 5 %", abs(quantised["rho"] / own["rho"] - 1) < 0.05)
        bits = [row["bits"]["without_embedding"] for row in (half, quantised)]
        by_bits = quantised["rho"] / half["rho"] * bits[0] / bits[1]
        is_so = abs(quantised["rho_mem"] / half["rho_mem"] / by_bits - 1) <= 1e-6
        holds("rho_mem of Q8_0 over F16 follows the bits in the files", is_so)
    return gates


def _within(value: float | None, bounds: Sequence[float | None] | None) -> bool:
    if not value or not bounds:
        return False
    low, high = bounds
    return (low or 0.0) <= value <= (np.inf if high is None else high)


def training_error(targets: Sequence[Row]) -> dict[str, Any] | None:
    """Return how the seeds of `self` differ: factors on a loss; None of fewer than three seeds."""
    logs = [np.log(r["loss"]) for r in targets if kind_of(r["name"]) == "self"]
    if len(logs) < 3:
        return None
    deviations = (np.array(logs) - np.mean(logs)) * (len(logs) / (len(logs) - 1)) ** 0.5
    return {"n": len(logs), "sd_of_log_loss": float(np.std(logs, ddof=1)),
            "factors": np.exp(deviations).tolist()}  # fmt: skip


class Placing:
    """Places targets on a ruler, with intervals.

    A draw takes a resampled ruler, resampled problems, and the error of training: what the seeds
    of one recipe differ by (`seeds`: factors on a loss; without them, residuals of the ladder),
    less where a target is the mean of several runs, and on a score also a residual of the sigmoid.
    """

    def __init__(
        self, ruler: Ruler, rulers: Sequence[Ruler], ladder: Floats, marks: Floats,
        seeds: Floats | None = None,
    ) -> None:  # fmt: skip
        self.ruler, self.rulers = ruler, rulers
        n, d, losses = ladder.T
        of_ladder = losses / (ruler.a * n**-ruler.alpha + ruler.b * d**-ruler.beta)
        self._of_loss = of_ladder if seeds is None else seeds
        self._of_score = marks[:, 1] - [ruler.score_of_loss(x) for x in marks[:, 0]]

    def target(self, row: Row, answers: Answers) -> dict[str, Any]:
        """Return a target with its densities by loss and by score."""
        ruler, n = self.ruler, row["params"]
        by_loss, status = ruler.effective_params(loss=row["loss"])
        by_score, score_status = ruler.effective_params(row["score"])
        placed: dict[str, Any] = {
            **row,
            "rho": by_loss and by_loss / n, "status": status,
            "effective_params": by_loss,
            "rho_by_score": by_score and by_score / n, "status_by_score": score_status,
            "predicted_rho": ruler.density_of_reference(n, row["tokens"]),
        }  # fmt: skip
        if by_loss:
            share = ruler.alpha * ruler.a * by_loss**-ruler.alpha
            placed["ln_rho_per_percent_of_loss"] = 0.01 * row["loss"] / share
        if by_score:
            placed["ln_rho_per_point_of_score"] = ruler.error_per_point(row["score"], by_score)
        drawn, drawn_by_score = self._draws(answers, row.get("runs", 1))
        for name, values in (("", drawn), ("_by_score", drawn_by_score)):
            for share in (0.8, 0.9):
                placed[f"interval_{share * 100:.0f}{name}"] = interval(
                    [v / n for v in values], share
                )
        if by_loss and "bits" in row:
            bits = row["bits"]["without_embedding"]
            placed["rho_mem"] = by_loss * 16 / bits
            placed["bits_per_weight"] = bits / n
        if by_loss and "zeros" in row:
            placed["rho_of_stored_sparse"] = by_loss / (n - row["zeros"])
        return placed

    def _draws(self, answers: Answers, runs: int) -> tuple[list[float], list[float]]:
        rng = np.random.default_rng(0)
        by_loss, by_score = [], []
        for ruler in self.rulers:
            picks = rng.integers(0, len(answers.losses), len(answers.losses))
            training = rng.choice(self._of_loss) ** runs**-0.5
            loss = answers.losses[picks].mean() * training
            by_loss.append(drawn_params(ruler.effective_params(loss=loss)))
            score = answers.right[picks].mean() + rng.choice(self._of_score)
            if 1e-6 < ruler.share(score) < 1 - 1e-6:
                loss = ruler.loss_of_score(score) * training
                by_score.append(drawn_params(ruler.effective_params(loss=loss)))
            else:
                by_score.append(drawn_params(ruler.effective_params(score)))
        return by_loss, by_score


def interval(values: Sequence[float], share: float) -> list[float | None] | None:
    """Return the middle `share` of the values; None for an end without bound."""
    bounds = middle_of(values, share)
    return bounds and [x if np.isfinite(x) else None for x in bounds]


def sensitivity(ruler: Ruler, targets: Sequence[Row], factor: float = 5.0) -> dict[str, Any]:
    """Return what other reference tokens do to every density, and to the order of the targets."""
    other = Ruler.from_json({**ruler.to_json(), "d0": factor * ruler.d0})
    pairs = []
    for row in targets:
        here, _ = ruler.effective_params(loss=row["loss"])
        there, _ = other.effective_params(loss=row["loss"])
        if here and there:
            pairs.append((row["name"], row["params"], here, there))
    effective = [(here, there) for _, _, here, there in pairs]
    rho = [(here / n, there / n) for _, n, here, there in pairs]
    return {
        "factor": factor,
        "rho": {name: there / n for name, n, _, there in pairs},
        "without_a_number": [r["name"] for r in targets if r["name"] not in {p[0] for p in pairs}],
        "all_lower": all(there < here for here, there in effective),
        "tau_effective": kendall(effective), "tau_rho": kendall(rho),
    }  # fmt: skip


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Kendall's tau; pairs that tie are left out."""
    signs = [np.sign((a[0] - b[0]) * (a[1] - b[1])) for a, b in combinations(pairs, 2)]
    if not any(signs):
        raise ConfigError("an order needs two different targets or more")
    return float(np.mean([sign for sign in signs if sign]))
