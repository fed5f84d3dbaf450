"""Models trained here on generated tasks: at once and by search, alone and with a critic.

    python -m benchmarks.players --models models/players --work build/players

Held-out formulas and tours of learnt and of harder levels are answered 256 times by each player
(`capax train players`), then again in rounds, by a critic who says what is wrong and by one who
says only that it is. Answers stay in --work, where the same command goes on. Writes players.json
and players.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.players_picture import picture
from capax import LLM, SamplingParams
from capax.endpoints import Message
from capax.endpoints.local import LocalEndpoint
from capax.scaling.complex import Instance, family_named
from capax.scaling.complex.critic import Critic, OracleCritic, Rounds
from capax.scaling.complex.families import task_line
from capax.scaling.complex.players.formulas import LEARNT_VARIABLES
from capax.scaling.complex.players.held_out import ASKED_LEVELS, held_out
from capax.scaling.complex.players.tours import LEARNT_CITIES
from capax.scaling.complex.sequential_run import instances_of, run_sequential, table
from capax.scaling.complex.stored import played_of_run
from capax.scaling.complex.study import Played, best_of, blind_best_of, gap_band, report
from capax.scaling.rank_tests import midranks
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import SamplePlan, sample
from capax.scaling.tasks import Task, read_tasks

LEARNT = {"tsp": LEARNT_CITIES, "3sat": LEARNT_VARIABLES}
IN_ROUNDS = {"tsp": (6, 7), "3sat": (5, 6, 7, 8)}
REPEATS, SAMPLES, ROUNDS, SEEDS = 5, 256, 8, 4
PER_LEVEL = {"tsp": 16, "3sat": 16}
TASK_SEED = 11  # of tasks that nobody looked at while the players were made
PARAMS = SamplingParams(max_tokens=400, temperature=1.0)
KEPT = (
    "n_instances", "worst", "average", "majority", "best", "sd_over_repeats",
    "format_failure_rate", "tokens_mean",
)  # fmt: skip


class MuteCritic:
    """Says nothing but that the answer is wrong."""

    async def feedback(
        self, instance: Instance, messages: list[Message], answer: str | None, seed: int
    ) -> tuple[str, int]:
        """Return an encouragement."""
        return "Try again.", 0


CRITICS: dict[str, Critic] = {"oracle": OracleCritic(), "mute": MuteCritic()}


class Answers(NamedTuple):
    """What a player answered: samples of every task, and runs by critic."""

    samples: list[Played]
    runs: dict[str, list[Rounds]]


def tasks_of(family: str, work: Path) -> list[Task]:
    """Write held-out tasks once, and read them as `capax scale sample` does."""
    path = work / f"{family}.jsonl"
    if not path.exists():
        made = (
            held_out(family_named(family), v, PER_LEVEL[family], TASK_SEED)
            for v in ASKED_LEVELS[family]
        )
        path.write_text("".join(task_line(i) + "\n" for level in made for i in level))
    return read_tasks(path)


def play(model: Path, tasks: list[Task], family: str, work: Path) -> Answers:
    """Return a player's answers, asking for what is missing."""
    name = model.stem
    plan = SamplePlan(SAMPLES, PARAMS, 0, 64, 2)
    asked = [i for i in instances_of(tasks) if i.level in IN_ROUNDS[family]]
    runs: dict[str, list[Rounds]] = {critic: [] for critic in CRITICS}

    async def ask(llm: LLM) -> None:
        async with LocalEndpoint(llm) as endpoint:
            with RunDirectory(work / name, plan.settings(tasks, name)) as run:
                await sample(endpoint, tasks, run, plan)
            for critic, seed in ((c, s) for c in CRITICS for s in range(SEEDS)):
                settings = {"model": name, "critic": critic, "seed": seed, "rounds": ROUNDS}
                runs[critic] += await run_sequential(
                    endpoint, asked, CRITICS[critic], PARAMS,
                    work / f"{name}-{critic}-{seed}.jsonl", settings,
                    rounds=ROUNDS, seed=seed, concurrency=32,
                )  # fmt: skip

    with LLM(model, threads=1, n_sequences=64, parallel=64) as llm:
        asyncio.run(ask(llm))
    found = {p.instance.key: p for p in played_of_run(work / name, tasks)[family]}
    return Answers([found[i.key] for i in instances_of(tasks)], runs)


def first(played: Sequence[Played], n: int) -> list[Played]:
    """Return the first `n` answers to each instance."""
    return [Played(p.instance, p.answers[:n], p.correct[:n], p.tokens[:n]) for p in played]


def figures(played: list[Played], learnt: Sequence[int]) -> dict[str, Any]:
    """Return five repeats by level and over what was learnt."""
    few = report(first(played, REPEATS))
    by_level = {
        level: {**{k: row[k] for k in KEPT}, "blind": row["blind_best_of"][str(REPEATS)]}
        for level, row in few["by_level"].items()
    }
    those = [p for p in played if p.instance.level in learnt]
    known, whole = report(first(those, REPEATS)), report(those)
    return {
        "learnt": {**{k: known[k] for k in KEPT}, "blind": known["blind_best_of"][str(REPEATS)]},
        "constant_answers": known["constant_answers"],
        "by_truth": {kind: row["average"] for kind, row in whole["by_truth"].items()},
        "by_level": by_level,
        "by_level_whole": by_level_whole(played),
    }


def by_level_whole(played: list[Played]) -> dict[str, Any]:
    """Return averages, tokens and best of n of all samples, beside blind guesses."""
    found: dict[str, Any] = {}
    for level in sorted({p.instance.level for p in played}):
        those = [p for p in played if p.instance.level == level]
        ns = [2**i for i in range(SAMPLES.bit_length())]
        best = [float(best_of(those, n).mean()) for n in ns]
        found[str(level)] = {
            "n": ns,
            "best": best,
            "blind": [blind_best_of(those, n) for n in ns],
            "gain": best[-1] - best[0],
            "tokens": float(np.mean([p.tokens.mean() for p in those])),
        }
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the correlation of ranks, of which equal values share the middle one."""
    return float(np.corrcoef(midranks(np.array(a)), midranks(np.array(b)))[0, 1])


def trends(whole: dict[str, Any], learnt: Sequence[int]) -> dict[str, float]:
    """Return how accuracy and tokens follow the level: all levels, and the learnt ones' tokens."""
    levels = [int(v) for v in whole]
    known = [v for v in levels if v in learnt]
    return {
        "accuracy": spearman(levels, [whole[str(v)]["best"][0] for v in levels]),
        "accuracy_learnt": spearman(known, [whole[str(v)]["best"][0] for v in known]),
        "tokens_learnt": spearman(known, [whole[str(v)]["tokens"] for v in known]),
    }


def sequential(answers: Answers, family: str) -> dict[str, Any]:
    """Return rounds by critic, beside independent samples at equal calls."""
    those = [p for p in answers.samples if p.instance.level in IN_ROUNDS[family]]
    return {critic: table(runs, those, ROUNDS) for critic, runs in answers.runs.items()}


def measure(models: Path, work: Path) -> dict[str, Any]:
    """Return everything."""
    families: dict[str, Any] = {}
    for family, learnt in LEARNT.items():
        tasks = tasks_of(family, work)
        played = {
            kind: play(models / f"{family}-{kind}.gguf", tasks, family, work)
            for kind in ("direct", "search")
        }
        known = {
            kind: [p for p in a.samples if p.instance.level in learnt] for kind, a in played.items()
        }
        rows = {kind: figures(a.samples, list(learnt)) for kind, a in played.items()}
        families[family] = {
            "learnt_levels": list(learnt),
            "per_level": PER_LEVEL[family],
            "levels_in_rounds": list(IN_ROUNDS[family]),
            "players": {
                kind: {
                    **json.loads((models / f"{family}-{kind}.json").read_text()),
                    **row,
                    "spearman_with_level": trends(row["by_level_whole"], list(learnt)),
                    "sequential": sequential(played[kind], family),
                }
                for kind, row in rows.items()
            },
            "gap": gap_band({"search": known["search"]}, {"direct": known["direct"]}, n=REPEATS),
        }
    return {
        "repeats": REPEATS, "samples": SAMPLES, "seeds": SEEDS,
        "temperature": PARAMS.temperature, "families": families,
    }  # fmt: skip


def main() -> int:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description="trained players of generated tasks")
    parser.add_argument("--models", type=Path, default=Path("models/players"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/players"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = measure(options.models, options.work)
    (options.out / "players.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "players.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
