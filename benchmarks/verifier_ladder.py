"""A ladder of checkpoints under verifiers of known soundness, and when to stop sampling.

    python -m benchmarks.verifier_ladder --work build/verifier_ladder

One training run of `capax train arithmetic` (multiplication) is left at eight steps; every
checkpoint answers the same held-out products a thousand times. The exact value is the strong
verifier; weak ones look at a part of it (modulo 3 or 9, last digits, first digit and length), so
their soundness is measured, not assumed. "Inference Scaling fLaws" (2024, arXiv 2411.17501) at a
size where everything can be counted. The run in --work is continued after any stop. Writes
verifier_ladder.json and verifier_ladder.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.monkeys import draw
from capax import LLM, SamplingParams
from capax.scaling.checkers import checker_named
from capax.scaling.imperfect_verifiers import (
    Attempts,
    Line,
    ResampleUntil,
    Types,
    VerifierModel,
    ceiling,
    ceiling_line,
    trend,
)
from capax.scaling.run_directory import Sample, read_rows
from capax.scaling.sampling import SamplePlan
from capax.scaling.tasks import Task
from capax.scaling.weak_checks import WEAK
from capax.training.arithmetic import GRADES, Multiplication, task_named
from capax.training.record_run import RecordRecipe, train_on_records, write_model

RUNGS = (120, 200, 300, 420, 560, 720, 900, 1200)
RECIPE = RecordRecipe(task="multiplication", steps=RUNGS[-1], seed=11)
N_TASKS, N_SAMPLES, SEED = 100, 1000, 5
TEMPERATURE, MAX_TOKENS = 1.0, 12
POLICY_KS = (1, 4, 16, 64)
FIXED = (0, 1, 5, 20, 100)
RATIOS = (1.0, 2.0, 4.0, 8.0)
USEFUL = (0.5, 0.95)  # soundness of a verifier with anything to learn from it
LEAST_ACCEPTED = 50

Check = Callable[[int, int], bool]  # (answer, truth)
VERIFIERS: dict[str, Check] = {
    "modulo 3": WEAK["mod3"],
    "modulo 9": WEAK["mod9"],
    "last digit": WEAK["last_digit"],
    "last two digits": WEAK["last_two_digits"],
    "first digit and length": WEAK["first_digit"],
}


def train(folder: Path) -> list[Path]:
    """Train once, leaving a model at every rung; returns their files."""
    task = task_named("multiplication")
    files = []
    for rung in RUNGS:
        file = folder / f"step-{rung}" / "multiplication.gguf"
        if not file.exists():
            model = train_on_records(
                task, RECIPE, folder / "training", report_every=50, stop_at=rung
            )
            file.parent.mkdir(exist_ok=True)
            write_model(model, task, RECIPE, file.parent, "Q8_0")
        files.append(file)
    return files


def tasks_of(n: int) -> list[Task]:
    """Return held-out products, half of them of two digits by one, half of two by two."""
    exact = checker_named("exact")
    questions = Multiplication().of_grades([GRADES[2 * i // n] for i in range(n)], SEED)
    return [Task(q.id, q.prompt, q.reference, exact) for q in questions]


def answers(model: Path, tasks: list[Task], work: Path, n: int) -> np.ndarray:
    """Draw `n` answers to each task, or read those that are there; int64 [P, n], -1: none."""
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
    plan = SamplePlan(n, params, SEED, choices=64, concurrency=2)
    with LLM(model, n_sequences=64, parallel=128, threads=1) as llm:
        asyncio.run(draw(llm, tasks, plan, work))
    texts = {row.key: row.text for row in read_rows(work, Sample)}
    return np.array([[value_of(texts[task.id, i]) for i in range(n)] for task in tasks])


def value_of(text: str) -> int:
    """Return the number that an answer is, -1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1


def verdicts(found: np.ndarray, truth: np.ndarray, check: Check) -> np.ndarray:
    """Return what a verifier says of answers [P, n], bool; what is no number is rejected."""
    return np.array(
        [
            [value >= 0 and check(int(value), int(right)) for value in row]
            for row, right in zip(found, truth, strict=True)
        ]
    )


# --- one verifier on one model ------------------------------------------------------------


def judged(weak: np.ndarray, strong: np.ndarray) -> dict[str, Any]:
    """Return soundness, ceiling with bounds, and false positives by attempt."""
    model = VerifierModel(weak, strong)
    sound, attempts = model.soundness(), model.pools().attempts
    limit = ceiling(attempts)
    ks = [1, 2, 4, 8, 16, 32, 64]
    return {
        "accuracy": float(strong.mean()),
        "soundness": sound._asdict(),
        "published_soundness": model.published_soundness(),
        "completeness": model.completeness().value,
        "ceiling": limit._asdict(),
        "false_positives": {str(k): model.pools().false_positive_rate(k) for k in ks},
        "reward": {
            str(ratio): {str(k): model.pools().reward(k, ratio) for k in FIXED if k}
            for ratio in RATIOS
        },
    }


def resampled(weak: np.ndarray, strong: np.ndarray, k: int) -> dict[str, Any]:
    """Hold a policy that tries up to k times to the closed form, on other samples.

    The first half of each task's samples gives a and f; the second half is cut into runs of k, of
    which each accepts its first sample that passes. Accuracy among accepted, its value by the
    closed form, and the difference over its error. The error is that of both: sampling of the runs
    within tasks, and of the rates (200 draws from Dirichlet posteriors).
    """
    half = weak.shape[1] // 2
    first = VerifierModel(weak[:, :half], strong[:, :half]).pools()
    n_runs = half // k
    tried = weak[:, half : half + n_runs * k].reshape(len(weak), n_runs, k)
    truth = strong[:, half : half + n_runs * k].reshape(len(weak), n_runs, k)
    accepted = tried.any(2)
    at = tried.argmax(2)
    right = np.take_along_axis(truth, at[..., None], 2)[..., 0] & accepted
    measured = right.sum() / accepted.sum()
    expected = first.attempts.accuracy_among_accepted(k)
    residual = right.sum(1) - measured * accepted.sum(1)
    within = (right - measured * accepted).var(1, ddof=1) * n_runs if n_runs > 1 else residual**2
    rng = np.random.default_rng(0)
    counts = np.stack([first.right, first.wrong, first.n - first.right - first.wrong], 1) + 1 / 3
    redrawn = [
        Attempts(p[:, 0], p[:, 1]).accuracy_among_accepted(k)
        for p in (np.stack([rng.dirichlet(row) for row in counts]) for _ in range(200))
    ]
    error = float(np.sqrt(within.sum() / accepted.sum() ** 2 + np.var(redrawn)))
    return {
        "k": k, "n_accepted": int(accepted.sum()), "measured": float(measured),
        "expected": expected, "z": float((measured - expected) / error) if error else 0.0,
    }  # fmt: skip


def trend_of(weak: np.ndarray, strong: np.ndarray) -> dict[str, float]:
    """Return the trend of right ones over the samples' places, in tasks with enough accepted."""
    tasks, places = np.nonzero(weak)
    enough = weak.sum(1) >= LEAST_ACCEPTED
    kept = enough[tasks]
    found = trend(places[kept], strong[tasks[kept], places[kept]], tasks[kept])
    return {"z": found.z, "n_tasks": found.n_tasks, "n_accepted": found.n_accepted}


# --- when to stop -------------------------------------------------------------------------


def rewards_of_fixed(weak: np.ndarray, strong: np.ndarray, k: int, ratio: float) -> np.ndarray:
    """Return each task's mean reward of trying up to k times: exact over its pool, [P]."""
    pools = VerifierModel(weak, strong).pools()
    if k == 0:
        return np.zeros(len(weak))
    accepted = pools.right + pools.wrong
    value = (pools.right - ratio * pools.wrong) / np.maximum(accepted, 1)
    return np.asarray(pools.accepted_within(k) * value)


def stopping(weak: np.ndarray, strong: np.ndarray, ratio: float) -> dict[str, Any]:
    """Hold `ResampleUntil` to fixed numbers of attempts, on tasks that taught it nothing.

    The policy learns two kinds of task and the soundness from every second task. Paired per-task
    differences; the best fixed number is the one that turns out best on the same held-out tasks.
    """
    taught = VerifierModel(weak[::2], strong[::2])
    kinds = kinds_of(taught)
    policy = ResampleUntil(kinds, ratio, max_attempts=100)
    held, truth = weak[1::2], strong[1::2]
    ours = rewards_of_fixed(held, truth, policy.max_attempts, ratio)
    fixed = {k: rewards_of_fixed(held, truth, k, ratio) for k in FIXED}
    best = max(fixed, key=lambda k: float(fixed[k].mean()))
    loss, over = fixed[best] - ours, ours - fixed[100]
    spread = fixed[1] - fixed[100]
    return {
        "ratio": ratio,
        "attempts": policy.max_attempts,
        "is_unbounded": policy.plan.is_unbounded,
        "reward": float(ours.mean()),
        "fixed": {str(k): float(row.mean()) for k, row in fixed.items()},
        "best_fixed": best,
        "loss": float(loss.mean()),
        "loss_errors": errors(loss),
        "over_100": float(over.mean()),
        "one_over_100_errors": errors(spread),
    }


def kinds_of(model: VerifierModel) -> Types:
    """Return easy and hard tasks, each with the soundness counted in it."""
    success = model.strong.mean(1)
    easy = success > 0.5
    parts = [part for part in (easy, ~easy) if part.any()]
    sound = [
        VerifierModel(model.weak[part], model.strong[part]).soundness().value for part in parts
    ]
    return Types(
        np.array([part.mean() for part in parts]),
        np.array([success[part].mean() for part in parts]),
        np.nan_to_num(np.array(sound), nan=1.0),
    )


def errors(difference: np.ndarray) -> float:
    """Return a mean over tasks in its standard errors."""
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean() / error) if error else 0.0


# --- the ladder ---------------------------------------------------------------------------


def spearman(x: list[float], y: list[float]) -> float:
    """Return the rank correlation of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the line of ceilings over accuracies, and the rank correlation."""
    accuracy = [row["accuracy"] for row in rows]
    ceilings = [row["ceiling"]["value"] for row in rows]
    line: Line = ceiling_line(np.array(accuracy), np.array(ceilings))
    sound = [row["soundness"]["value"] for row in rows]
    return {
        "spearman": spearman(accuracy, ceilings),
        "line": line._asdict(),
        "soundness_range": [min(sound), max(sound)],
        "is_useful": all(USEFUL[0] <= s <= USEFUL[1] for s in sound),
        "cannot_reach": [
            rung
            for rung, row in zip(RUNGS, rows, strict=True)
            if row["ceiling"]["value"] < accuracy[-1]
        ],
    }


def measure(work: Path, n_tasks: int, n_samples: int) -> dict[str, Any]:
    """Train, draw and judge."""
    tasks = tasks_of(n_tasks)
    truth = np.array([int(task.reference) for task in tasks])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VERIFIERS}
    runs, trends, stops = [], [], []
    for rung, model in zip(RUNGS, train(work), strict=True):
        drawn = answers(model, tasks, work / f"samples-{rung}", n_samples)
        strong = drawn == truth[:, None]
        print(f"step {rung}: {strong.mean():.3f} right", flush=True)
        for name, check in VERIFIERS.items():
            weak = verdicts(drawn, truth, check)
            found[name].append(judged(weak, strong))
            of = {"step": rung, "verifier": name}
            runs += [of | resampled(weak, strong, k) for k in POLICY_KS]
            trends.append(of | trend_of(weak, strong))
            stops += [of | stopping(weak, strong, ratio) for ratio in RATIOS]
    return {
        "rungs": RUNGS,
        "n_tasks": n_tasks,
        "n_samples": n_samples,
        "temperature": TEMPERATURE,
        "verifiers": {name: {"rows": rows, **summary(rows)} for name, rows in found.items()},
        "policy_runs": runs,
        "trends": trends,
        "stopping": stops,
    }


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw ceilings over accuracy, and false positives over attempts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, verifier in found["verifiers"].items():
        rows = verifier["rows"]
        x = [row["accuracy"] for row in rows]
        left.plot(x, [row["ceiling"]["value"] for row in rows], "o-", ms=4, label=name)
        late = rows[-1]["false_positives"]
        right.plot([int(k) for k in late], list(late.values()), "o-", ms=4, label=name)
    left.plot([0, 1], [0, 1], ":", color="#888")
    left.set(xlim=(0, 0.4), ylim=(0, 1), xlabel="right at the first attempt")
    left.set_ylabel("ceiling of resampling")
    right.set(xscale="log", ylim=(0, 1), xlabel="attempt at which an answer is accepted")
    right.set_ylabel(f"share wrong, step {found['rungs'][-1]}")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description="a ladder of models under weak verifiers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/verifier_ladder"))
    parser.add_argument("--tasks", type=int, default=N_TASKS)
    parser.add_argument("-n", type=int, default=N_SAMPLES)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = measure(options.work, options.tasks, options.n)
    (options.out / "verifier_ladder.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "verifier_ladder.png")
    shown = {name: {k: v for k, v in row.items() if k != "rows"}
             for name, row in found["verifiers"].items()}  # fmt: skip
    print(json.dumps(shown, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
