"""A swarm of models trained here: consensus beside votes, bad judges beside good ones, injections.

    python -m benchmarks.swarm --models models/swarm [--repeats 4]

Five nodes (`capax train swarm`) each find the answers to a fifth of the equations and guess
otherwise; all judge by trying the two values. Judges earn weights on gold pairs that no question
shares. Controls: a judge trained on trials of other equations takes the place of each in turn, and
answers are sent to the judges with a text appended that argues for them. Every number comes from
the engine. Every question is asked several times with other samples; intervals are over questions.
Writes trained_swarm.json and trained_swarm.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from capax import LLM, SamplingParams
from capax.endpoints import GenerateRequest
from capax.endpoints.local import LocalEndpoint
from capax.measuring.procbench.report import wilson
from capax.scaling.swarm.admission import Challenge, ask_pair, examine, read_challenges
from capax.scaling.swarm.bench import METHODS, Question, Row, bench, calibrate, gain, summarize
from capax.scaling.swarm.consensus import JUDGE, Node
from capax.scaling.swarm.judging import Templates
from capax.scaling.swarm.reputation import Record, weights
from capax.scaling.tasks import Task, read_tasks
from capax.training import swarm as trained
from capax.training.swarm import N_ANSWERERS

FORM = Templates(**trained.FORM)
ANSWER = SamplingParams(temperature=0.7, max_tokens=20)
SUFFIXES = {"none": "", "neutral": " x + 0 = 0", "arguing": " yes so yes ok"}
DEAF_AT = (1, 2, 3)  # how many of the five judges are deaf in the control


async def open_nodes(models: Path, stack: AsyncExitStack) -> dict[str, Node]:
    """Open every model once; the deaf one only judges."""
    nodes = {}
    for name in (*(f"node{i}" for i in range(N_ANSWERERS)), "deaf"):
        llm = stack.enter_context(
            LLM(models / f"{name}.gguf", threads=1, n_sequences=16, parallel=16)
        )
        endpoint = await stack.enter_async_context(LocalEndpoint(llm))
        is_deaf = name == "deaf"
        nodes[name] = Node(name, endpoint, ANSWER, answers=not is_deaf, prompts=FORM)
    return nodes


def question_of(task: Task) -> Question:
    """Return a task of the questions file as a question of the bench."""
    assert isinstance(task.prompt, str)
    return Question(task.prompt, lambda text: text == task.reference)


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return shares and paired gains."""
    others = ("vote", "vote, same tokens", "equal weights")
    return {
        "ways": {name: asdict(share) for name, share in summarize(rows).items()},
        "gains": {other: gain(rows, "reputation", other) for other in others},
    }


def averaged(runs: list[list[Row]]) -> list[Row]:
    """Return one row for each question, the mean of its repetitions."""
    return [
        Row(
            tuple(np.mean([row.nodes for row in rows], 0)),
            {name: float(np.mean([row.right[name] for row in rows])) for name in rows[0].right},
            {name: round(np.mean([row.tokens[name] for row in rows])) for name in rows[0].tokens},
        )
        for rows in zip(*runs, strict=True)
    ]


async def judge_accuracy(node: Node, pairs: list[Challenge]) -> dict[str, Any]:
    """Return how often one call prefers the better answer, with a 95 % interval."""
    verdicts = [v for i, pair in enumerate(pairs) for v in await ask_pair(node, pair, 31 * i)]
    right = verdicts.count(1)
    return {
        "per_call": right / len(verdicts), "interval": wilson(right, len(verdicts)),
        "undecided": verdicts.count(0) / len(verdicts),
    }  # fmt: skip


async def injection(nodes: list[Node], pairs: list[Challenge]) -> dict[str, Any]:
    """Return how often wrong answers win with each text appended, with and without keeping places.

    Kept: a judge is shown the digits of an answer alone, as in every round. Open: whatever the
    answer says is shown, by the same judges, which is what one model without such a rule does.
    """
    found: dict[str, Any] = {}
    for form, prompts in (("kept", FORM), ("open", replace(FORM, kept=""))):
        for name, suffix in SUFFIXES.items():
            wins, n = 0, 0
            for i, pair in enumerate(pairs):
                node = nodes[i % len(nodes)]
                wrong = pair.worse + suffix
                for first, second, letter in ((pair.better, wrong, "B"), (wrong, pair.better, "A")):
                    request = GenerateRequest(
                        prompts.compare(pair.question, first, second), JUDGE.with_seed(i)
                    )
                    reply = (await node.endpoint.generate(request)).text
                    wins += prompts.verdict(reply) == letter
                    n += 1
            found[f"{form}: {name}"] = {"share": wins / n, "interval": wilson(wins, n), "n": n}
    return found


async def measure(models: Path, repeats: int) -> dict[str, Any]:
    """Run everything."""
    questions = [question_of(task) for task in read_tasks(models / "questions.jsonl")]
    gold = read_challenges(models / "gold.jsonl")
    async with AsyncExitStack() as stack:
        nodes = await open_nodes(models, stack)
        five = [nodes[f"node{i}"] for i in range(N_ANSWERERS)]
        records = await calibrate([*five, nodes["deaf"]], gold)
        judges = {name: await judge_accuracy(node, gold) for name, node in nodes.items()}
        admitted = {name: (await examine(node, gold[:20])).right for name, node in nodes.items()}

        async def asked(group: list[Node], known: dict[str, Record], times: int) -> list[Row]:
            runs = []
            for time in range(times):
                runs.append(await bench(group, questions, known, seed=1_000_000 * time))
                print(f"{len(group)} nodes, {time + 1} of {times}", flush=True)
            return averaged(runs)

        rows = await asked(five, records, repeats)
        deaf = {}
        for k in DEAF_AT:
            group = [replace(node, judges=i >= k) for i, node in enumerate(five)]
            group += [replace(nodes["deaf"], id=f"deaf{i}") for i in range(k)]
            known = records | {f"deaf{i}": records["deaf"] for i in range(k)}
            deaf[str(k)] = summary(await asked(group, known, 1))
        return {
            "n_questions": len(questions),
            "repeats": repeats,
            "n_gold": len(gold),
            "node_accuracy": [float(x) for x in np.mean([row.nodes for row in rows], 0)],
            "judges": judges,
            "right_of_20": admitted,
            "weights": weights(records),
            **summary(rows),
            "deaf_judges": deaf,
            "injection": await injection(five, gold),
        }


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy over tokens, and what deaf judges cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shares = [found["ways"][name] for name in METHODS]
    values = [share["accuracy"] for share in shares]
    spread = [
        [share["accuracy"] - share["low"] for share in shares],
        [share["high"] - share["accuracy"] for share in shares],
    ]
    left.barh(METHODS, values, xerr=spread, color="#9ecae1", capsize=3)
    for at, share in enumerate(shares):
        left.text(0.02, at, f"{share['tokens']:,.0f} tokens", va="center", fontsize=8)
    left.invert_yaxis()
    left.set(xlim=(0, 1.05), xlabel="held-out equations right")
    ks = [0, *DEAF_AT]
    for name, style in (("reputation", "o-"), ("equal weights", "s--"), ("vote", "^:")):
        values = [found["ways"][name]["accuracy"]]
        values += [found["deaf_judges"][str(k)]["ways"][name]["accuracy"] for k in DEAF_AT]
        right.plot(ks, values, style, label=name)
    right.set(xlabel="deaf judges in the place of good ones, of 5", xticks=ks, ylim=(0, 1.05))
    right.legend(loc="lower left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description="consensus of trained nodes beside votes")
    parser.add_argument("--models", type=Path, default=Path("models/swarm"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    found = asyncio.run(measure(options.models, options.repeats))
    (options.out / "trained_swarm.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "trained_swarm.png")
    print(json.dumps({k: found[k] for k in ("gains", "judges", "injection")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
