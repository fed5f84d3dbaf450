"""XL3M against other ways to choose what a small window reads: does it find the needle?

    python -m benchmarks.xl3m --model smollm2-135m --text prose.txt --out benchmarks/results

Needles (a pass key, the magic number of a city with and without other cities, the same asked in
other words) lie at stratified depths of real prose. Every selector fills the same window and the
same model answers greedily, so what differs is the selection: XL3M by three of its scores, BM25,
random segments, head and tail, and an oracle that knows the needle's segment, which is the ceiling.
Rows are kept in DIR/xl3m.jsonl as they come; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capax import LLM, SamplingParams
from capax.scaling import xl3m
from capax.scaling.long_text import LongText

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
CITIES = ["Lisbon", "Oslo", "Quito", "Dakar", "Kyoto", "Turin", "Perth", "Minsk", "Lima", "Cairo"]
SCORES: tuple[xl3m.Score, ...] = ("entropy", "question_nll", "both")
SHOWN = ["oracle", "both", "question_nll", "entropy", "bm25", "random", "head_tail"]


@dataclass(frozen=True)
class Case:
    """One prompt: its needle lies in `stratum` of as many parts as the text has segments."""

    experiment: str
    kind: str
    number: int
    n_tokens: int  # of the text, before the needle
    stratum: float  # in [0, 1)

    @property
    def key(self) -> str:
        return f"{self.experiment}/{self.kind}/{self.number}"


def needle_of(case: Case, rng: random.Random) -> tuple[str, str, str, list[str]]:
    """Return the needle, the question, the digits to answer, and further needles that mislead."""
    value = str(rng.randrange(10_000, 100_000))
    city, *others = rng.sample(CITIES, 3)
    if case.kind == "pass_key":
        return (
            f"The pass key is {value}. Remember it. {value} is the pass key.",
            "The pass key is",
            value,
            [],
        )
    if case.kind == "other_words":
        return (
            f"To open the vault, type {value} on the keypad.",
            "The code of the safe is",
            value,
            [],
        )
    misleading = []
    if case.kind == "cities":
        misleading = [
            f"The magic number for {other} is {rng.randrange(10_000, 100_000)}." for other in others
        ]
    return (
        f"The magic number for {city} is {value}.",
        f"The magic number for {city} is",
        value,
        misleading,
    )


def haystack(
    llm: LLM, prose: Sequence[int], case: Case, rng: random.Random
) -> tuple[str, str, str, str]:
    """Return text, question, answer and needle."""
    needle, question, value, misleading = needle_of(case, rng)
    start = rng.randrange(max(len(prose) - case.n_tokens, 1))
    ids = list(prose[start : start + case.n_tokens])
    at = int(case.stratum * len(ids))
    places = [(at, needle), *((rng.randrange(len(ids)), other) for other in misleading)]
    text = ""
    begin = 0
    for place, sentence in sorted(places):
        text += llm.tokenizer.decode(ids[begin:place], at_start=False) + f" {sentence} "
        begin = place
    return text + llm.tokenizer.decode(ids[begin:], at_start=False), question, value, needle


def bm25(query: Sequence[int], documents: Sequence[Sequence[int]]) -> list[float]:
    """Okapi BM25 over token ids (Robertson and Zaragoza, 2009): k1 = 1.5, b = 0.75."""
    counts = [Counter(document) for document in documents]
    mean = statistics.fmean(len(document) for document in documents)
    found = Counter(token for count in counts for token in count)
    values = []
    for count, document in zip(counts, documents, strict=True):
        value = 0.0
        for token in set(query):
            idf = math.log(1 + (len(documents) - found[token] + 0.5) / (found[token] + 0.5))
            tf = count[token]
            value += idf * tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * len(document) / mean))
        values.append(value)
    return values


def measure(llm: LLM, prose: Sequence[int], case: Case, options: xl3m.Options) -> dict[str, Any]:
    """Score the segments of one text once, then answer with every selector."""
    rng = random.Random(f"capax xl3m {case.key}")
    text, question, value, needle = haystack(llm, prose, case, rng)
    frame = xl3m.frame_of(llm, question, False)
    fitted = xl3m.fitted(options, llm.context_len - 12, frame)
    keep = fitted.keep
    with LongText(llm.tokenizer, text) as tokens:
        spans = list(tokens.segments(fitted.segment, fitted.overlap, snap=options.snap))
        holds = [needle in tokens.text(*span) for span in spans]
        if not any(holds):  # cut by a border: nearest is whoever has its first half
            holds = [needle[: len(needle) // 2] in tokens.text(*span) for span in spans]
        reader = xl3m.Reader(llm, frame, fitted, options.together)
        started = time.perf_counter()
        segments = reader.score(tokens, spans, None)
        scoring_s = time.perf_counter() - started
        bodies = [tokens.tokens(*span) for span in spans]
        right = holds.index(True) if any(holds) else -1
        neighbours = [i for i in range(len(spans)) if i != right]
        chosen = {score: order(xl3m.ranks(segments, score))[:keep] for score in SCORES}
        chosen["bm25"] = order([-v for v in bm25(frame.question, bodies)])[:keep]
        chosen["random"] = rng.sample(range(len(spans)), keep)
        chosen["head_tail"] = [*range(keep - keep // 2), *range(len(spans) - keep // 2, len(spans))]
        if right >= 0:
            chosen["oracle"] = [right, *rng.sample(neighbours, keep - 1)]
        answered, prompt_tokens = {}, {}
        for name, kept in chosen.items():
            merged = xl3m.splice([spans[i] for i in kept], False)
            prompt = xl3m.key_context(tokens, frame, merged)
            answered[name] = llm.generate(prompt, GREEDY).text.strip().startswith(value)
            prompt_tokens[name] = len(prompt)
    ranks = {
        score: min(
            (order(xl3m.ranks(segments, score)).index(i) for i, h in enumerate(holds) if h),
            default=-1,
        )
        for score in SCORES
    }
    return {
        **asdict(case),
        "key": case.key,
        "n_segments": len(spans),
        "keep": keep,
        "rank": ranks,
        "hit": {name: any(holds[i] for i in kept) for name, kept in chosen.items()},
        "answered": answered,
        "prompt_tokens": prompt_tokens,
        "scored_tokens": reader.n_scored,
        "scoring_s": scoring_s,
        "auroc": auroc([-s.entropy for s in segments], holds),
        "entropies": [round(s.entropy, 4) for s in segments] if len(segments) < 20 else None,
        "holds": holds if len(segments) < 20 else None,
    }


def order(values: Sequence[float]) -> list[int]:
    """Return indices by value, of equal ones the earlier first."""
    return sorted(range(len(values)), key=lambda i: (values[i], i))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Return the chance that a positive scores above a negative one."""
    up = [s for s, p in zip(scores, positive, strict=True) if p]
    down = [s for s, p in zip(scores, positive, strict=True) if not p]
    if not up or not down:
        return None
    return statistics.fmean((a > b) + 0.5 * (a == b) for a in up for b in down)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson, 1927)."""
    if not n:
        return 0.0, 1.0
    z = 1.959964
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def cases(quick: bool) -> Iterator[tuple[Case, xl3m.Options]]:
    """Yield every prompt and how its text is read."""
    window = xl3m.Options(segment=256, overlap=0, keep=3, snap=False, chat=False)
    for kind, n in (("pass_key", 50), ("city", 50), ("cities", 20), ("other_words", 20)):
        for i in range(n // 10 if quick else n):
            stratum = (i % 12 + 0.5) / 12
            yield Case("12 segments", kind, i, 12 * 256 - 24, stratum), window
    long = xl3m.Options(segment=512, overlap=64, keep=4, chat=False)
    for name, size, n in (("16 K", 16 << 10, 2), ("32 K", 32 << 10, 20), ("128 K", 128 << 10, 10)):
        for i in range(1 if quick else n):
            kind = ("pass_key", "city")[i % 2]
            yield Case(name, kind, i, size, (i + 0.5) / n), long


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rates with intervals by experiment and kind."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['experiment']}: {row['kind']}", []).append(row)
        groups.setdefault(f"{row['experiment']}: all", []).append(row)
    return {name: _rates(group) for name, group in groups.items()}


def _rates(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def rate(values: Iterable[bool]) -> dict[str, Any]:
        values = list(values)
        return {
            "n": len(values),
            "rate": sum(values) / max(len(values), 1),
            "interval": wilson(sum(values), len(values)),
        }

    aurocs = [row["auroc"] for row in rows if row["auroc"] is not None]
    oracle = sum(row["answered"].get("oracle", False) for row in rows)
    return {
        "answered": {
            s: rate(row["answered"][s] for row in rows if s in row["answered"]) for s in SHOWN
        },
        "hit": {s: rate(row["hit"][s] for row in rows if s in row["hit"]) for s in SHOWN},
        "answered_over_oracle": {
            s: sum(row["answered"][s] for row in rows) / oracle if oracle else None
            for s in SHOWN
            if s != "oracle"
        },
        "auroc_within_questions": statistics.fmean(aurocs) if aurocs else None,
        "scored_tokens_per_second": sum(r["scored_tokens"] for r in rows)
        / sum(r["scoring_s"] for r in rows),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the share of prompts answered, by selector and length."""
    from matplotlib.figure import Figure

    groups = [g for g in ("12 segments: all", "32 K: all", "128 K: all") if g in result["summary"]]
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for j, group in enumerate(groups):
        rates = [result["summary"][group]["answered"][s] for s in SHOWN]
        xs = [i + (j - (len(groups) - 1) / 2) * width for i in range(len(SHOWN))]
        heights = [r["rate"] for r in rates]
        below = [max(r["rate"] - r["interval"][0], 0) for r in rates]
        above = [max(r["interval"][1] - r["rate"], 0) for r in rates]
        label = f"{group.partition(':')[0]} ({rates[0]['n']} prompts)"
        axes.bar(xs, heights, width * 0.92, yerr=[below, above], capsize=2, label=label)
    axes.set_xticks(range(len(SHOWN)), [s.replace("_", " ") for s in SHOWN])
    axes.set_ylabel("share answered exactly")
    axes.set_ylim(0, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        "Who selects the segments that SmolLM2-135M answers from (95 % intervals)", fontsize=9
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is missing, then write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True, help="prose, 150 K tokens or more")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the prompts")
    parser.add_argument("--work", type=Path, help="where rows are kept; default: build/xl3m")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    o = parser.parse_args()
    work = o.work or Path("build/xl3m")
    work.mkdir(parents=True, exist_ok=True)
    log = work / ("quick.jsonl" if o.quick else "rows.jsonl")
    name = "xl3m-quick" if o.quick else "xl3m"
    if not o.draw:
        rows = run(o.model, o.text, log, o.quick, o.threads)
        result = {
            "model": o.model,
            "text": o.text.name,
            "machine": platform.processor() or platform.machine(),
            "summary": summary(rows),
            "linear": linear(rows),
            "rows": [
                {k: v for k, v in row.items() if k not in ("entropies", "holds")} for row in rows
            ],
        }
        (o.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(json.loads((o.out / f"{name}.json").read_text()), o.out / f"{name}.png")


def linear(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Return time and tokens of the scoring phase at 128 K over 16 K, medians."""

    def median(name: str, field: str) -> float:
        return statistics.median(row[field] for row in rows if row["experiment"] == name)

    names = {row["experiment"] for row in rows}
    if not {"16 K", "128 K"} <= names:
        return None
    return {
        f"{f}_128K_over_16K": median("128 K", f) / median("16 K", f)
        for f in ("scoring_s", "scored_tokens")
    }


def run(
    model: str, text: Path, log: Path, quick: bool, threads: int | None
) -> list[dict[str, Any]]:
    """Return the rows of all cases, measuring those that the log does not hold."""
    done = {}
    if log.exists():
        done = {row["key"]: row for row in map(json.loads, log.read_text().splitlines())}
    llm = LLM(model, n_sequences=2, threads=threads)
    prose = llm.tokenizer.encode(text.read_text(encoding="utf-8"), add_special=False)
    everything = list(cases(quick))
    with log.open("a") as file:
        for n, (case, options) in enumerate(everything):
            if case.key not in done:
                done[case.key] = measure(llm, prose, case, options)
                file.write(json.dumps(done[case.key]) + "\n")
                file.flush()
            answered = "".join("+" if ok else "-" for ok in done[case.key]["answered"].values())
            print(f"{n + 1} of {len(everything)} {case.key} {answered}", flush=True)
    return [done[case.key] for case, _ in everything]


if __name__ == "__main__":
    main()
