"""What checks that err make of repeated sampling, on a ladder of models trained here.

    python -m benchmarks.imperfect_verifiers --model models/arithmetic/multiplication.gguf \
        --questions models/arithmetic/questions.jsonl --work build/imperfect

The model that multiplies, in four encodings at three temperatures: twelve rungs of accuracy. Its
answers are judged exactly and by weak checks (a remainder, some digits), whose soundness is
counted, not assumed. Run directories in --work are continued after any stop. Writes
imperfect_verifiers.json and imperfect_verifiers.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.monkeys import draw
from capax import LLM, SamplingParams
from capax.scaling.checkers import checker_named
from capax.scaling.imperfect_verifiers import (
    Attempts,
    ResampleUntil,
    VerifierModel,
    attempt_trend,
    ceiling,
    ceiling_line,
)
from capax.scaling.limits import kinds_of
from capax.scaling.run_directory import Sample, read_rows
from capax.scaling.sampling import SamplePlan
from capax.scaling.tasks import Task, read_tasks
from capax.scaling.weak_checks import WEAK

ENCODINGS = ("F32", "Q8_0", "Q4_1", "Q4_0")
TEMPERATURES = (0.6, 1.0, 1.5)
TOP = "F32-1.0"  # the rung that is looked at closely
N_SAMPLES, SEED = 512, 7
SPREAD = (0.5, 0.95)  # soundness of checks that a ladder can tell something about
STREAMS = (1, 4, 16, 64)
RATIO = 4.0
FIXED = (0, 1, 5, 20, 100)


def encoded(model: Path, encoding: str, work: Path) -> Path:
    """Return the model in an encoding, made with `capax quantize` if it is not there."""
    if encoding == "F32":
        return model
    path = work / f"{model.stem}-{encoding}.gguf"
    if not path.exists():
        command = [sys.executable, "-m", "capax", "quantize", str(model), str(path), encoding]
        subprocess.run(command, check=True, capture_output=True)
    return path


def sampled(model: Path, tasks: list[Task], temperature: float, folder: Path) -> None:
    """Draw what the folder does not have yet."""
    params = SamplingParams(max_tokens=12, temperature=temperature)
    plan = SamplePlan(N_SAMPLES, params, SEED, choices=64, concurrency=2)
    with LLM(model, n_sequences=64, parallel=128, threads=1) as llm:
        asyncio.run(draw(llm, tasks, plan, folder))


def verdicts(folder: Path, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Return [tasks, samples] bool of each check, by its name; "exact" is the truth."""
    place = {task.id: i for i, task in enumerate(tasks)}
    checks = {name: checker_named(name) for name in ("exact", *WEAK)}
    found = {name: np.zeros((len(tasks), N_SAMPLES), bool) for name in checks}
    known: dict[tuple[int, str], dict[str, bool]] = {}
    for row in read_rows(folder, Sample):
        key = (place[row.problem_id], row.text)
        if key not in known:
            reference = tasks[key[0]].reference
            known[key] = {n: c.check(row.text, reference) for n, c in checks.items()}
        for name, passed in known[key].items():
            found[name][key[0], row.sample_idx] = passed
    return found


def rung(judged: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return accuracy, and for each weak check what it is worth and its ceiling."""
    exact = judged["exact"]
    checks = {}
    for name in WEAK:
        model = VerifierModel(judged[name], exact)
        limits = ceiling(model.pools().attempts)
        checks[name] = {
            "soundness": model.soundness()._asdict(),
            "published_soundness": model.published_soundness(),
            "completeness": model.completeness().value,
            "ceiling": limits._asdict(),
        }
    return {"accuracy": float(exact.mean()), "checks": checks}


def ladder(rungs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return for each check how ceilings follow accuracy over the rungs."""
    accuracy = np.array([r["accuracy"] for r in rungs.values()])
    found = {}
    for name in WEAK:
        ceilings = np.array([r["checks"][name]["ceiling"]["value"] for r in rungs.values()])
        sound = np.array([r["checks"][name]["soundness"]["value"] for r in rungs.values()])
        line = ceiling_line(accuracy, ceilings)
        found[name] = {
            "soundness": float(sound.mean()),
            "tells_something": bool(SPREAD[0] <= sound.mean() <= SPREAD[1]),
            "spearman": float(spearmanr(accuracy, ceilings).statistic),
            "line": line._asdict(),
        }
    return found


def streams(weak: np.ndarray, exact: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Cut each task's samples into streams of k; return (task, attempt, right) of the accepted."""
    n_tasks, n = weak.shape
    cut = weak[:, : n // k * k].reshape(n_tasks, -1, k)
    is_right = exact[:, : n // k * k].reshape(n_tasks, -1, k)
    accepted = cut.any(2)
    first = cut.argmax(2)
    task = np.broadcast_to(np.arange(n_tasks)[:, None], accepted.shape)[accepted]
    right = np.take_along_axis(is_right, first[..., None], 2)[..., 0][accepted]
    return task, first[accepted] + 1, right


def independent(weak: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Hold resampling on the second half of the samples to the closed form of the first half."""
    half = weak.shape[1] // 2
    first, second = (
        VerifierModel(weak[:, :half], exact[:, :half]),
        (weak[:, half:], exact[:, half:]),
    )
    attempts = first.pools().attempts
    rows = []
    for k in STREAMS:
        task, _, right = streams(*second, k)

        def gap(
            keep: np.ndarray, k: int = k, task: np.ndarray = task, right: np.ndarray = right
        ) -> float:
            chosen = np.isin(task, np.flatnonzero(keep))
            expected = Attempts(attempts.right[keep], attempts.wrong[keep])
            return float(right[chosen].mean()) - expected.accuracy_among_accepted(k)

        everyone = np.ones(weak.shape[0], bool)
        without = np.array(
            [gap(everyone & (np.arange(len(everyone)) != i)) for i in range(len(everyone))]
        )
        error = float(
            np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum())
        )
        rows.append(
            {
                "attempts": k,
                "accuracy_among_accepted": float(right.mean()),
                "closed_form": attempts.accuracy_among_accepted(k),
                "z": gap(everyone) / error if error else 0.0,
            }
        )
    task, attempt, right = streams(*second, max(STREAMS))
    pools = VerifierModel(weak, exact).pools()
    return {
        "streams": rows,
        "trend_z": attempt_trend(task, attempt.astype(float), right.astype(float)),
        "false_positive_rate": {str(k): pools.false_positive_rate(k) for k in (1, 2, 4, 8, 16, 64)},
    }


def policy(weak: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Fit kinds of task on every other one; compare the plan with fixed attempts on the rest."""
    pools = VerifierModel(weak, exact).pools()
    dev, test = np.arange(pools.n.size) % 2 == 0, np.arange(pools.n.size) % 2 == 1
    types = kinds_of(VerifierModel(weak[dev], exact[dev]))
    chosen = ResampleUntil(types, RATIO, max_attempts=100).max_attempts
    accepted = pools.right + pools.wrong
    value = (pools.right - RATIO * pools.wrong) / np.maximum(accepted, 1)

    def rewards(k: int) -> np.ndarray:
        return (pools.accepted_within(k) * value)[test] if k else np.zeros(int(test.sum()))

    ours, fixed = rewards(chosen), {k: rewards(k) for k in FIXED}
    best = max(fixed, key=lambda k: float(fixed[k].mean()))
    loss = fixed[best] - ours
    gap = fixed[1] - fixed[100]
    n = int(test.sum())
    return {
        "attempts": chosen,
        "reward": float(ours.mean()),
        "fixed": {str(k): float(r.mean()) for k, r in fixed.items()},
        "best_fixed": best,
        "loss_to_best_fixed": float(loss.mean()),
        "loss_error": float(loss.std(ddof=1) / np.sqrt(n)),
        "one_over_hundred": float(gap.mean()),
        "one_over_hundred_error": float(gap.std(ddof=1) / np.sqrt(n)),
    }


def measure(model: Path, questions: Path, work: Path) -> dict[str, Any]:
    """Draw, judge and sum up all rungs."""
    tasks = read_tasks(questions)
    work.mkdir(parents=True, exist_ok=True)
    rungs, top = {}, {}
    for encoding in ENCODINGS:
        for temperature in TEMPERATURES:
            name = f"{encoding}-{temperature}"
            sampled(encoded(model, encoding, work), tasks, temperature, work / name)
            judged = verdicts(work / name, tasks)
            rungs[name] = rung(judged)
            print(name, f"{rungs[name]['accuracy']:.3f}", flush=True)
            if name == TOP:
                top = judged
    return {
        "n_tasks": len(tasks),
        "n_samples": N_SAMPLES,
        "rungs": rungs,
        "ladder": ladder(rungs),
        "independence": {name: independent(top[name], top["exact"]) for name in WEAK},
        "policy": {name: policy(top[name], top["exact"]) for name in WEAK},
    }


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw ceilings over accuracy, and the chance that a late acceptance is wrong."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracy = [r["accuracy"] for r in found["rungs"].values()]
    for name, row in found["ladder"].items():
        ceilings = [r["checks"][name]["ceiling"]["value"] for r in found["rungs"].values()]
        label = f"{name.replace('_', ' ')}, s = {row['soundness']:.2f}"
        (points,) = left.plot(accuracy, ceilings, "o", ms=4, label=label)
        ends = np.array([min(accuracy), max(accuracy)])
        left.plot(ends, row["line"]["slope"] * ends + row["line"]["intercept"], "-", lw=1,
                  color=points.get_color())  # fmt: skip
        rates = found["independence"][name]["false_positive_rate"]
        right.plot([int(k) for k in rates], list(rates.values()), "o-", ms=4,
                   color=points.get_color())  # fmt: skip
    left.set(xlabel="accuracy of one sample", ylabel="ceiling of resampling", ylim=(0, 1.02))
    left.legend(fontsize=7, loc="lower right")
    right.set(xscale="log", xlabel="accepted at attempt", ylabel="chance that it is wrong",
              ylim=(0, 1))  # fmt: skip
    right.set_title(f"{TOP.replace('-', ', T = ')}", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure and write the result and its picture."""
    parser = argparse.ArgumentParser(description="repeated sampling with checks that err")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/imperfect"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = measure(options.model, options.questions, options.work)
    (options.out / "imperfect_verifiers.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "imperfect_verifiers.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
