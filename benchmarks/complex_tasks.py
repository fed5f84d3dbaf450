"""A model on the easiest levels of every generated family, beside blind guessing.

    python -m benchmarks.complex_tasks --model smollm2-135m --work build/complex

Answers are kept in the run directory in --work, which the same command continues. Writes
complex_tasks.json; `capax scale tasks report --html` draws the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.complex import family_named, generate
from capax.scaling.complex.families import task_line
from capax.scaling.complex.stored import played_of_run
from capax.scaling.complex.study import report
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import SamplePlan, sample
from capax.scaling.tasks import Task, read_tasks

LEVELS = {
    "tsp": (4, 5, 6), "3sat": (4, 5), "maze": (3,), "spatial": (3, 4, 5),
    "arithmetic": (1, 2, 3, 4), "calendar": (2, 3, 4),
}  # fmt: skip
PER_LEVEL, REPEATS, TEMPERATURE, MAX_TOKENS = 8, 5, 1.0, 256
KEPT = (
    "n_instances", "worst", "average", "majority", "best", "format_failure_rate", "tokens_mean",
)  # fmt: skip


def tasks_of(work: Path) -> list[Task]:
    """Write the tasks and read them back as `capax scale sample` does."""
    lines = [
        task_line(instance)
        for name, levels in LEVELS.items()
        for instance in generate(family_named(name), levels, PER_LEVEL, 0)
    ]
    file = work / "tasks.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    return read_tasks(file)


def measure(model: str, work: Path) -> dict[str, Any]:
    """Return what the run says of each family, sampling what is missing."""
    tasks = tasks_of(work)
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
    plan = SamplePlan(REPEATS, params, 0, REPEATS, 8)

    async def draw(llm: LLM) -> None:
        with RunDirectory(work / "run", plan.settings(tasks, llm.name)) as run:
            async with LocalEndpoint(llm) as endpoint:
                await sample(endpoint, tasks, run, plan)

    with LLM(model, ctx_size=2048, n_sequences=8, parallel=40) as llm:
        asyncio.run(draw(llm))
    families = {}
    for family, played in sorted(played_of_run(work / "run", tasks).items()):
        figures = report(played)
        families[family] = {
            **{field: figures[field] for field in KEPT},
            "blind": figures["blind_best_of"][str(REPEATS)],
            "constant_answers": figures["constant_answers"],
            "levels": list(LEVELS[family]),
        }
    return {
        "model": Path(model).stem,
        "repeats": REPEATS, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS,
        "families": families,
    }  # fmt: skip


def main() -> int:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description="a model on generated tasks")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/complex"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = measure(options.model, options.work)
    (options.out / "complex_tasks.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
