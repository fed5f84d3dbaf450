"""Judges that lie, and many names of one liar, in the swarm that was trained here.

    python -m benchmarks.swarm_liars --models models/swarm [--questions 150]

Five nodes (`capax train swarm`) answer and judge. Liars judge too: nodes of the same five whose
every verdict is turned round, which is the worst that a judge able to tell can do. Each stands
under a name of its own. Weighed are the same comparisons in three ways: all alike; liars as
newcomers that were just admitted, before any gold question; and by what every judge earned on gold.
Every verdict comes from the engine. Writes swarm_liars.json and swarm_liars.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.swarm import open_nodes, question_of
from capax.scaling.swarm.admission import read_challenges
from capax.scaling.swarm.bench import Question, calibrate, voted
from capax.scaling.swarm.consensus import Node, SwarmResult, ask, strengths
from capax.scaling.swarm.judging import Templates, Verdict
from capax.scaling.swarm.reputation import Record, weights
from capax.scaling.tasks import read_tasks

LIARS = (0, 2, 4, 6, 10, 20)
WAYS = ("equal weights", "newcomers", "reputation")
TURNED: Mapping[Verdict, Verdict] = {"A": "B", "B": "A", "U": "U"}


@dataclass(frozen=True, kw_only=True)
class Turned(Templates):
    """Judges as its model does, and says the opposite."""

    def verdict(self, reply: str) -> Verdict:
        return TURNED[super().verdict(reply)]


def liars(honest: Sequence[Node], n: int) -> list[Node]:
    """Return `n` judges that lie, each under a name of its own."""
    found = []
    for i in range(n):
        node = honest[i % len(honest)]
        assert isinstance(node.prompts, Templates)
        fields = {name: getattr(node.prompts, name) for name in node.prompts.__dataclass_fields__}
        found.append(replace(node, id=f"liar{i}", answers=False, prompts=Turned(**fields)))
    return found


def chosen(result: SwarmResult, judges: Mapping[str, float]) -> str:
    """Return the answer that the comparisons of these judges choose."""
    kept = range(len(result.answers))
    made = [c for c in result.comparisons if c.judge in judges]
    theta, _ = strengths(result.answers, kept, made, judges)
    counts = [len(authors) for authors in result.authors]
    return result.answers[max(kept, key=lambda i: (theta[i], counts[i]))]


def trust(way: str, names: Sequence[str], records: Mapping[str, Record]) -> dict[str, float]:
    """Return the judges' weights in one of `WAYS`."""
    if way == "equal weights":
        return dict.fromkeys(names, 1.0)
    known = {name: records[name] for name in names}
    if way == "newcomers":
        new = Record(is_admitted=True)
        known = {name: new if name.startswith("liar") else r for name, r in known.items()}
    return weights(known)


async def measure(models: Path, n_questions: int) -> dict[str, Any]:
    """Ask every question once of all judges; weigh the verdicts of every group of them."""
    questions = [question_of(task) for task in read_tasks(models / "questions.jsonl")]
    questions = questions[:n_questions]
    gold = read_challenges(models / "gold.jsonl")
    async with AsyncExitStack() as stack:
        opened = await open_nodes(models, stack)
        honest = [node for name, node in opened.items() if name != "deaf"]
        false = liars(honest, max(LIARS))
        records = await calibrate([*honest, *false], gold[:25])
        results = []
        for number, question in enumerate(questions):
            results.append(await ask(question.text, [*honest, *false], seed=number))
            if number % 10 == 9:
                print(f"{number + 1} of {len(questions)} questions", flush=True)
    return {
        "source": "engine",
        "n_questions": len(questions),
        "n_gold": 25,
        "reputation": {name: record.reputation for name, record in records.items()},
        "vote": float(np.mean([_vote(r, q) for r, q in zip(results, questions, strict=True)])),
        "liars": {str(k): _weighed(k, honest, results, questions, records) for k in LIARS},
    }


def _vote(result: SwarmResult, question: Question) -> float:
    pairs = zip(result.answers, result.authors, strict=True)
    return voted([text for text, authors in pairs for _ in authors], question)


def _weighed(
    k: int, honest: Sequence[Node], results: Sequence[SwarmResult],
    questions: Sequence[Question], records: Mapping[str, Record],
) -> dict[str, Any]:  # fmt: skip
    names = [node.id for node in honest] + [f"liar{i}" for i in range(k)]
    found = {}
    for way in WAYS:
        given = trust(way, names, records)
        right = [
            q.is_right(chosen(r, given)) for r, q in zip(results, questions, strict=True)
        ]  # fmt: skip
        lying = sum(w for name, w in given.items() if name.startswith("liar"))
        found[way] = {"right": float(np.mean(right)), "weight": lying / sum(given.values())}
    return found


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy over the number of liars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for way, style in zip(WAYS, ("s--", "D-", "o-"), strict=True):
        size = 10 if way == "newcomers" else 5  # seen behind the line that covers it
        values = [found["liars"][str(k)][way]["right"] for k in LIARS]
        axes.plot(LIARS, values, style, label=way, markersize=size)
    axes.axhline(found["vote"], color="0.5", linestyle=":", label="vote on the same answers")
    axes.set(xlabel="liars beside five honest judges", ylabel="right", ylim=(-0.03, 1.05))
    axes.set_xticks(LIARS)
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.7), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description="liars among the judges of a trained swarm")
    parser.add_argument("--models", type=Path, default=Path("models/swarm"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--questions", type=int, default=150)
    options = parser.parse_args()
    found = asyncio.run(measure(options.models, options.questions))
    (options.out / "swarm_liars.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "swarm_liars.png")
    print(json.dumps(found["liars"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
