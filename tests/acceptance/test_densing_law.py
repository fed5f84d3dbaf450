"""Densing law (2024, arXiv 2412.04315): algebra, published figures, recovery of known truths."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.density_ladder_fit import (
    HELD_OUT_SIZE,
    Answers,
    averaged,
    loss_study,
    merged,
    score_study,
    seed_spread,
    study,
)
from capax.cli import main
from capax.errors import ConfigError
from capax.measuring.densing_law import (
    Density,
    Ruler,
    combined_doubling,
    density,
    doubling_days,
    drawn_params,
    fit_loss,
    fit_score,
    fit_trend,
    frontier,
    reference_params,
    resampled_rulers,
)

# Both terms are 1 nat at the ladder's middle, N = 2e5 and D = 4e6.
CENTRE = (2e5, 4e6)


def truth(alpha: float = 0.34, beta: float = 0.28, d0: float = CENTRE[1], **other: float) -> Ruler:
    figures: dict[str, Any] = {"c": 0.8, "gamma": -4.0, "l": 2.0, "d": 0.1, **other}
    return Ruler(CENTRE[0] ** alpha, alpha, CENTRE[1] ** beta, beta, d0=d0, **figures)


def ladder(
    ruler: Ruler,
    rng: np.random.Generator | None = None,
    sizes: tuple[float, ...] = (2e4, 6e4, 2e5, 6e5, 2e6),
) -> np.ndarray:
    rows = [
        (n, n * ratio, ruler.loss(n, n * ratio))
        for n in sizes
        for ratio in (10, 15, 20, 30, 40, 60)
    ]
    table = np.array(rows)
    if rng is not None:
        table[:, 2] *= np.exp(0.005 * rng.normal(size=len(table)))
    return table


def scores(ruler: Ruler, rng: np.random.Generator | None = None) -> np.ndarray:
    losses = np.linspace(0.8, 3.2, 25)
    values = np.array([ruler.score_of_loss(x) for x in losses])
    if rng is not None:
        values = (values + 0.005 * rng.normal(size=25)).clip(0, 1)
    return np.stack([losses, values], axis=1)


# --- algebra and published figures --------------------------------------------------------


@pytest.mark.parametrize("gamma", [-0.5, -2.0, -10.0])
@pytest.mark.parametrize("d0", [4e6, 1e12])
def test_score_and_effective_parameters_are_inverse(gamma: float, d0: float) -> None:
    ruler = truth(gamma=gamma, d0=d0)
    n_inverted = 0
    for n in np.logspace(3, 9, 61).tolist():
        score = ruler.score(n)
        effective, status = ruler.effective_params(score)
        if 1e-6 <= (score - ruler.d) / ruler.c <= 1 - 1e-6:
            assert effective == pytest.approx(n, rel=1e-9)
            n_inverted += 1
        else:
            assert (effective, status) in ((None, "at or below chance"), (None, "saturated"))
        assert ruler.effective_params(loss=ruler.loss(n))[0] == pytest.approx(n, rel=1e-9)
    assert n_inverted >= 15


def test_corollaries() -> None:
    for growth, days in ((0.007, 99.0), (0.0066, 105.0), (0.0048, 144.4), (0.0073, 95.0)):
        assert doubling_days(growth) == pytest.approx(days, abs=0.05)
    assert doubling_days(0.0048) / doubling_days(0.0073) == pytest.approx(1.52, abs=0.005)
    assert combined_doubling(99.02, 767) == pytest.approx(87.7, abs=0.05)
    assert doubling_days(-0.001) == float("inf")


@pytest.mark.parametrize(
    ("shape", "n_params"),
    [
        ((8, 256, 640, 4, 1), 5_247_232),
        ((12, 512, 1280, 8, 2), 31_470_080),
        ((18, 768, 1920, 12, 3), 106_196_736),
        ((24, 1024, 2560, 16, 2), 245_416_960),
        ((30, 1280, 3200, 20, 2), 476_852_480),
        ((36, 1536, 3840, 24, 3), 828_225_024),
    ],
)
def test_parameters_of_the_published_ladder(shape: tuple[int, ...], n_params: int) -> None:
    assert reference_params(*shape) == n_params


# --- fitting the ruler --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.34, 0.28), (0.3, 0.3), (0.2, 0.4), (0.1, 0.1), (0.5, 0.15)]
)
def test_a_noiseless_ladder_is_recovered(alpha: float, beta: float) -> None:
    ruler = truth(alpha, beta)
    a, fitted_alpha, b, fitted_beta = fit_loss(*ladder(ruler).T)
    assert (fitted_alpha, fitted_beta) == pytest.approx((alpha, beta), rel=1e-7)
    assert (a, b) == pytest.approx((ruler.a, ruler.b), rel=1e-5)


def test_a_noisy_ladder_is_recovered_to_ten_percent() -> None:
    ruler = truth()
    passed = 0
    for seed in range(100):
        _, alpha, _, beta = fit_loss(*ladder(ruler, np.random.default_rng(seed)).T)
        passed += abs(alpha / 0.34 - 1) <= 0.1 and abs(beta / 0.28 - 1) <= 0.1
    assert passed >= 90


def test_outliers_do_not_bend_the_ladder() -> None:
    table = ladder(truth())
    table[[3, 17], 2] *= (1.3, 0.8)
    _, alpha, _, beta = fit_loss(*table.T)
    assert (alpha, beta) == pytest.approx((0.34, 0.28), rel=0.02)
    # Negative control: least squares would be bent.
    from capax.measuring import densing_law

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(densing_law, "HUBER", np.inf)
        _, bent, _, _ = fit_loss(*table.T)
    assert abs(bent / 0.34 - 1) > 0.05


def test_the_sigmoid_is_recovered() -> None:
    ruler = truth()
    c, gamma, middle, d = fit_score(*scores(ruler).T, chance=0.2)
    assert (c, gamma, middle, d) == pytest.approx((0.8, -4.0, 2.0, 0.1), rel=1e-6)
    noisy = Ruler.fit(ladder(ruler), scores(ruler, np.random.default_rng(0)), CENTRE[1], 0.1)
    known = scores(ruler)
    errors = [abs(noisy.score_of_loss(x) - y) for x, y in known]
    assert np.mean(errors) <= np.mean(np.abs(known[:, 1] - known[:, 1].mean())) / 3
    assert np.mean(errors) < 0.005


def test_two_terms_extrapolate_better_than_size_alone() -> None:
    ruler = truth()
    known = ladder(ruler, np.random.default_rng(0), (2e4, 6e4, 2e5, 6e5))
    unseen = ladder(ruler, None, (2e6,))
    a, alpha, b, beta = fit_loss(*known.T)
    ours = np.abs((a * unseen[:, 0] ** -alpha + b * unseen[:, 1] ** -beta) / unseen[:, 2] - 1)
    slope, offset = np.polyfit(np.log(known[:, 0]), np.log(known[:, 2]), 1)
    size_only = np.abs(np.exp(slope * np.log(unseen[:, 0]) + offset) / unseen[:, 2] - 1)
    assert ours.mean() <= 0.03
    assert size_only.mean() > 2 * ours.mean()


def test_a_ladder_that_does_not_fall_is_no_ruler() -> None:
    table = ladder(truth())
    table[:, 2] = table[::-1, 2]
    with pytest.raises(ConfigError, match="no ruler"):
        fit_loss(*table.T)
    with pytest.raises(ConfigError, match="five or more"):
        fit_loss(*table[:4].T)


# --- densities ----------------------------------------------------------------------------


def test_a_reference_model_has_density_one_on_d0_tokens_only() -> None:
    ruler = truth(alpha=0.3, beta=0.25)
    for n, ratio, rho in ((2e5, 10, 0.56), (2e5, 20, 1.0), (2e5, 60, 2.50), (6e5, 20, 3.9)):
        expected = pytest.approx(rho, abs=0.05 if rho > 3 else 0.006)
        assert ruler.density_of_reference(n, n * ratio) == expected
        # The closed form and the way through the score agree.
        result = density(ruler, n, ruler.score(n, n * ratio))
        assert result.rho == pytest.approx(ruler.density_of_reference(n, n * ratio), rel=1e-9)


def test_self_density_lies_in_its_interval() -> None:
    known = truth()
    inside = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        points, marks = ladder(known, rng), scores(known, rng)
        ruler = Ruler.fit(points, marks, CENTRE[1], 0.1)
        rulers = resampled_rulers(ruler, points, marks, n_draws=40, seed=seed)
        result = density(ruler, 3e5, known.score(3e5), rulers=rulers)
        assert result.status == "ok"
        assert result.rho is not None
        assert 0.7 <= result.rho <= 1.4
        assert result.interval is not None
        inside += result.interval[0] <= 1 <= result.interval[1]
    assert inside >= 7


def test_draws_that_cannot_tell_stay_in_the_interval() -> None:
    ruler = truth()
    floor = ruler.b * ruler.d0**-ruler.beta
    loss = floor * 1.001  # a little above what an infinite reference reaches
    higher = replace(ruler, b=ruler.b * 1.01)  # there it is out of reach
    result = density(ruler, 3e5, loss=loss, rulers=[ruler] * 70 + [higher] * 30)
    assert result.interval == (pytest.approx(result.rho), math.inf)
    assert len(result.draws) == 100
    few = density(ruler, 3e5, loss=loss, rulers=[ruler] * 97 + [higher] * 3)
    assert few.interval == (pytest.approx(result.rho), pytest.approx(result.rho))
    guess = ruler.d - 0.01
    assert drawn_params(ruler.effective_params(guess)) == 0
    assert drawn_params(ruler.effective_params(ruler.c + ruler.d)) == math.inf


def test_sizes_that_are_off_as_a_whole_widen_the_interval() -> None:
    ruler = truth()
    points, marks = ladder(ruler), scores(ruler)
    rng = np.random.default_rng(3)
    sizes, of_size = np.unique(points[:, 0], return_inverse=True)
    apart, by_size = points.copy(), points.copy()
    by_size[:, 2] *= np.exp(0.03 * rng.normal(size=len(sizes)))[of_size]
    apart[:, 2] *= np.exp(0.03 * rng.normal(size=len(points)))
    spread = []
    for table in (apart, by_size):
        fitted = Ruler.fit(table, marks, CENTRE[1], 0.1)
        alphas = [r.alpha for r in resampled_rulers(fitted, table, marks, 60)]
        spread.append(np.std(alphas) / fitted.alpha)
    assert spread[1] > 1.5 * spread[0]


def test_what_the_ruler_cannot_tell_has_a_status_and_no_number() -> None:
    ruler = truth()
    floor = ruler.b * ruler.d0**-ruler.beta
    beyond = ruler.score_of_loss(floor * 0.9)
    for score, status in (
        (0.1, "at or below chance"), (0.05, "at or below chance"), (0.9, "saturated"),
        (0.95, "saturated"), (beyond, "beyond the ruler"),
    ):  # fmt: skip
        assert density(ruler, 1e6, score) == Density(status)
    assert density(ruler, 1e6, loss=floor) == Density("beyond the ruler")
    low = density(ruler, 1e6, 0.15)
    assert low.status == "ill-conditioned"
    assert low.rho is not None


def test_how_far_an_error_of_the_score_goes() -> None:
    # gamma = -5, c = 0.8, alpha = 0.3, a N^-alpha = 1: 3 % of rho per point in the middle.
    ruler = Ruler(1.0, 0.3, 1.0, 0.3, 0.8, -5.0, 1.0, 0.0, 1e6)
    assert ruler.error_per_point(0.4, 1.0) == pytest.approx(0.0333, abs=1e-3)
    assert ruler.error_per_point(0.95 * 0.8, 1.0) == pytest.approx(0.175, abs=1e-2)
    measured = truth()
    base, moved = (measured.effective_params(x)[0] for x in (0.6, 0.6001))
    assert base is not None
    assert moved is not None
    assert np.log(moved / base) * 100 == pytest.approx(
        measured.error_per_point(0.6, base), rel=0.01
    )


def test_more_reference_tokens_lower_every_density_and_keep_the_order() -> None:
    few, many = truth(), truth(d0=5 * CENTRE[1])
    marks = np.linspace(0.2, 0.45, 12).tolist()
    before = [few.effective_params(s)[0] for s in marks]
    after = [many.effective_params(s)[0] for s in marks]
    assert all(
        x is not None and y is not None and y < x for x, y in zip(before, after, strict=True)
    )
    assert np.argsort(np.array(before)).tolist() == np.argsort(np.array(after)).tolist()


def test_bits_and_active_parameters() -> None:
    ruler = truth()
    # Q8_0 has 8.5 bits per weight; norms stay in float32.
    bits = 1e6 * 8.5 + 2e3 * 32
    half, quantised = (density(ruler, 1.002e6, 0.5, weight_bits=b) for b in (1.002e6 * 16, bits))
    assert half.rho == half.rho_mem
    assert quantised.rho == half.rho
    assert quantised.rho_mem is not None
    assert half.rho_mem is not None
    assert quantised.rho_mem / half.rho_mem == pytest.approx(1.002e6 * 16 / bits, rel=1e-6)
    expert = density(ruler, 1e6, 0.5, active_params=2.5e5)
    assert expert.rho is not None
    assert expert.rho_flop == pytest.approx(4 * expert.rho)


# --- the law ------------------------------------------------------------------------------


def releases(rng: np.random.Generator, growth: float) -> tuple[np.ndarray, np.ndarray]:
    days = np.sort(rng.uniform(0, 700, 29))
    short_of = rng.exponential(0.8, 29)
    return days, np.exp(growth * days - short_of + 0.1 * rng.normal(size=29))


def test_the_law_is_found_where_it_is() -> None:
    passed, lower, laws = 0, [], 0
    for seed in range(100):
        trend = fit_trend(*releases(np.random.default_rng(seed), 0.007), n_draws=200, seed=seed)
        passed += abs(trend.growth / 0.007 - 1) <= 0.25
        lower.append(trend.intercept - trend.intercept_of_all)
        laws += trend.is_law
    assert passed >= 90
    assert 0.25 <= np.mean(lower) <= 0.5
    assert laws >= 90


def test_releases_without_a_trend_are_no_law() -> None:
    trends = [
        fit_trend(*releases(np.random.default_rng(seed), 0.0), n_draws=200, seed=seed)
        for seed in range(100)
    ]
    assert sum(not trend.is_law for trend in trends) >= 90
    # A running maximum rises all the same: its sign alone would have been called a law.
    assert sum(trend.growth > 0 for trend in trends) >= 90


def test_the_interval_covers_the_growth() -> None:
    covered = 0
    for seed in range(50):
        trend = fit_trend(*releases(np.random.default_rng(seed), 0.007), n_draws=200, seed=seed)
        low, high = trend.growth_interval
        covered += low <= 0.007 <= high
    assert covered >= 40


def test_order_of_the_table_and_dates_that_coincide() -> None:
    days = [0, 100, 100, 200, 300]
    rho = [1.0, 2.0, 3.0, 2.5, 8.0]
    trend = fit_trend(days, rho)
    assert fit_trend(days[::-1], rho[::-1]).growth == pytest.approx(trend.growth, rel=1e-12)
    by_hand = np.polyfit([0, 100, 200, 300], np.log([1.0, 3.0, 3.0, 8.0]), 1)
    assert (trend.growth, trend.intercept) == pytest.approx(tuple(by_hand))
    assert frontier(days, rho) == [True, False, True, False, True]
    assert frontier([0, 0, 5], [2.0, 2.0, 2.0]) == [True, True, False]
    with pytest.raises(ConfigError, match="three release dates"):
        fit_trend([0, 1, 1], [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="densities positive"):
        fit_trend([0, 1, 2], [1.0, 0.0, 3.0])


# --- published numbers in, densities out --------------------------------------------------


def write_tables(folder: Path) -> list[str]:
    known = truth()
    points = ["params,tokens,loss"]
    points += [",".join(repr(float(x)) for x in row) for row in ladder(known)]
    (folder / "ladder.csv").write_text("\n".join(points))
    marks = ["loss,score"] + [f"{x!r},{y!r}" for x, y in scores(known).tolist()]
    (folder / "scores.csv").write_text("\n".join(marks))
    rows = ["model,date,params,first,second"]
    for i, (month, rho) in enumerate(itertools.product((1, 4, 7, 10), (0.8, 1.0))):
        score = known.score(rho * 2 ** (i // 2) * 1e5)
        rows.append(f"m{i},2024-{month:02d}-01,1e5,{score - 0.01!r},{score + 0.01!r}")
    rows.append("guesser,2024-11-01,1e5,0.1,0.1")
    (folder / "models.csv").write_text("\n".join(rows))
    return [
        "measure", "density", str(folder / "models.csv"), "--ladder", str(folder / "ladder.csv"),
        "--scores", str(folder / "scores.csv"), "--tokens", "4e6", "--chance", "0.1",
        "--score", "first", "--score", "second",
    ]  # fmt: skip


def test_tables_in_densities_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ruler = tmp_path / "ruler.json"
    arguments = write_tables(tmp_path)
    assert main.run([*arguments, "--save-ruler", str(ruler), "--draws", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rho = [m["rho"] for m in document["models"]]
    assert rho[:-1] == pytest.approx([0.8, 1, 1.6, 2, 3.2, 4, 6.4, 8], rel=1e-4)
    assert (rho[-1], document["models"][-1]["status"]) == (None, "at or below chance")
    assert document["trend"]["doubling_days"] == pytest.approx(91.3, abs=1)
    assert [m["is_frontier"] for m in document["models"]] == [False, True] * 4 + [False]
    # Rulers drawn widen the interval of the growth, and an interval may have no upper end.
    assert main.run([*arguments, "--draws", "40", "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert drawn["trend"]["growth"] == document["trend"]["growth"]
    assert all("draws" not in m for m in drawn["models"])
    assert all(len(m["interval"]) == 2 for m in drawn["models"][:-1])
    again = [*arguments[:3], "--ruler", str(ruler), *arguments[-4:]]
    assert main.run(again) == 0
    text = capsys.readouterr().out
    assert "at or below chance" in text
    assert "doubling" in text


def test_errors_of_rulers_widen_the_growth() -> None:
    days, rho = releases(np.random.default_rng(1), 0.007)
    alone = fit_trend(days, rho).growth_interval
    # A ruler that is off bends the growth: large models are denser on it, or less dense.
    slopes = 0.003 * np.random.default_rng(2).normal(size=100)
    draws = np.asarray(rho) * np.exp(slopes[:, None] * (np.asarray(days) - np.mean(days)))
    low, high = fit_trend(days, rho, draws=draws).growth_interval
    assert high - low > 1.5 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ruler", "r.json", "--ladder", "l.csv"], "leave out --ladder"),
        (["--ruler", "r.json", "--save-ruler", "s.json"], "leave out --save-ruler"),
        (["--ladder", "l.csv", "--tokens", "1e6"], "--scores lacks"),
        (["--save-ruler", "s.json"], "--ladder, --scores, --tokens lacks"),
    ],
)
def test_options_that_would_be_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = tmp_path / "models.csv"
    path.write_text("model,date,density\na,2024-01-01,1\n")
    assert main.run(["measure", "density", str(path), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,date,density\na,2024-13-01,1\n", "line 2"),
        ("model,date,density\na,2024-01-01,x\n", "line 2"),
        ("model,date\na,2024-01-01\n", "score"),
        ("", "no rows"),
    ],
)
def test_tables_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "models.csv"
    path.write_text(text)
    assert main.run(["measure", "density", str(path)]) != 0
    assert message in capsys.readouterr().err


# --- the ladder trained here --------------------------------------------------------------

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "density_ladder.json"
RULER = Path(__file__).parents[2] / "models" / "density-ladder" / "ruler.json"


def trained(known: Ruler, rng: np.random.Generator, n_of: dict[str, float]) -> list[dict[str, Any]]:
    """Return points as a trained ladder has them, with 0.5 % noise on the loss."""
    rows = []
    for size, n in n_of.items():
        phases = [("decayed", r) for r in (10, 15, 20, 30, 40, 60)]
        phases += [("stable", r) for r in (0.2, 0.5, 1, 2, 4, 8)]
        for phase, ratio in phases:
            loss = known.loss(n, n * ratio) * np.exp(0.005 * rng.normal())
            score = known.score_of_loss(loss) + 0.003 * rng.normal()
            rows.append(
                {"size": size, "params": n, "tokens": n * ratio, "phase": phase,
                 "loss": float(loss), "score": float(np.clip(score, 0, 1))}
            )  # fmt: skip
    return rows


def target(known: Ruler, name: str, rho: float, n: float, **facts: Any) -> dict[str, Any]:
    """Return a target that does as well as a reference model of rho x n parameters."""
    loss = known.loss(rho * n)
    return {"name": name, "params": n, "tokens": known.d0, "loss": loss,
            "score": known.score_of_loss(loss), **facts}  # fmt: skip


SIZES = {"20k": 2e4, "60k": 6e4, "200k": 2e5, HELD_OUT_SIZE: 6e5}


def test_a_ladder_that_holds_gives_densities_and_one_that_fails_gives_none() -> None:
    known, rng = truth(gamma=-2.5), np.random.default_rng(4)
    points = trained(known, rng, SIZES)
    rows = [
        target(known, "self", 1.0, 1.2e5),
        target(known, "better", 1.6, 1.2e5),
        target(known, "F16", 1.0, 1.2e5, bits={"without_embedding": 1.2e5 * 16}),
        target(known, "Q8_0", 0.99, 1.2e5, bits={"without_embedding": 1.2e5 * 8.5}),
    ]
    spread = 0.2 * rng.normal(size=1500)
    answers = {
        r["name"]: Answers(
            r["loss"] + spread - spread.mean(), (rng.random(1500) < r["score"]).astype(float)
        )
        for r in rows
    }
    found = study(points, rows, answers, known.d0)
    assert found["failed_gates"] == []
    own, better, half, quantised = found["targets"]
    assert own["rho"] == pytest.approx(1, abs=0.1)
    assert own["interval_90"][0] <= 1 <= own["interval_90"][1]
    assert better["interval_80"][0] > own["rho"]
    by_bits = quantised["rho_mem"] / half["rho_mem"]
    effective = quantised["effective_params"] / half["effective_params"]
    assert by_bits == pytest.approx(effective * 16 / 8.5, rel=1e-6)
    assert found["sensitivity"]["all_lower"]
    assert found["sensitivity"]["tau_effective"] == 1
    assert found["paired"][1]["loss"] == pytest.approx(better["loss"] - own["loss"])

    assert all(g["holds"] for g in found["target_gates"])
    assert len(found["target_gates"]) == 4

    # Negative control: a size that is far off, and there is no ruler to read.
    for p in points:
        p["loss"] *= 1.2 if p["size"] == "60k" else 1.0
    failed = study(points, rows, answers, known.d0)
    assert "fitted_error" in failed["failed_gates"]
    assert failed["ruler"] is None
    assert failed["targets"] is None


def test_the_trained_ladder_is_judged_by_its_points() -> None:
    found = json.loads(RESULTS.read_text())
    points = averaged(found["points"])
    law, score = loss_study(points), score_study(points)
    for kept, again in ((found["loss_law"], law), (found["sigmoid"], score)):
        assert [g["gate"] for g in again["gates"]] == [g["gate"] for g in kept["gates"]]
        for a, b in zip(kept["gates"], again["gates"], strict=True):
            assert b["value"] == pytest.approx(a["value"], rel=1e-3, abs=1e-6)
            assert b["holds"] == a["holds"]
    failed = [g["gate"] for g in (*law["gates"], *score["gates"]) if not g["holds"]]
    assert found["failed_gates"] == failed
    # No ruler is published from a ladder that fails.
    assert (found["ruler"] is None) == bool(failed)
    of_self = [g["holds"] for g in found.get("target_gates", ()) if g["gate"].startswith("self")]
    is_published = not failed and all(of_self)
    assert RULER.exists() == is_published
    if is_published:
        assert Ruler.from_json(json.loads(RULER.read_text())).to_json() == found["ruler"]


def test_targets_of_the_trained_ladder() -> None:
    found = json.loads(RESULTS.read_text())
    rows = {r["name"]: r for r in found["measured"]}
    gaps = {r["name"]: r for r in found["paired"]}
    own = rows["self"]
    # The same model, pruned and encoded: no training in between.
    assert gaps["pruned 50%"]["loss"] > gaps["pruned 30%"]["loss"] > 10 * gaps["F16"]["loss_se"]
    assert abs(gaps["Q8_0"]["loss"]) < 0.005 * own["loss"]
    assert gaps["Q4_1"]["loss"] > 5 * gaps["Q4_1"]["loss_se"]
    n_vectors = 2 * 2 * 32 + 32  # norms of two layers and the last one, in F32
    for name, bits_per_weight in (("F16", 16), ("Q8_0", 8.5), ("Q4_1", 5)):
        bits = (own["params"] - n_vectors) * bits_per_weight + n_vectors * 32
        assert rows[name]["bits"]["without_embedding"] == pytest.approx(bits, rel=1e-6)
    # Seeds differ by little enough for the order of the data to show, three runs each.
    assert found["seeds"]["n"] >= 5
    assert found["seeds"]["sd_of_log_loss"] < 0.03
    assert gaps["better data"]["loss"] < -3 * gaps["better data"]["seed_se"]
    assert gaps["noisy data"]["loss"] > 3 * gaps["noisy data"]["seed_se"]
    # What holds of the densities, and what does not: the recipe itself is not always near 1.
    failing = [g["gate"] for g in found["target_gates"] if not g["holds"]]
    assert all(name.startswith("self") for name in failing)
    assert found["sensitivity"]["all_lower"]
    assert found["sensitivity"]["tau_effective"] == 1


def test_seeds_are_averaged_and_their_spread_is_counted() -> None:
    points = [
        {"size": "20k", "phase": "decayed", "tokens": 100, "params": 2, "loss": loss, "score": 0.5}
        for loss in (1.0, 1.2)
    ]
    (mean,) = averaged(points)
    assert (mean["loss"], mean["runs"]) == (pytest.approx(1.1), 2)
    assert seed_spread(points) == {"20k": pytest.approx(np.log(1.2) / 2**0.5)}
    named = (("self", 1.0), ("self #2", 1.1), ("a", 2.0), ("a #2", 4.0))
    rows = [{"name": name, "loss": loss} for name, loss in named]
    answers = {r["name"]: Answers(np.full(3, r["loss"]), np.array([0.0, 1.0, 1.0])) for r in rows}
    kept, means = merged(rows, answers)
    assert [(r["name"], r["runs"], r["loss"]) for r in kept] == [
        ("self", 1, 1.0), ("self #2", 1, pytest.approx(1.1)), ("a", 2, 3.0)
    ]  # fmt: skip
    assert means["a"].losses.tolist() == [3.0] * 3
