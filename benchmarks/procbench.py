"""How far specialists of ProcBench carry a procedure beyond the steps they learnt.

    python -m benchmarks.procbench --models models/procbench --work build/procbench \
        [--smollm smollm2-135m] [--per-cell 40] [--public FILE --templates DIR]

Each model of `capax train procbench` gets held-out problems of its task with 2 to 25 steps, of
which it learnt the shortest; beside it an untrained model of the same shape, and SmolLM2 with the
full instructions. At its longest learnt steps and beyond, votes on eight whole answers stand beside
votes on eight draws of each state. With problems of the public generators at hand, the specialists
get those of their task, and SmolLM2 all with 2 to 6 steps. Every answer is kept in --work, so the
command goes on after any stop; what is not asked for stays in procbench.json as it was. Writes that
file and procbench.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from scipy.stats import fisher_exact

from capax import LLM
from capax.endpoints.local import LocalEndpoint
from capax.measuring.procbench import generate
from capax.measuring.procbench.evaluate import Settings, evaluate, question_prompt
from capax.measuring.procbench.problem import Problem
from capax.measuring.procbench.public import load_public
from capax.measuring.procbench.record import Record
from capax.measuring.procbench.report import summarize, wilson
from capax.measuring.procbench.specialty import held_out_problems, specialty_named

SEED = 12
STEPS = range(2, 26)
BINS = {"2-6": range(2, 7), "7-8": range(7, 9), "9-16": range(9, 17), "17-25": range(17, 26)}
PUBLISHED_BINS = {"2-6": range(2, 7), "7-16": range(7, 17), "17-25": range(17, 26)}
VOTES = 8


def ask(llm: LLM, problems: Sequence[Problem], settings: Settings, path: Path) -> list[Record]:
    """Return every record, asking only for those that are missing."""

    async def run() -> list[Record]:
        async with LocalEndpoint(llm) as endpoint:
            return await evaluate(endpoint, problems, settings, path, concurrency=16)

    return asyncio.run(run())


def shares(records: Sequence[Record]) -> dict[str, Any]:
    """Return means over some records, SM with its 95 % interval, and what they took."""
    n, right = len(records), sum(r.sm for r in records)
    tokens = sum(r.completion_tokens for r in records)
    return {
        "n": n,
        "pa": sum(r.pa for r in records) / n,
        "sm": right / n,
        "sm_interval": wilson(right, n),
        "fm": sum(r.fm for r in records) / n,
        "cut": sum(r.is_cut for r in records) / n,
        "tokens": tokens / n,
        "pa_per_1000_tokens": 1000 * sum(r.pa for r in records) / tokens,
    }


def by_bins(records: Sequence[Record]) -> dict[str, Any]:
    """Return the shares of each bin that has problems."""
    bins = {name: [r for r in records if r.steps in span] for name, span in BINS.items()}
    return {name: shares(some) for name, some in bins.items() if some}


def measure_specialist(path: Path, per_cell: int, work: Path) -> dict[str, Any]:
    """Ask one specialist, and an untrained model of its shape."""
    record = json.loads(path.with_suffix(".json").read_text())
    task = record["recipe"]["task"]
    problems = held_out_problems(task, STEPS, per_cell, SEED)
    learnt = specialty_named(task)
    short = [p for p in problems if p.steps in learnt.learnt_steps]
    room = learnt.context_len - max(len(question_prompt(p)) for p in problems)
    free = Settings("free", room, "question")
    with LLM(path, threads=1, n_sequences=16, parallel=16) as llm:
        answers = ask(llm, problems, free, work / f"{task}.jsonl")
        as_json = ask(llm, short, Settings("json", room, "question"), work / f"{task}-json.jsonl")
        little = ask(llm, short, Settings("free", 64, "question"), work / f"{task}-64.jsonl")
        votes = measure_votes(llm, task, room, work)
    report = summarize(answers, room)
    by_steps = {str(s): shares([r for r in answers if r.steps == s]) for s in STEPS}
    return {
        "task": task,
        "n_parameters": record["n_parameters"],
        "n_tokens": record["n_tokens"],
        "learnt_steps": list(learnt.learnt_steps),
        "per_cell": per_cell,
        "by_steps": by_steps,
        "bins": by_bins(answers),
        "falls": {**falls(by_steps, BINS), **falls(by_steps, PUBLISHED_BINS)},
        "survival": [[s.step, s.survival, s.fraction] for s in report.survival],
        "hazard": report.as_dict()["hazard"],
        "json": shares(as_json),
        "free_64_tokens": shares(little),
        "votes": votes,
        "untrained": untrained(record["recipe"], short, work),
    }  # fmt: skip


def ways(room: int) -> dict[str, Settings]:
    """Return how an answer is had: greedily, or by votes over draws."""
    return {
        "greedy": Settings("json", room, "question"),
        f"votes on {VOTES} answers": Settings("json", room, "question", VOTES, 1.0),
        f"votes on {VOTES} draws of each state": Settings(
            "json", room, "question", VOTES, 1.0, vote="states"
        ),
    }


def measure_votes(llm: LLM, task: str, room: int, work: Path) -> dict[str, dict[str, Any]]:
    """Ask at every other learnt number of steps and the two beyond. Gives shares by way, steps."""
    learnt = specialty_named(task).learnt_steps
    steps = (*learnt[::2], learnt.stop, learnt.stop + 1)
    problems = held_out_problems(task, steps, 20, SEED)
    found = {}
    for way, settings in ways(room).items():
        records = ask(llm, problems, settings, work / f"votes-{task}-{way.replace(' ', '-')}.jsonl")
        found[way] = {str(s): shares([r for r in records if r.steps == s]) for s in steps}
    return found


def drop_p(before: Sequence[Record], after: Sequence[Record]) -> float:
    """Return the one-sided p of Fisher's test that SM falls from some records to others."""
    return _drop_p(*((sum(r.sm for r in some), len(some)) for some in (before, after)))


def falls(by_steps: Mapping[str, Mapping[str, Any]], bins: Mapping[str, range]) -> dict[str, float]:
    """Return of each two neighbouring bins the p that SM falls; `by_steps` as a result has it."""
    counts = {
        name: (
            sum(round(by_steps[str(s)]["sm"] * by_steps[str(s)]["n"]) for s in span),
            sum(by_steps[str(s)]["n"] for s in span),
        )
        for name, span in bins.items()
    }
    return {f"{a} to {b}": _drop_p(counts[a], counts[b]) for a, b in pairwise(bins)}


def _drop_p(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the p of (right, asked) before and after."""
    table = [[right, n - right] for right, n in (before, after)]
    return float(fisher_exact(table, alternative="greater").pvalue)


def untrained(recipe: dict[str, Any], problems: Sequence[Problem], work: Path) -> dict[str, Any]:
    """Ask a model of the same shape after one step of training; it is kept in `work`."""
    from capax.training.record_run import RecordRecipe, train_on_records, write_model

    task, one = (
        specialty_named(recipe["task"]),
        RecordRecipe(**{**recipe, "steps": 1, "tokens": 256}),
    )
    folder = work / f"untrained-{task.name}"
    made = write_model(train_on_records(task, one, folder), task, one, folder, "Q8_0")
    with LLM(made, threads=1, n_sequences=16, parallel=16) as llm:
        settings = Settings("free", 200, "question")
        return shares(ask(llm, problems[::4], settings, folder / "answers.jsonl"))


def measure_smollm(model: str, tasks: Sequence[str], work: Path) -> dict[str, Any]:
    """Ask SmolLM2 with the whole instructions, in both modes."""
    problems = list(generate(tasks, range(2, 7), 4, SEED))
    found = {}
    with LLM(model, threads=1, ctx_size=2048, n_sequences=4, parallel=4) as llm:
        for mode in ("free", "json"):
            settings = Settings(mode, 256)  # type: ignore[arg-type]
            found[mode] = shares(ask(llm, problems, settings, work / f"smollm-{mode}.jsonl"))
    return found


def measure_public(problems: Path, models: Sequence[Path], work: Path) -> dict[str, Any]:
    """Ask the specialists the published problems, greedily. Gives shares by task and bin."""
    known = load_public(problems)
    found = {}
    for path in models:
        task = json.loads(path.with_suffix(".json").read_text())["recipe"]["task"]
        own = [p for p in known if p.task.name == task]
        room = specialty_named(task).context_len - max(len(question_prompt(p)) for p in own)
        with LLM(path, threads=1, n_sequences=16, parallel=16) as llm:
            settings = Settings("json", room, "question")
            found[task] = by_bins(ask(llm, own, settings, work / f"public-{task}-greedy.jsonl"))
    return found


def measure_public_smollm(
    problems: Path, templates: Path, model: str, work: Path
) -> dict[str, dict[str, Any]]:
    """Ask SmolLM2 all published problems of 2 to 6 steps, in both modes."""
    short = [p for p in load_public(problems, templates) if p.steps in BINS["2-6"]]
    found = {}
    with LLM(model, threads=1, ctx_size=3584, n_sequences=16, parallel=16) as llm:
        for mode in ("free", "json"):
            settings = Settings(mode, 512)  # type: ignore[arg-type]
            records = ask(llm, short, settings, work / f"public-smollm-{mode}.jsonl")
            found[mode] = shares(records)
    return found


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw PA and SM over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found["specialists"]), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, found["specialists"], strict=True):
        rows, learnt = one["by_steps"], one["learnt_steps"]
        steps = [int(s) for s in rows]
        low, high = zip(*(row["sm_interval"] for row in rows.values()), strict=True)
        axes.axvspan(learnt[0] - 0.5, learnt[-1] + 0.5, color="#eee", label="learnt")
        axes.fill_between(steps, low, high, alpha=0.2)
        axes.plot(
            steps, [r["pa"] for r in rows.values()], "--", color="#888", label="PA: leading share"
        )
        axes.plot(steps, [r["sm"] for r in rows.values()], "o-", ms=3, label="SM: all states right")
        axes.set(title=one["task"], xlabel="steps", ylim=(-0.02, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out problems")
    panels[-1].legend(loc="upper right")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description="procedures beyond the learnt steps")
    parser.add_argument("--models", type=Path, default=Path("models/procbench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/procbench"))
    parser.add_argument("--per-cell", type=int, default=40)
    parser.add_argument("--smollm", metavar="MODEL")
    parser.add_argument("--public", type=Path, metavar="FILE")
    parser.add_argument("--templates", type=Path, metavar="DIR")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    models = sorted(options.models.glob("*.gguf"))
    result = options.out / "procbench.json"
    found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    found["specialists"] = [
        measure_specialist(path, options.per_cell, options.work) for path in models
    ]
    if options.smollm:
        tasks = [one["task"] for one in found["specialists"]]
        found["smollm"] = measure_smollm(options.smollm, tasks, options.work)
    if options.public:
        found["public"] = measure_public(options.public, models, options.work)
        if options.smollm:
            found["public_smollm"] = measure_public_smollm(
                options.public, options.templates, options.smollm, options.work
            )
    result.write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "procbench.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
