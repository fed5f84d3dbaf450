"""How far specialists of ProcBench carry a procedure beyond the steps they learnt.

    python -m benchmarks.procbench --models models/procbench --work build/procbench \
        [--smollm smollm2-135m] [--per-cell 40] [--public FILE --templates DIR]

Each model of `capax train procbench` gets held-out problems of its task with 2 to 25 steps, of
which it learnt 2 to 8; beside it an untrained model of the same shape, and SmolLM2 with the full
instructions. With problems of the public generators at hand, the specialists get those of their
task, once and as votes over eight answers, and SmolLM2 all with 2 to 6 steps. Every answer is kept
in --work, so the command goes on after any stop. Writes procbench.json and procbench.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
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
from capax.measuring.procbench.specialty import LEARNT_STEPS, held_out_problems, specialty_named

SEED = 12
STEPS = range(2, 26)
BINS = {"2-6": range(2, 7), "7-8": range(7, 9), "9-16": range(9, 17), "17-25": range(17, 26)}
PUBLIC_VOTES = 8
PUBLISHED_BINS = {"2-6": range(2, 7), "7-16": range(7, 17), "17-25": range(17, 26)}


def ask(llm: LLM, problems: Sequence[Problem], settings: Settings, path: Path) -> list[Record]:
    """Return every record, asking only for those that are missing."""

    async def run() -> list[Record]:
        async with LocalEndpoint(llm) as endpoint:
            return await evaluate(endpoint, problems, settings, path, concurrency=16)

    return asyncio.run(run())


def shares(records: Sequence[Record]) -> dict[str, Any]:
    """Return means over some records, SM with its 95 % interval."""
    n, right = len(records), sum(r.sm for r in records)
    return {
        "n": n,
        "pa": sum(r.pa for r in records) / n,
        "sm": right / n,
        "sm_interval": wilson(right, n),
        "fm": sum(r.fm for r in records) / n,
        "cut": sum(r.is_cut for r in records) / n,
    }


def measure_specialist(path: Path, per_cell: int, work: Path) -> dict[str, Any]:
    """Ask one specialist, and an untrained model of its shape."""
    record = json.loads(path.with_suffix(".json").read_text())
    task = record["recipe"]["task"]
    problems = held_out_problems(task, STEPS, per_cell, SEED)
    short = [p for p in problems if p.steps in LEARNT_STEPS]
    room = specialty_named(task).context_len - max(len(question_prompt(p)) for p in problems)
    free = Settings("free", room, "question")
    with LLM(path, threads=1, n_sequences=16, parallel=16) as llm:
        answers = ask(llm, problems, free, work / f"{task}.jsonl")
        as_json = ask(llm, short, Settings("json", room, "question"), work / f"{task}-json.jsonl")
        little = ask(llm, short, Settings("free", 64, "question"), work / f"{task}-64.jsonl")
    report = summarize(answers, room)
    bins = {name: [r for r in answers if r.steps in span] for name, span in BINS.items()}
    published = [[r for r in answers if r.steps in span] for span in PUBLISHED_BINS.values()]
    learnt = [r for r in answers if r.steps in LEARNT_STEPS]
    return {
        "task": task,
        "n_parameters": record["n_parameters"],
        "n_tokens": record["n_tokens"],
        "per_cell": per_cell,
        "by_steps": {
            str(s): shares([r for r in answers if r.steps == s]) for s in STEPS
        },
        "bins": {name: shares(some) for name, some in bins.items()},
        "learnt": shares(learnt),
        "p_values": [drop_p(a, b) for a, b in pairwise(published)],
        "survival": [[s.step, s.survival, s.fraction] for s in report.survival],
        "hazard": report.as_dict()["hazard"],
        "json": shares(as_json),
        "free_64_tokens": shares(little),
        "untrained": untrained(record["recipe"], short, work / f"{task}-untrained.jsonl"),
    }  # fmt: skip


def drop_p(before: Sequence[Record], after: Sequence[Record]) -> float:
    """Return the one-sided p of Fisher's test that SM falls from one bin to the next."""
    table = [[sum(r.sm for r in some), sum(not r.sm for r in some)] for some in (before, after)]
    return float(fisher_exact(table, alternative="greater").pvalue)


def untrained(recipe: dict[str, Any], problems: Sequence[Problem], path: Path) -> dict[str, Any]:
    """Ask a model of the same shape after one step of training."""
    from capax.training.record_run import RecordRecipe, train_on_records, write_model

    task, one = (
        specialty_named(recipe["task"]),
        RecordRecipe(**{**recipe, "steps": 1, "tokens": 256}),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = write_model(train_on_records(task, one, folder), task, one, folder, "Q8_0")
        with LLM(made, threads=1, n_sequences=16, parallel=16) as llm:
            settings = Settings("free", 200, "question")
            return shares(ask(llm, problems[::4], settings, path))


def measure_smollm(model: str, tasks: Sequence[str], work: Path) -> dict[str, Any]:
    """Ask SmolLM2 with the whole instructions, in both modes."""
    problems = list(generate(tasks, range(2, 7), 4, SEED))
    found = {}
    with LLM(model, threads=1, ctx_size=2048, n_sequences=4, parallel=4) as llm:
        for mode in ("free", "json"):
            settings = Settings(mode, 256)  # type: ignore[arg-type]
            found[mode] = shares(ask(llm, problems, settings, work / f"smollm-{mode}.jsonl"))
    return found


def measure_public(
    problems: Path, templates: Path, models: Sequence[Path], smollm: str | None, work: Path
) -> dict[str, Any]:
    """Ask the published problems. Gives shares by what was asked, and of how."""
    known = load_public(problems, templates)
    found = {}
    for path in models:
        task = json.loads(path.with_suffix(".json").read_text())["recipe"]["task"]
        own = [p for p in known if p.task.name == task]
        with LLM(path, threads=1, n_sequences=16, parallel=16) as llm:
            for samples in (1, PUBLIC_VOTES):
                settings = Settings("free", 900, "question", samples, temperature=1.0)
                records = ask(llm, own, settings, work / f"public-{task}-{samples}.jsonl")
                votes = "" if samples == 1 else f", votes over {samples}"
                for name, span in PUBLISHED_BINS.items():
                    row = shares([r for r in records if r.steps in span])
                    found[f"{task} specialist{votes}: {name} steps"] = row
    short = [p for p in known if p.steps in PUBLISHED_BINS["2-6"]]
    if smollm is not None:
        with LLM(smollm, threads=1, ctx_size=3584, n_sequences=16, parallel=16) as llm:
            for mode in ("free", "json"):
                settings = Settings(mode, 512)  # type: ignore[arg-type]
                records = ask(llm, short, settings, work / f"public-smollm-{mode}.jsonl")
                found[f"SmolLM2-135M, 23 tasks, {mode}: 2-6 steps"] = shares(records)
    return found


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw PA and SM over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found["specialists"]), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, found["specialists"], strict=True):
        rows = one["by_steps"]
        steps = [int(s) for s in rows]
        low, high = zip(*(row["sm_interval"] for row in rows.values()), strict=True)
        axes.axvspan(
            LEARNT_STEPS.start - 0.5, LEARNT_STEPS.stop - 0.5, color="#eee", label="learnt"
        )
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
    parser.add_argument("--only-public", action="store_true", help="keep the other results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    models = sorted(options.models.glob("*.gguf"))
    result = options.out / "procbench.json"
    if options.only_public:
        found: dict[str, Any] = json.loads(result.read_text())
    else:
        specialists = [measure_specialist(path, options.per_cell, options.work) for path in models]
        found = {"learnt_steps": list(LEARNT_STEPS), "specialists": specialists}
        if options.smollm:
            tasks = [one["task"] for one in specialists]
            found["smollm"] = measure_smollm(options.smollm, tasks, options.work)
    if options.public:
        found["public"] = measure_public(
            options.public, options.templates, models, options.smollm, options.work
        )
    result.write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "procbench.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
