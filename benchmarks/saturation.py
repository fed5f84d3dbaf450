"""Saturation on a tiny model that adds: samples, rounds, and which of them to buy.

    capax train rethink --out DIR
    python -m benchmarks.saturation --model models/rethink-tiny/rethink.gguf

Pilot and judged samples are disjoint, and so are the halves of the chains. Selection is by an
oracle everywhere. Writes results/saturation.json and
its picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.checkers import checker_named
from capax.scaling.coverage import Counts, pass_at_k
from capax.scaling.rethinking import (
    Chains,
    constancy,
    hazards,
    predict_per_problem,
    predict_pooled,
)
from capax.scaling.rounds import RoundsPlan, load_chains, run_rounds
from capax.scaling.run_directory import RunDirectory, Sample, read_rows
from capax.scaling.sampling import SamplePlan, load, sample
from capax.scaling.saturation import fit, jeffreys, n_star, n_tail
from capax.scaling.tasks import Task
from capax.training.rethink import question

RESULT = Path(__file__).parent / "results" / "saturation.json"
N_PROBLEMS, N_PILOT, N_JUDGED, EPS = 128, 8, 32, 0.02
SEEDS = {"problems": 11, "samples": 12, "rounds": 13}


def problems(max_digits: int) -> list[Task]:
    """Return sums of 1 to max_digits digits, as many of each, all different."""
    rng = np.random.default_rng(SEEDS["problems"])
    tasks: dict[str, Task] = {}
    while len(tasks) < N_PROBLEMS:
        asked, value = question(rng, len(tasks) % max_digits + 1)
        tasks[asked] = Task(asked, asked, str(value), checker_named("exact"))
    return list(tasks.values())


def observed(p: np.ndarray) -> np.ndarray:
    """Return N* of each problem from its judged rate, at most the judged samples."""
    return np.array([min(n_star(float(x), EPS), N_JUDGED) for x in p])


def judge_samples(correct: np.ndarray) -> dict[str, Any]:
    """Compare N* of the pilot with that of the other samples; correct: bool [P, 40]."""
    pilot, judged = correct[:, :N_PILOT].sum(1), correct[:, N_PILOT:].sum(1)
    counts = Counts(np.full(len(pilot), N_PILOT), pilot)
    rate = judged / N_JUDGED
    kept = (rate > 0.03) & (rate < 0.97)
    predicted = observed(jeffreys(counts))

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(observed((a + 0.5) / (N_PILOT + 1)), observed(b / N_JUDGED))[0, 1])

    rng = np.random.default_rng(0)
    p = rate[kept]
    ideal = [correlation(rng.binomial(N_PILOT, p), rng.binomial(N_JUDGED, p)) for _ in range(2000)]
    whole = Counts(np.full(len(judged), N_JUDGED), judged)
    solved = np.stack([np.zeros(len(judged))] + [pass_at_k(whole, k) for k in range(1, 33)])
    tail = np.array([n_tail(float(x), EPS, cap=N_JUDGED) for x in jeffreys(counts)])

    def bought(n: np.ndarray) -> dict[str, float]:
        n = np.clip(n, 1, N_JUDGED)
        reached = solved[n, np.arange(n.size)].mean()
        return {
            "samples_saved": float(1 - n.mean() / N_JUDGED),
            "accuracy_lost": float(solved[N_JUDGED].mean() - reached),
        }

    low, high = np.quantile(ideal, (0.01, 0.999))
    bands = [(0.03, 0.2), (0.2, 0.6), (0.6, 0.97)]
    r = correlation(pilot[kept], judged[kept])
    return {
        "problems_between": int(kept.sum()),
        "per_band": [int(((rate > a) & (rate < b)).sum()) for a, b in bands],
        "mean_rate": float(rate.mean()),
        "pearson_r": r,
        "gate": [float(low), float(high)],
        "passes": bool(low <= r <= high),
        "gain_rule": bought(predicted),
        "tail_rule": bought(tail),
    }


def judge_rounds(chains: Chains) -> dict[str, Any]:
    """Fit half of the chains, predict the other half; largest error over rounds 2 to T."""
    is_fitted = np.arange(chains.problems.size) % 2 == 0
    fitted, judged = chains.take(is_fitted), chains.take(~is_fitted)
    report: dict[str, Any] = {"chains": int(chains.problems.size), "rounds": chains.n_rounds}
    for name, predict in (("per_problem", predict_per_problem), ("pooled", predict_pooled)):
        made = predict(fitted, chains.n_rounds)
        report[name] = {
            "last_right_error": float(np.abs(made.last_right - judged.last_right())[1:].max()),
            "ever_right_error": float(np.abs(made.ever_right - judged.ever_right())[1:].max()),
        }
    test = constancy(hazards(chains))
    report["constancy"] = {**test._asdict(), "fails": test.fails}
    report["hazard"] = np.nan_to_num(hazards(chains).rate).round(4).tolist()
    report["ever_right"] = chains.ever_right().round(4).tolist()
    report["last_right"] = chains.last_right().round(4).tolist()
    return report


def mean_tokens(path: Path, *, with_prompt: bool) -> float:
    """Return the tokens of an answer, with those of its prompt or without."""
    rows = read_rows(path, Sample)
    return float(np.mean([(s.new_tokens or 0) + with_prompt * s.prompt_tokens for s in rows]))


def judge_choice(correct: np.ndarray, chains: Chains, costs: tuple[float, float]) -> dict[str, Any]:
    """Choose samples or rounds on the pilots at 12 budgets, and compare with the other halves.

    costs: tokens of a sample (its prompt is shared) and of a round (its prompt is read again).
    """
    pilot = Counts(np.full(len(correct), N_PILOT), correct[:, :N_PILOT].sum(1))
    judged = Counts(np.full(len(correct), N_JUDGED), correct[:, N_PILOT:].sum(1))
    is_fitted = np.arange(chains.problems.size) % 2 == 0
    deep = predict_per_problem(chains.take(is_fitted), chains.n_rounds).ever_right
    seen = chains.take(~is_fitted).ever_right()
    most = min(N_JUDGED * costs[0], chains.n_rounds * costs[1])
    rows = []
    for tokens in np.geomspace(max(costs), most, 12):
        n, t = int(tokens // costs[0] + 1e-9), int(tokens // costs[1] + 1e-9)
        wide = float(fit(pilot, "mixture").at([n])[0])
        of_problem = pass_at_k(judged, n)
        truth = float(of_problem.mean())
        error = float(
            np.hypot(of_problem.std(), np.sqrt(seen[t - 1] * (1 - seen[t - 1])))
            / np.sqrt(len(correct))
        )
        rows.append(
            {
                "tokens": float(tokens),
                "samples": n,
                "rounds": t,
                "predicted": [wide, float(deep[t - 1])],
                "measured": [truth, float(seen[t - 1])],
                "counts": abs(truth - float(seen[t - 1])) >= error,
                "agrees": (wide >= deep[t - 1]).item() == (truth >= seen[t - 1]).item(),
            }
        )
    counted = [row["agrees"] for row in rows if row["counts"]]
    return {
        "costs": costs,
        "budgets": rows,
        "counted": len(counted),
        "agree": float(np.mean(counted)) if counted else None,
    }


async def measure(model: Path, folder: Path, max_digits: int, n_chains: int) -> dict[str, Any]:
    """Draw everything and judge it."""
    tasks = problems(max_digits)
    params = SamplingParams(max_tokens=max_digits + 3, temperature=1.0, stop=(";",))
    plan = SamplePlan(N_PILOT + N_JUDGED, params, SEEDS["samples"], choices=40)
    deep = RoundsPlan(n_chains, 16, params, "last", "?", SEEDS["rounds"], concurrency=64)
    began = time.perf_counter()
    llm = LLM(model, threads=1, n_sequences=64, parallel=64)
    async with LocalEndpoint(llm) as endpoint:
        with RunDirectory(folder / "samples", plan.settings(tasks, "rethink")) as run:
            await sample(endpoint, tasks, run, plan)
        between = time.perf_counter()
        with RunDirectory(folder / "rounds", deep.settings(tasks, "rethink")) as run:
            await run_rounds(endpoint, tasks, run, deep)
    outcome = load(folder / "samples")
    correct = np.stack([np.asarray(a.correct, bool) for a in outcome.answers])
    chains = load_chains(folder / "rounds")
    costs = (
        mean_tokens(folder / "samples", with_prompt=False),
        mean_tokens(folder / "rounds", with_prompt=True),
    )
    return {
        "seeds": SEEDS,
        "eps": EPS,
        "pilot": N_PILOT,
        "judged": N_JUDGED,
        "selector": "oracle",
        "seconds": [between - began, time.perf_counter() - between],
        "samples": judge_samples(correct),
        "rounds": judge_rounds(chains),
        "choice": judge_choice(correct, chains, costs),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the picture of rounds against samples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rounds = result["rounds"]
    ts = range(1, rounds["rounds"] + 1)
    left.plot(ts, rounds["ever_right"], "o-", markersize=3, label="ever right")
    left.plot(ts, rounds["last_right"], "s--", markersize=3, label="last answer right")
    left.set_xlabel("rounds")
    left.set_ylabel("share of answers right, oracle")
    budgets = result["choice"]["budgets"]
    for i, name in enumerate(("samples", "rounds")):
        tokens = [row["tokens"] for row in budgets]
        right.plot(tokens, [row["measured"][i] for row in budgets], "o", label=f"{name}, measured")
        right.plot(tokens, [row["predicted"][i] for row in budgets], "-", label=f"{name}, planned")
    right.set_xscale("log")
    right.set_xlabel("tokens per problem")
    for axes in (left, right):
        axes.set_ylim(0, 1)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--max-digits", type=int, default=6)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(
            measure(options.model, Path(folder), options.max_digits, options.chains)
        )
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out.with_suffix(".png"))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
