"""Ten thousand samples per problem from a model trained here, against chances known exactly.

    python -m benchmarks.monkeys --model models/arithmetic/multiplication.gguf \
        --questions models/arithmetic/questions.jsonl --work build/monkeys

One pass per problem gives the exact chance p of the right answer, as its digits and the end are one
fixed string of tokens; so coverage 1 - (1 - p)^k is known for every k, and the samples must agree.
A forecast from the first 200 samples is compared with what the others turned out to be. The run
directory in --work is continued after any stop. Writes monkeys.json and monkeys.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.coverage import Counts, coverage, dispersion, forecast, sampling_variance
from capax.scaling.run_directory import RunDirectory, Sample, read_rows
from capax.scaling.sampling import SamplePlan, load, sample
from capax.scaling.selection import accuracy_of, majority, vote_limit
from capax.scaling.tasks import Task, read_tasks

N_FIRST, BLOCK, SEED = 200, 100, 7
KS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
LEAST_EXPECTED = 5.0  # successes and failures that a z value needs
NEVER = 1e-8


def exact_chance(llm: LLM, task: Task, temperature: float) -> float:
    """Return the chance of the reference's digits and the end, at this temperature."""
    assert isinstance(task.prompt, str)
    prompt, end = llm.tokenizer.encode(task.prompt), llm.tokenizer.eos_id
    assert end is not None
    answer = [*llm.tokenizer.encode(task.reference), end]
    rows = llm.logits([*prompt, *answer])[len(prompt) - 1 : -1].astype(np.float64) / temperature
    rows -= rows.max(1, keepdims=True)
    logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    return float(np.exp(logs[np.arange(len(answer)), answer].sum()))


async def draw(llm: LLM, tasks: list[Task], plan: SamplePlan, folder: Path) -> None:
    """Sample into the run directory, saying how far it is."""
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        if done % 51_200 < plan.choices:
            print(f"{done:,} of {total:,}, {time.monotonic() - began:.0f} s", flush=True)

    with RunDirectory(folder, plan.settings(tasks, llm.name)) as run:
        async with LocalEndpoint(llm) as endpoint:
            await sample(endpoint, tasks, run, plan, progress)


def judge(correct: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Hold samples [problems, n] to their chances: chi squared, what never comes, neighbours."""
    n = correct.shape[1]
    made = correct.sum(1)
    tested = n * p * (1 - p) >= LEAST_EXPECTED
    z = (made - n * p)[tested] / np.sqrt(n * p * (1 - p))[tested]
    where = np.arange(n)
    return {
        "n_tested": int(tested.sum()),
        "chi_squared": float((z**2).sum()),
        "chi_squared_range": [float(x) for x in chi_squared_range(int(tested.sum()))],
        "largest_z": float(abs(z).max()),
        "n_never": int((p < NEVER).sum()),
        "came_though_never": int(made[p < NEVER].sum()),
        "dispersion_by_block": dispersion(correct, where // BLOCK),
        "dispersion_by_slot": dispersion(correct, where % 64),
    }


def chi_squared_range(degrees: int) -> tuple[float, float]:
    """Return the 99.9 % range (Wilson and Hilferty)."""
    wide, scale = 3.2905, 2 / (9 * degrees)
    low, high = ((1 - scale + sign * wide * scale**0.5) ** 3 for sign in (-1, 1))
    return degrees * low, degrees * high


def measure(model: Path, questions: Path, work: Path, n: int, temperature: float) -> dict[str, Any]:
    """Draw, load and judge."""
    tasks = read_tasks(questions)
    params = SamplingParams(max_tokens=12, temperature=temperature)
    plan = SamplePlan(n, params, SEED, choices=64, concurrency=2)
    with LLM(model, n_sequences=64, parallel=128, threads=1) as llm:
        p = np.array([exact_chance(llm, task, temperature) for task in tasks])
        began, cpu = time.monotonic(), time.process_time()
        asyncio.run(draw(llm, tasks, plan, work))
        spent = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
    outcome = load(work)
    correct = np.stack([a.correct for a in outcome.answers]).astype(bool)
    ks = [k for k in KS if k <= n]
    first = Counts(np.full(len(tasks), N_FIRST), correct[:, :N_FIRST].sum(1))
    halves = [Counts(np.full(len(tasks), n // 2), c.sum(1)) for c in np.split(correct, 2, axis=1)]
    votes = accuracy_of(majority, outcome.answers, ks[:-1], subsets=20)
    solved = coverage(outcome.counts, ks)
    return {
        "n_problems": len(tasks),
        "n_samples": n,
        "temperature": temperature,
        "n_tokens": int(sum(row.new_tokens or 0 for row in read_rows(work, Sample))),
        "time": spent,
        "distinct_texts": outcome.distinct_texts,
        "chances": [float(x) for x in p],
        "counts": [int(x) for x in outcome.counts.correct],
        "ks": ks,
        "coverage": [float(x) for x in solved],
        "exact": [float((1 - (1 - p) ** k).mean()) for k in ks],
        "forecast": [f._asdict() for f in forecast(first, ks)],
        "votes": [*(v.accuracy for v in votes), vote_limit(outcome.answers)],
        "halves_z": halves_z(halves, [k for k in (1, 10, 100, 1000) if 2 * k <= n // 2]),
        "tests": judge(correct, p),
    }


def halves_z(halves: list[Counts], ks: list[int]) -> dict[str, float]:
    """Return, for each k, by how many errors the two halves of the samples differ."""
    found = {}
    for k in ks:
        difference = coverage(halves[0], [k])[0] - coverage(halves[1], [k])[0]
        error = sum(sampling_variance(half, k) for half in halves) ** 0.5
        found[str(k)] = float(difference / error) if error else 0.0
    return found


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw coverage, the exact curve, the forecast and the vote."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ks = found["ks"]
    bands = found["forecast"]
    axes.fill_between(
        ks, [f["low"] for f in bands], [f["high"] for f in bands], alpha=0.2,
        label=f"forecast from {N_FIRST} samples, 95 %",
    )  # fmt: skip
    axes.plot(ks, found["exact"], "-", color="#888", label="exact, from the model's probabilities")
    axes.plot(ks, found["coverage"], "o", label=f"{found['n_samples']:,} samples each")
    axes.plot(ks, found["votes"], "s--", ms=4, label="majority vote")
    axes.set(xscale="log", ylim=(0, 1), xlabel="samples per problem")
    axes.set_ylabel("share of products right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description="coverage against chances known exactly")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/monkeys"))
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    found = measure(options.model, options.questions, options.work, options.n, options.temperature)
    (options.out / "monkeys.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "monkeys.png")
    shown = {k: v for k, v in found.items() if k not in ("chances", "counts")}
    print(json.dumps(shown, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
