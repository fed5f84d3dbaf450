"""XL3M (arXiv 2405.17755): acceptance on tiny models; the real model's rates are in benchmarks/."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.errors import CapacityError, ConfigError
from capax.scaling import xl3m
from capax.scaling.long_text import PIECE_CHARS, LongText
from tests.models import gguf_model

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True, temperature=0.0)
SMALL = xl3m.Options(segment=32, overlap=8, keep=2, snap=False, chat=False)
QUESTION = "where is it?"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(gguf_model("llama", encoding="Q8_0"), ctx_size=256, n_sequences=4, threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def text() -> str:
    rng = np.random.default_rng(5)
    words = ["the", "river", "and", "a", "stone", "bridge", "of", "old", "trees", "rain."]
    return " ".join(rng.choice(words, 400))


def ask(llm: LLM, text: str, options: xl3m.Options = SMALL) -> xl3m.LongAnswer:
    return xl3m.answer(llm, text, QUESTION, GREEDY, options)


def test_scores_are_those_of_a_cold_forward_pass(llm: LLM, text: str) -> None:
    found = ask(llm, text)
    frame = xl3m.frame_of(llm, QUESTION, False)
    ids = llm.tokenizer.encode(text, add_special=False)
    without = logprobs(llm, [*frame.prefix, *frame.question])[-1]
    n = len(frame.question)
    for segment in found.segments:
        alone = [*frame.prefix, *ids[segment.begin : segment.end], *frame.question]
        rows = logprobs(llm, alone)[-n - 1 :]
        entropies = -(np.exp(rows) * rows).sum(axis=1)
        nll = -np.mean([rows[i, token] for i, token in enumerate(frame.question)])
        kl = np.exp(rows[-1]) @ (rows[-1] - without)
        assert segment.entropy == pytest.approx(entropies[-1], abs=1e-9)
        assert 0 <= segment.entropy <= math.log(llm.config.vocab_size)
        assert segment.mean_entropy == pytest.approx(entropies.mean(), abs=1e-9)
        assert segment.question_nll == pytest.approx(nll, abs=1e-9)
        assert segment.kl == pytest.approx(kl, abs=1e-9)
        assert segment.kl >= 0


def logprobs(llm: LLM, ids: list[int]) -> np.ndarray:
    logits = llm.logits(ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("together", [1, 2, 4, 7])
def test_how_many_are_read_together_changes_nothing(llm: LLM, text: str, together: int) -> None:
    expected = ask(llm, text, SMALL)
    found = ask(llm, text, xl3m.Options(**{**fields(SMALL), "together": together}))
    assert found.segments == expected.segments
    assert (found.kept, found.text, found.margin) == (expected.kept, expected.text, expected.margin)


def fields(options: xl3m.Options) -> dict[str, object]:
    return {name: getattr(options, name) for name in options.__slots__}


@pytest.mark.parametrize("kv", ["f32", "int8"])
def test_it_works_over_other_caches(text: str, kv: str) -> None:
    with LLM(gguf_model("llama", encoding="Q8_0"), ctx_size=256, n_sequences=2, kv=kv) as other:
        found = ask(other, text)
        assert len(found.kept) == 2


def test_a_text_that_fits_is_read_as_it_is(llm: LLM) -> None:
    text = "the stone bridge and the old trees"
    found = ask(llm, text)
    frame = xl3m.frame_of(llm, QUESTION, False)
    ids = llm.tokenizer.encode(text, add_special=False)
    assert len(ids) <= 64
    plain = llm.generate([*frame.prefix, *ids, *frame.question], GREEDY)
    assert found.output.prompt_token_ids == plain.prompt_token_ids
    assert found.output.token_ids == plain.token_ids
    assert (found.segments, found.n_scored) == ([], 0)


def test_the_final_prompt_is_prefix_kept_spans_question_and_nothing_else(
    llm: LLM, text: str
) -> None:
    found = ask(llm, text)
    frame = xl3m.frame_of(llm, QUESTION, False)
    ids = llm.tokenizer.encode(text, add_special=False)
    spans = [token for span in found.spans for token in ids[span.begin : span.end]]
    assert found.output.prompt_token_ids == [*frame.prefix, *spans, *frame.question]
    assert [span.begin for span in found.spans] == sorted(span.begin for span in found.spans)
    covered = {i for k in found.kept for i in range(*bounds(found.segments[k]))}
    assert covered == {i for span in found.spans for i in range(span.begin, span.end)}
    assert len(covered) == sum(span.end - span.begin for span in found.spans)


def bounds(segment: xl3m.Segment) -> tuple[int, int]:
    return segment.begin, segment.end


def test_tokens_to_score_are_counted_exactly(llm: LLM, text: str) -> None:
    found = ask(llm, text)
    frame = xl3m.frame_of(llm, QUESTION, False)
    around = len(frame.prefix) + len(frame.question)
    lengths = [s.end - s.begin for s in found.segments]
    assert found.n_scored == sum(around + n for n in lengths) + around  # and once without a text
    stride = SMALL.segment - SMALL.overlap  # type: ignore[operator]
    assert [s.begin for s in found.segments] == [i * stride for i in range(len(lengths))]
    assert found.segments[-1].end == found.n_text


def test_memory_is_that_of_the_segments_in_flight(llm: LLM, text: str) -> None:
    short, long = ask(llm, text[:600]), ask(llm, text)
    assert len(long.segments) > 2 * len(short.segments)
    assert long.peak_kv_nbytes == short.peak_kv_nbytes
    llm.engine.check_integrity()


def some_segments(*values: tuple[float, float]) -> list[xl3m.Segment]:
    return [
        xl3m.Segment(10 * i, 10 * i + 10, entropy, 0.0, nll, 1.0 / (1 + i))
        for i, (entropy, nll) in enumerate(values)
    ]


def test_selection() -> None:
    segments = some_segments((2.0, 5.0), (1.0, 6.0), (1.0, 1.0), (3.0, 5.0))

    def kept(**options: object) -> list[int]:
        return xl3m.select(segments, xl3m.Options(**options), 2)[0]  # type: ignore[arg-type]

    assert kept(score="entropy") == [1, 2]  # of equal ones the earlier
    assert kept(score="question_nll") == [2, 0]
    assert kept(score="both") == [2, 1]
    assert kept(score="kl") == [0, 1]  # the higher the better
    assert kept(score="mean_entropy") == [0, 1]  # no deviation at all
    assert kept(score="entropy", threshold=1.5) == [1, 2]
    assert kept(score="entropy", threshold=0.5) == [1]  # never nothing
    assert xl3m.select(segments, xl3m.Options(score="entropy"), 2)[1] == 1.0
    assert xl3m.select(segments, xl3m.Options(score="entropy"), 9)[1] is None


def test_splicing() -> None:
    spans = [(40, 60), (0, 20), (10, 30), (60, 70)]
    assert xl3m.splice(spans, by_score=False) == [(0, 30), (40, 70)]
    assert xl3m.splice(spans, by_score=True) == [(40, 60), (0, 20), (20, 30), (60, 70)]


def test_refining_looks_again_at_halves(llm: LLM, text: str) -> None:
    found = ask(llm, text, xl3m.Options(**{**fields(SMALL), "refine": True}))
    coarse = ask(llm, text)
    assert len(found.segments) == 2 * len(coarse.kept)
    assert all(s.end - s.begin == 16 for s in found.segments)


def test_what_cannot_work_is_refused(llm: LLM, text: str) -> None:
    with pytest.raises(ConfigError, match="the question is empty"):
        xl3m.answer(llm, text, "  \n", GREEDY, SMALL)
    with pytest.raises(ConfigError, match="the text is empty"):
        xl3m.answer(llm, "", QUESTION, GREEDY, SMALL)
    with pytest.raises(ConfigError, match="at most 128 are read"):
        xl3m.answer(llm, text, "why " * 400, GREEDY, SMALL)
    with pytest.raises(CapacityError, match="9 segments of 32 tokens do not fit the 2"):
        ask(llm, text, xl3m.Options(segment=32, keep=9, snap=False, chat=False))
    with pytest.raises(ConfigError, match="overlap is 31"):
        ask(llm, text, xl3m.Options(segment=32, overlap=31, keep=1, chat=False))
    with pytest.raises(ConfigError, match="score is 'best'"):
        xl3m.Options(score="best")  # type: ignore[arg-type]


# --- reading a long text -----------------------------------------------------------------


def test_pieces_have_the_tokens_of_the_whole(smollm2: Path) -> None:
    tokenizer = LLM(smollm2, ctx_size=64).tokenizer
    rng = np.random.default_rng(1)
    words = ["Ein", "Bär's", "x=3;", "12,345", "naïve", "\n\n", "—", "the", "  ", "日本", "fin."]
    whole = " ".join(rng.choice(words, PIECE_CHARS))
    assert len(whole) > 3 * PIECE_CHARS
    parts = [whole[i : i + 9973] for i in range(0, len(whole), 9973)]
    with LongText(tokenizer, iter(parts)) as text:
        ids = tokenizer.encode(whole, add_special=False)
        assert text.n_tokens == len(ids)
        assert text.tokens(0, len(ids)) == ids
        assert text.tokens(700, 705) == ids[700:705]


def test_a_text_that_cannot_be_cut_is_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="stretch of 65,536 characters"):
        LongText(llm.tokenizer, "x" * (3 * PIECE_CHARS))


def test_segments_end_at_lines_and_sentences(llm: LLM) -> None:
    with LongText(llm.tokenizer, "the stone. " * 100) as text:
        exact = list(text.segments(64, 0, snap=False))
        assert exact[:2] == [(0, 64), (64, 128)]
        spans = list(text.segments(64, 0, snap=True))
        assert spans[0][0] == 0
        assert spans[-1][1] == text.n_tokens
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        assert all(58 <= end - begin <= 70 for begin, end in spans[:-1])
        assert all(text.text(*span).rstrip().endswith(".") for span in spans[:-1])
