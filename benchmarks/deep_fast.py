"""Does thinking pay? Two models of one size and one budget of training, one that searches.

    capax train arithmetic --task direct -o D --steps 2000 --questions 600
    capax train arithmetic --task search -o S --steps 2000 --questions 600
    python -m benchmarks.deep_fast --models models/arithmetic --work build/deep_fast

Both solve a x + b = c modulo a prime; 'direct' answers at once, 'search' writes its trials. Pools
of samples of held-out equations are drawn once; votes are exact functions of them. "Think Deep,
Think Fast" (2025, arXiv 2504.14047) at a size where everything can be counted. Writes
deep_fast.json and deep_fast.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.calibration import area_within, fit, split
from capax.scaling.compare_report import accuracy_at
from capax.scaling.marked_votes import marked_votes
from capax.scaling.markers import marker_report, read_traces
from capax.scaling.run_directory import RunDirectory, Sample, read_rows
from capax.scaling.sampling import SamplePlan, sample
from capax.scaling.selecting import Pool, exact_vote, read_pools, select
from capax.scaling.selection import Answers
from capax.scaling.tasks import Task, read_tasks
from capax.training.arithmetic import Equation, judge_prompt, revise_prompt

SEED, MAX_TOKENS, TEMPERATURE = 3, 110, 1.0
KS = (1, 2, 4, 8, 16, 32, 64)
N_CHAINS, N_ROUNDS = 8, 8
SHARES = (0.0, 0.1, 0.5, 1.0)
TRIAL = 4  # tokens of one trial
N_DRAWS = 20


def equation_of(task_id: str) -> Equation:
    """Return the equation that a question's id spells."""
    return Equation(*map(int, task_id.split("-")))


@dataclass
class Side:
    """One model with its pool; `correct`, `tokens` and `capped` are [problems, n]."""

    llm: LLM
    tasks: list[Task]
    pools: list[Pool]
    texts: list[list[str]]
    capped: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        return np.stack([pool.answers.correct for pool in self.pools])

    @property
    def tokens(self) -> np.ndarray:
        return np.stack([pool.n_tokens for pool in self.pools])


def draw(folder: Path, name: str, work: Path, n: int) -> Side:
    """Sample a model's pool, or read the one that is there."""
    tasks = read_tasks(folder / "equations.jsonl")
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
    plan = SamplePlan(n, params, SEED, choices=64, concurrency=2)
    llm = LLM(folder / f"{name}.gguf", n_sequences=64, parallel=128, threads=1)

    async def run() -> None:
        with RunDirectory(work / name, plan.settings(tasks, name)) as directory:
            async with LocalEndpoint(llm) as endpoint:
                await sample(endpoint, tasks, directory, plan)

    asyncio.run(run())
    rows = {row.key: row for row in read_rows(work / name, Sample)}
    texts = [[rows[task.id, i].text for i in range(n)] for task in tasks]
    ends = [[rows[task.id, i].finish_reason == "length" for i in range(n)] for task in tasks]
    pools = [
        without_capped(pool, np.array(cut))
        for pool, cut in zip(read_pools(work / name), ends, strict=True)
    ]
    return Side(llm, tasks, pools, texts, np.array(ends))


def without_capped(pool: Pool, capped: np.ndarray) -> Pool:
    """Return a pool in which a trace that was cut off has no answer: its last number is a trial."""
    answers = [None if cut else a for a, cut in zip(pool.answers.answers, capped, strict=True)]
    return replace(pool, answers=Answers(answers, pool.answers.correct * ~capped))


def votes(side: Side) -> list[dict[str, float]]:
    """Return accuracy and tokens of a vote of k, exactly."""
    mean = float(side.tokens.mean())
    rights = {k: np.array([exact_vote(p.answers, k) for p in side.pools]) for k in KS}
    return [
        {
            "k": k,
            "tokens": k * mean,
            "accuracy": float(right.mean()),
            "stderr": float(right.std(ddof=1) / np.sqrt(right.size)),
        }
        for k, right in rights.items()
    ]


def judged(side: Side) -> tuple[np.ndarray, float]:
    """Return what the model gives each of its answers, [problems, n], and the ROC area of that."""
    ids = {True: side.llm.tokenizer.encode(" ok")[0], False: side.llm.tokenizer.encode(" bad")[0]}
    scores = np.zeros(side.correct.shape)
    for i, (task, pool) in enumerate(zip(side.tasks, side.pools, strict=True)):
        known: dict[str, float] = {}
        for j, answer in enumerate(pool.answers.answers):
            if answer is None or not 0 <= float(answer) < 100:
                scores[i, j] = -np.inf
                continue
            if answer not in known:
                prompt = "".join(judge_prompt(equation_of(task.id), int(float(answer))))
                last = side.llm.logits(side.llm.tokenizer.encode(prompt))[-1]
                known[answer] = float(last[ids[True]] - last[ids[False]])
            scores[i, j] = known[answer]
    return scores, area(scores[side.correct == 1], scores[side.correct == 0])


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the chance that a right answer scores above a wrong one, ties counting half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left")
    at_most = np.searchsorted(order, positive, "right")
    return float((below + at_most).mean() / 2 / order.size)


def best_of(side: Side, scores: np.ndarray) -> list[dict[str, float]]:
    """Return best-of-k by the model's own judgement: mean over draws from the pool."""
    rng = np.random.default_rng(SEED)
    n = scores.shape[1]
    cost = float(side.tokens.mean()) + 12 + 1  # the judge reads the question and writes a word
    found = []
    for k in KS:
        right = np.zeros(len(side.tasks))
        for _ in range(N_DRAWS):
            at = rng.permutation(n)[:k]
            chosen = at[scores[:, at].argmax(1)]
            right += side.correct[np.arange(len(right)), chosen]
        right /= N_DRAWS
        found.append({
            "k": k, "tokens": k * cost, "accuracy": float(right.mean()),
            "stderr": float(right.std(ddof=1) / np.sqrt(right.size)),
        })  # fmt: skip
    return found


def revised(side: Side) -> dict[str, Any]:
    """Run chains of revisions, each shown its last answer; report every round."""
    first = side.correct[:, :N_CHAINS].astype(bool)
    answers = [list(pool.answers.answers[:N_CHAINS]) for pool in side.pools]
    spent = float(side.tokens.mean())
    rounds = [round_of(first, spent)]
    fixed, broken = [], []
    right = first
    for number in range(1, N_ROUNDS):
        prompts, where = [], []
        for i, task in enumerate(side.tasks):
            for j in range(N_CHAINS):
                said = answers[i][j]
                shown = int(float(said)) if said is not None and 0 <= float(said) < 100 else 0
                prompts.append("".join(revise_prompt(equation_of(task.id), shown)))
                where.append((i, j))
        params = SamplingParams(
            max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=SEED * 1000 + number
        )
        outputs = side.llm.generate(prompts, params)
        now = np.zeros_like(right)
        n_new = 0
        for (i, j), output in zip(where, outputs, strict=True):
            task = side.tasks[i]
            verdict = task.checker.judge(output.text, task.reference)
            if output.outputs[0].finish_reason == "length":
                answers[i][j], now[i, j] = None, False
            else:
                answers[i][j], now[i, j] = verdict.answer, verdict.correct
            n_new += len(output.outputs[0].token_ids)
        spent += n_new / len(prompts) + 12
        fixed.append(float((now & ~right).sum() / max(1, (~right).sum())))
        broken.append(float((~now & right).sum() / max(1, right.sum())))
        right = now
        rounds.append(round_of(right, spent))
    return {"rounds": rounds, "fixed": fixed, "broken": broken}


def round_of(right: np.ndarray, tokens: float) -> dict[str, float]:
    """Return one round's accuracy, with its error over problems."""
    means = right.mean(1)
    return {
        "tokens": tokens,
        "accuracy": float(means.mean()),
        "stderr": float(means.std(ddof=1) / np.sqrt(means.size)),
    }


def lengths(side: Side, *, with_capped: bool) -> dict[str, Any]:
    """Return whether right samples are shorter within problems, by a signed-rank test."""
    from scipy.stats import wilcoxon

    differences, spreads = [], []
    for right, tokens, capped in zip(side.correct, side.tokens, side.capped, strict=True):
        kept = np.ones(right.size, bool) if with_capped else ~capped
        a, b = tokens[kept & (right == 1)], tokens[kept & (right == 0)]
        spreads.append(tokens[kept].std() / tokens[kept].mean() if kept.any() else 0.0)
        if a.size and b.size:
            differences.append(float(np.median(a) - np.median(b)))
    test = wilcoxon(differences) if any(differences) else None
    return {
        "n_mixed": len(differences),
        "median_difference": float(np.median(differences)) if differences else 0.0,
        "p": float(test.pvalue) if test else 1.0,
        "spread_of_lengths": float(np.mean(spreads)),
    }


def truncated(side: Side) -> dict[str, dict[str, float]]:
    """Return the chance of the right answer when each trace is cut to a share of itself.

    All samples of the pool, the same for every share; " so" is forced and the next token's
    probability is exact.
    """
    llm = side.llm
    rights: dict[float, list[np.ndarray]] = {share: [] for share in SHARES}
    for task, texts in zip(side.tasks, side.texts, strict=True):
        assert isinstance(task.prompt, str)
        prompt = llm.tokenizer.encode(task.prompt)
        answer = llm.tokenizer.encode(f" {task.reference}")[0]
        so = llm.tokenizer.encode(" so")[0]
        known: dict[tuple[int, ...], float] = {}
        traces = [llm.tokenizer.encode(text.partition(" so")[0]) for text in texts]
        for share in SHARES:
            chances = []
            for trace in traces:
                kept = tuple(trace[: int(share * len(trace) / TRIAL) * TRIAL])
                if kept not in known:
                    row = llm.logits([*prompt, *kept, so])[-1].astype(np.float64) / TEMPERATURE
                    odds = np.exp(row - row.max())
                    known[kept] = float(odds[answer] / odds.sum())
                chances.append(known[kept])
            rights[share].append(np.array(chances))
    means = {share: np.array([r.mean() for r in found]) for share, found in rights.items()}
    found = {}
    for before, share in zip((None, *SHARES), SHARES, strict=False):
        step = means[share] - (means[before] if before is not None else 0)
        found[str(share)] = {
            "accuracy": float(means[share].mean()),
            "step_stderr": float(step.std(ddof=1) / np.sqrt(step.size)),
        }
    return found


def marks_of(side: Side, path: Path) -> dict[str, Any]:
    """Return what length and words tell, and votes by marks fitted on other equations."""
    traces = read_traces(path)
    dev, test = split(traces)
    calibration = fit(dev)
    return {
        "report": asdict(marker_report(traces)),
        "marks": str(calibration.marks),
        "n_fitted": len(calibration.problem_hashes),
        "area": asdict(area_within(calibration, test)),
        "votes": [asdict(marked_votes(side.pools, test, calibration, k)) for k in (2, 3, 4, 8, 16)],
    }


def statements(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is claimed, the figure, its bound, and whether it holds."""
    search, direct = found["search_votes"], found["direct_votes"]
    selected, cut, area = found["selected_16"][0], found["truncated"], found["marks"]["area"]
    lengths = found["lengths_without_capped"]
    common = direct[-1]["tokens"]
    rows = [
        (
            "one trace of the model that searches, less the best vote of the other",
            search[0]["accuracy"] - max(r["accuracy"] for r in direct),
            0.0,
        ),
        (
            f"the same at {common:.0f} tokens",
            (_at(search, common) or 0.0) - direct[-1]["accuracy"],
            0.1,
        ),
        *_worst("best of n", search, found["best_of"]),
        *_worst("revision", search, found["revision"]["rounds"]),
        (
            "vote of the shortest 8 of 16, less that of all",
            selected["short"] - selected["vote"],
            -0.005,
        ),
        ("equations with right and wrong traces that ended", lengths["n_mixed"], 50),
        ("chance that marks weigh a right trace above a wrong one", area["mean"], 0.55),
        ("the same with verdicts shuffled, off one half", -abs(area["shuffled"] - 0.5), -0.03),
        *(
            (
                f"a trace cut to {float(high):.0%}, less one cut to {float(low):.0%}",
                cut[high]["accuracy"] - cut[low]["accuracy"],
                -2 * cut[high]["step_stderr"],
            )
            for low, high in pairwise(cut)
        ),
        (
            "the direct model, less a trace cut to nothing",
            direct[0]["accuracy"] - cut["0.0"]["accuracy"],
            -0.03,
        ),
    ]
    return [
        {"statement": text, "measured": value, "at_least": bound, "holds": bool(value >= bound)}
        for text, value, bound in rows
    ]


def _worst(
    name: str, votes: list[dict[str, float]], others: list[dict[str, float]]
) -> list[tuple[str, float, float]]:
    """Return the vote less another strategy at equal tokens, where it looks worst for the vote."""
    found = []
    for row in votes:
        other, error = (_at(others, row["tokens"], name) for name in ("accuracy", "stderr"))
        if other is not None and error is not None:
            bound = -(0.01 + 2 * (error**2 + row["stderr"] ** 2) ** 0.5)
            found.append((row["accuracy"] - other, bound, row["tokens"]))
    value, bound, tokens = min(found)
    return [(f"the vote, less {name}, at {tokens:.0f} tokens, its worst", value, bound)]


def _at(rows: list[dict[str, float]], tokens: float, name: str = "accuracy") -> float | None:
    return accuracy_at([(r["tokens"], r[name]) for r in rows], tokens)


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy over tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, rows, style in (
        ("direct model, vote", found["direct_votes"], "o--"),
        ("search model, vote", found["search_votes"], "o-"),
        ("search model, best by its own judgement", found["best_of"], "s-"),
        ("search model, revision", found["revision"]["rounds"], "^-"),
    ):
        axes.errorbar(
            [r["tokens"] for r in rows], [r["accuracy"] for r in rows],
            [r["stderr"] for r in rows], fmt=style, ms=4, capsize=2, label=label,
        )  # fmt: skip
    axes.set(xscale="log", ylim=(0, 1), xlabel="new tokens per question, and prompts read again")
    axes.set_ylabel("share of equations solved")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Draw the pools, judge, keep and show."""
    parser = argparse.ArgumentParser(description="a model that searches beside one that answers")
    parser.add_argument("--models", type=Path, default=Path("models/arithmetic"))
    parser.add_argument("--work", type=Path, default=Path("build/deep_fast"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("-n", type=int, default=64)
    options = parser.parse_args()
    direct = draw(options.models, "direct", options.work, options.n)
    search = draw(options.models, "search", options.work, options.n)
    scores, roc = judged(search)
    found = {
        "n_problems": len(search.tasks),
        "n_samples": options.n,
        "temperature": TEMPERATURE,
        "direct_votes": votes(direct),
        "search_votes": votes(search),
        "distinct_answers": {
            name: float(np.mean([len(set(p.answers.answers)) for p in side.pools]))
            for name, side in (("direct", direct), ("search", search))
        },
        "capped": float(search.capped.mean()),
        "judge_roc_area": roc,
        "best_of": best_of(search, scores),
        "revision": revised(search),
        "lengths": lengths(search, with_capped=True),
        "lengths_without_capped": lengths(search, with_capped=False),
        "selected_16": [vars_of(row) for row in select(search.pools, [16])],
        "truncated": truncated(search),
        "marks": marks_of(search, options.work / "search"),
    }
    found["statements"] = statements(found)
    (options.out / "deep_fast.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found, options.out / "deep_fast.png")
    print(json.dumps(found, indent=1))
    return 0


def vars_of(row: Any) -> dict[str, float]:
    """Return a row's figures by name."""
    return {name: getattr(row, name) for name in row.__slots__}


if __name__ == "__main__":
    sys.exit(main())
