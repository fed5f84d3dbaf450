"""Strategies at equal budgets of tokens: a small model on word problems, and one that can search.

    python -m benchmarks.strategies gsm8k --model smollm2-135m.gguf --data test.jsonl
    python -m benchmarks.strategies search --models models/arithmetic
    python -m benchmarks.strategies picture

`gsm8k` asks SmolLM2-135M the first 40 problems of GSM8K's test set after three examples of our
own; `search` is the control: equations for a model of a million parameters that solves nine of ten,
where effects are large enough to be seen; its marks are fitted on the equations after the first
300, of the pool that benchmarks.deep_fast drew. Each (strategy, cap) is a run directory below
--work, so every part goes on where it was stopped. Writes strategies.json and strategies.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.calibration import fit
from capax.scaling.comparing import Cell, Row, as_json, compare
from capax.scaling.markers import read_traces
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import SamplePlan, sample
from capax.scaling.selecting import exact_vote, read_pools
from capax.scaling.strategies.strategy import parse_strategy
from capax.scaling.tasks import Task, read_tasks

SEED = 5
N_PROBLEMS, N_EQUATIONS, N_POOL = 40, 300, 64
EXAMPLES = (
    (
        "A baker makes 4 trays of 12 rolls and sells 30 of the rolls. How many rolls are left?",
        "He makes 4 * 12 = 48 rolls.\nAfter selling 30 there are 48 - 30 = 18 left.\n#### 18",
    ),
    (
        "Mia reads 15 pages on each of 6 days. Her book has 120 pages. How many are left to read?",
        "She reads 15 * 6 = 90 pages.\nOf 120 pages 120 - 90 = 30 are left.\n#### 30",
    ),
    (
        "A ticket costs $8 and a child's half of that. What do 2 adults and 3 children pay?",
        "A child pays 8 / 2 = 4 dollars.\nTwo adults pay 2 * 8 = 16 dollars.\n"
        "Three children pay 3 * 4 = 12 dollars.\nTogether that is 16 + 12 = 28.\n#### 28",
    ),
)
# What fits each cap: prompts take some 350 tokens, answers 70. A single or a cut answer takes less.
GSM8K_CELLS = (
    ("single", 2000), ("truncate:tokens=48", 2000),
    ("majority:n=22", 2000), ("best:n=3", 2000), ("revise:n=4", 2000), ("mixture:k=7", 2000),
    ("majority:n=48", 4000), ("best:n=7", 4000), ("revise:n=8", 4000), ("mixture:k=20", 4000),
)  # fmt: skip
SEARCH_CAPS = (60, 120, 240, 480, 960)
SEARCH_STRATEGIES = ("majority:n=64", "majority:n=64,votes=short")
CUTS = (4, 16, 32, 64)


def gsm8k_tasks(path: Path, out: Path) -> list[Task]:
    """Write the problems, each after the examples as a conversation, and read them as tasks."""
    shown = [
        {"role": role, "content": text}
        for question, reply in EXAMPLES
        for role, text in (("user", question), ("assistant", reply))
    ]
    lines = []
    for number, line in enumerate(path.read_text().splitlines()[:N_PROBLEMS]):
        row = json.loads(line)
        reference = row["answer"].rpartition("####")[2].strip().replace(",", "")
        messages = [*shown, {"role": "user", "content": row["question"]}]
        lines.append(
            {"id": number, "messages": messages, "reference": reference, "checker": "numeric"}
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_tasks(out)


def cells_of(pairs: Sequence[tuple[str, int | None]]) -> list[Cell]:
    """Return strategies under caps, ready to compare."""
    return [Cell(parse_strategy(spec), cap) for spec, cap in pairs]


def run(
    llm: LLM, tasks: list[Task], cells: list[Cell], params: SamplingParams, work: Path, name: str
) -> list[Row]:
    """Answer all, going on where it was stopped."""

    async def ask() -> list[Row]:
        async with LocalEndpoint(llm) as endpoint:
            return await compare(
                endpoint, tasks, cells, params, work, model=name, seed=SEED, concurrency=8,
                progress=lambda done, total: print(f"\r{name}: {done}/{total}", end="", flush=True),
            )  # fmt: skip

    return asyncio.run(ask())


def gsm8k(options: argparse.Namespace) -> dict[str, Any]:
    """Word problems: what a model of 135M parameters can show, which is little."""
    tasks = gsm8k_tasks(options.data, options.work / "gsm8k.jsonl")
    llm = LLM(options.model, ctx_size=4096, n_sequences=32, parallel=64, threads=1)
    params = SamplingParams(max_tokens=128, temperature=0.6)
    rows = run(llm, tasks, cells_of(GSM8K_CELLS), params, options.work / "gsm8k", "smollm2-135m")
    return {
        "n_tasks": len(tasks), "max_tokens": 128, "temperature": 0.6, "rows": as_json(rows),
        "pool": pool_of(llm, tasks, params, options.work / "gsm8k_pool"),
    }  # fmt: skip


def pool_of(llm: LLM, tasks: list[Task], params: SamplingParams, path: Path) -> dict[str, float]:
    """Draw a pool and say how often one sample, the vote and any of all samples are right."""
    plan = SamplePlan(N_POOL, params, SEED, choices=N_POOL, concurrency=1)

    async def draw() -> None:
        with RunDirectory(path, plan.settings(tasks, "smollm2-135m")) as directory:
            async with LocalEndpoint(llm) as endpoint:
                await sample(endpoint, tasks, directory, plan)

    asyncio.run(draw())
    pools = read_pools(path)
    rates = np.array([pool.answers.correct.mean() for pool in pools])
    return {
        "n_samples": N_POOL,
        "one_sample": float(rates.mean()),
        "vote": float(np.mean([exact_vote(pool.answers, N_POOL) for pool in pools])),
        "any": float((rates > 0).mean()),
        "mixed": int(((rates > 0) & (rates < 1)).sum()),
    }


def search(options: argparse.Namespace) -> dict[str, Any]:
    """Equations: the control."""
    tasks = read_tasks(options.models / "equations.jsonl", limit=N_EQUATIONS)
    llm = LLM(options.models / "search.gguf", n_sequences=64, parallel=128, threads=1)
    params = SamplingParams(max_tokens=110, temperature=1.0)
    traces = read_traces(options.pool / "search")
    others = ~np.isin(traces.problems, [task.id for task in tasks])
    marks = fit(traces.where(others)).marks
    votes = (*SEARCH_STRATEGIES, f"majority:n=64,votes=marked,marks={marks}")
    forced = "truncate:answer_tokens=2,cue=so"
    specs = ("single", *votes, forced)
    pairs: list[tuple[str, int | None]] = [(spec, cap) for spec in specs for cap in SEARCH_CAPS]
    pairs += [(f"{forced},tokens={cut}", None) for cut in CUTS]
    rows = run(llm, tasks, cells_of(pairs), params, options.work / "search", "search")
    return {"n_tasks": len(tasks), "max_tokens": 110, "temperature": 1.0, "rows": as_json(rows)}


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy over tokens, one plot per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    titles = {"gsm8k": "SmolLM2-135M, GSM8K", "search": "a model that searches, equations"}
    parts = [name for name in titles if name in found]
    for axes, name in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        rows = found[name]["rows"]
        for family in dict.fromkeys(_family(row) for row in rows):
            own = [r for r in rows if _family(r) == family]  # by cap, or by cut
            axes.errorbar(
                [r["tokens"] for r in own], [r["accuracy"] for r in own],
                [r["stderr"] for r in own], fmt="o-", ms=4, capsize=2, label=family,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="tokens per task, all calls and prompts", title=titles[name])
        axes.set_ylim(0, 1 if name == "search" else 0.2)
        axes.set_ylabel("share solved")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, loc="lower right" if name == "search" else "best")
    figure.savefig(path, dpi=120)


def _family(row: dict[str, Any]) -> str:
    name, _, rest = str(row["strategy"]).partition(":")
    kind = rest.partition("votes=")[2].partition(",")[0]
    if name == "truncate" and row["cap"] is None:
        kind = "by cut"
    return f"{name}, {kind}" if kind else name


def main() -> int:
    """Run one part, add it to what is there, and draw."""
    parser = argparse.ArgumentParser(description="strategies at equal budgets of tokens")
    parser.add_argument("part", choices=["gsm8k", "search", "picture"])
    parser.add_argument("--model", type=Path, default=Path("smollm2-135m.gguf"))
    parser.add_argument("--data", type=Path, default=Path("test.jsonl"))
    parser.add_argument("--models", type=Path, default=Path("models/arithmetic"))
    parser.add_argument("--pool", type=Path, default=Path("build/deep_fast"))
    parser.add_argument("--work", type=Path, default=Path("build/strategies"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    path = options.out / "strategies.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if options.part != "picture":
        found[options.part] = {"gsm8k": gsm8k, "search": search}[options.part](options)
        path.write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "strategies.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
