"""Whether right answers read differently from wrong ones: their length, and words that mark them.

"Think Deep, Think Fast" (2025, arXiv 2504.14047) finds the right traces of reasoning models shorter
and with fewer hedging and thinking words than wrong ones. Hard problems have longer answers and
more wrong ones, whatever the words do, so the comparison is made within problems (all of whose
samples are of one difficulty), beside the pooled one it corrects. Where samples come from several
models, each model's own mean is taken off first, for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from capax.errors import ConfigError
from capax.files.run_folder import read_manifest
from capax.scaling.rank_tests import cliffs_delta, holm, rank_biserial, rank_sum_p, signed_rank_p
from capax.scaling.run_directory import Sample, Verdict, read_rows

HEDGING = (
    "perhaps", "maybe", "might", "could be", "possibly", "likely", "seems", "appears", "I think",
    "not sure", "probably",
)  # fmt: skip
THINKING = (
    "wait", "hmm", "let me", "let's see", "actually", "alternatively", "on second thought",
    "hold on", "double-check", "reconsider",
)  # fmt: skip
DISCOURSE = (
    "therefore", "thus", "hence", "so", "because", "since", "first", "second", "next", "then",
    "finally", "however", "moreover", "in conclusion",
)  # fmt: skip
FEATURES = ("length", "hedging", "thinking", "discourse")
LEVEL = 0.05  # of the corrected p below which a verdict is given
CAPPED = "length"  # finish reason of a sample that was cut off


def _form(words: Sequence[str]) -> re.Pattern[str]:
    longest = sorted(words, key=lambda word: (-len(word), word))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)


_FORMS = tuple(_form(words) for words in (HEDGING, THINKING, DISCOURSE))


def count_markers(text: str) -> tuple[int, int, int]:
    """Return how many hedging, thinking and discourse words a text has, without regard to case."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    hedging, thinking, discourse = (len(form.findall(text)) for form in _FORMS)
    return hedging, thinking, discourse


def features_of(text: str, length: int | None = None) -> np.ndarray:
    """Return length and markers per 1,000 of it, float64 [4]; the length in words if not given."""
    length = max(1, len(text.split()) if length is None else length)
    return np.array([length, *(1000 * n / length for n in count_markers(text))], np.float64)


@dataclass(frozen=True)
class Traces:
    """Samples of many problems, one row each.

    `problems`: str [n]; `features`: float64 [n, 4]; `correct`, `capped`: bool [n]; `sources`:
    str [n], the model of each sample, all equal if there is one; `n_markers`: int64 [3].
    """

    problems: np.ndarray
    features: np.ndarray
    correct: np.ndarray
    capped: np.ndarray
    sources: np.ndarray
    n_markers: np.ndarray

    def where(self, kept: np.ndarray) -> Traces:
        """Return the samples where `kept`, bool [n]; `n_markers` stays that of all."""
        return Traces(
            self.problems[kept], self.features[kept], self.correct[kept], self.capped[kept],
            self.sources[kept], self.n_markers,
        )  # fmt: skip


class _Line(msgspec.Struct):
    """A sample in a JSONL file. `tokens`: its length; `source`: its model."""

    id: str | int
    text: str
    correct: bool
    tokens: int | None = None
    source: str = ""
    capped: bool = False


def read_traces(path: Path) -> Traces:
    """Read the samples of a run, or of JSONL {"id", "text", "correct", "tokens", "source"}.

    Raises ConfigError for a sample without a verdict, for lines that are not as expected, and for
    a file where only some lines have `tokens`.
    """
    lines = _read_run(path) if path.is_dir() else _read_lines(path)
    if len({line.tokens is None for line in lines}) != 1:
        raise ConfigError(f"{path}: some samples have a length in tokens and some not")
    counts = np.array([count_markers(line.text) for line in lines])
    return Traces(
        np.array([str(line.id) for line in lines]),
        np.stack([features_of(line.text, line.tokens) for line in lines]),
        np.array([line.correct for line in lines]),
        np.array([line.capped for line in lines]),
        np.array([line.source for line in lines]),
        counts.sum(0),
    )


def _read_run(path: Path) -> list[_Line]:
    problems: dict[str, str] = read_manifest(path).get("problems", {})
    verdicts: dict[tuple[str, int], Verdict] = {}
    for verdict in read_rows(path, Verdict):
        key = (verdict.problem_id, verdict.sample_idx)
        if problems.get(verdict.problem_id) == verdict.checker and (
            key not in verdicts or verdict.version > verdicts[key].version
        ):
            verdicts[key] = verdict
    lines = [
        _Line(
            s.problem_id, s.text, verdicts[s.key].correct, s.new_tokens,
            capped=s.finish_reason == CAPPED,
        )
        for s in sorted(read_rows(path, Sample), key=lambda s: s.key)
        if s.key in verdicts
    ]  # fmt: skip
    if not lines:
        raise ConfigError(f"{path} has no checked sample; continue the run with the same command")
    return lines


def _read_lines(path: Path) -> list[_Line]:
    try:
        content = path.read_bytes().splitlines()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    lines = []
    for number, line in enumerate(content, 1):
        if not line.strip():
            continue
        try:
            lines.append(msgspec.json.decode(line, type=_Line))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} line {number} is no sample: {e}") from None
    if not lines:
        raise ConfigError(f"{path} has no line; give {{'id', 'text', 'correct'}} per sample")
    return lines


@dataclass(frozen=True, slots=True)
class Within:
    """Right against wrong samples of the same problem, over problems that have both.

    `mean`, `median`: of the problems' differences of means, right less wrong; `delta`: mean of the
    problems' Cliff's deltas, -1 (all right ones below all wrong ones) to 1; `p`: signed-rank,
    two-sided; `p_corrected`: by Holm over the features; `verdict`: less, more, or no effect.
    """

    n_problems: int
    mean: float
    median: float
    delta: float
    p: float
    p_corrected: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Pooled:
    """All right samples against all wrong ones, which mixes in how hard the problems are."""

    right: float
    wrong: float
    delta: float
    p: float


@dataclass(frozen=True)
class MarkerReport:
    """For each feature; `by_source` is empty unless the samples come from several models."""

    n_samples: int
    n_capped: int
    n_markers: dict[str, int]
    pooled: dict[str, Pooled]
    within: dict[str, Within]
    by_source: dict[str, Within]


def marker_report(traces: Traces, *, with_capped: bool = False) -> MarkerReport:
    """Compare right with wrong samples, pooled and within problems.

    A sample that was cut off is wrong and of full length by construction: such samples are left
    out unless `with_capped`. Raises ConfigError if right or wrong samples are all that is left.
    """
    kept = traces if with_capped else traces.where(~traces.capped)
    right, wrong = kept.features[kept.correct], kept.features[~kept.correct]
    if not len(right) or not len(wrong):
        raise ConfigError(
            f"all {len(kept.correct):,} samples that ended are "
            f"{'right' if len(right) else 'wrong'}; a comparison needs both"
        )
    pooled = {
        name: Pooled(
            float(right[:, i].mean()), float(wrong[:, i].mean()),
            cliffs_delta(right[:, i], wrong[:, i]), rank_sum_p(right[:, i], wrong[:, i]),
        )
        for i, name in enumerate(FEATURES)
    }  # fmt: skip
    several = np.unique(kept.sources).size > 1
    return MarkerReport(
        len(traces.correct),
        int(traces.capped.sum()),
        dict(zip(FEATURES[1:], map(int, traces.n_markers), strict=True)),
        pooled,
        _within(kept, kept.features),
        _within(kept, _without_means(kept)) if several else {},
    )


def _without_means(traces: Traces) -> np.ndarray:
    """Return the features less the mean of all samples of the same source."""
    _, at, sizes = np.unique(traces.sources, return_inverse=True, return_counts=True)
    sums = np.zeros((sizes.size, traces.features.shape[1]))
    np.add.at(sums, at, traces.features)
    less: np.ndarray = traces.features - (sums / sizes[:, None])[at]
    return less


def mixed_problems(traces: Traces) -> list[np.ndarray]:
    """Return the rows of each problem that has right and wrong samples, int64 [k] each."""
    _, at = np.unique(traces.problems, return_inverse=True)
    order = np.argsort(at, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(at[order])) + 1)
    return [rows for rows in groups if 0 < int(traces.correct[rows].sum()) < rows.size]


def _within(traces: Traces, features: np.ndarray) -> dict[str, Within]:
    groups = mixed_problems(traces)
    differences = np.zeros((len(groups), len(FEATURES)))
    deltas = np.zeros_like(differences)
    for number, rows in enumerate(groups):
        right = features[rows[traces.correct[rows]]]
        wrong = features[rows[~traces.correct[rows]]]
        # Rounded: means of equal values must not differ by their sums' last bits.
        differences[number] = np.round(right.mean(0) - wrong.mean(0), 9)
        deltas[number] = [cliffs_delta(right[:, i], wrong[:, i]) for i in range(len(FEATURES))]
        # Equal for all samples says nothing; less their models' means it would seem to.
        alike = np.ptp(traces.features[rows], axis=0) == 0
        differences[number, alike] = deltas[number, alike] = 0
    ps = [signed_rank_p(differences[:, i]) for i in range(len(FEATURES))]
    found = {}
    for i, (name, corrected) in enumerate(zip(FEATURES, holm(ps), strict=True)):
        some = differences[:, i] if groups else np.zeros(1)
        delta = float(deltas[:, i].mean()) if groups else 0.0
        verdict = "no effect"
        if corrected < LEVEL:
            verdict = "less" if rank_biserial(some) < 0 else "more"
        found[name] = Within(
            len(groups), float(some.mean()), float(np.median(some)), delta, ps[i], corrected,
            verdict,
        )  # fmt: skip
    return found
