"""XL3M: answer a question about a text far longer than the context (2024, arXiv 2405.17755).

The text is cut into short segments and the model reads each of them with the question behind it,
alone. Where it is certain of what comes next, the segment holds what the question needs: the
entropy of that distribution ranks the segments. The best few are put together in the order of the
text, with the question at the end, and one ordinary generation answers. No training; the work is
linear in the length, the memory that of one short window.

Scores of a segment, in nats. `entropy` is the paper's, of the next-token distribution after
[prefix; segment; question]. `question_nll`, how unlikely the question's own tokens are after the
segment, and their sum in units of their deviations, `both`, are ours and steadier with small
models; so are `mean_entropy` over the question's tokens and `kl` from the distribution without any
segment. Lower is better, of `kl` higher.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from capax.decoding.params import SamplingParams
from capax.engine.contexts import Contexts
from capax.engine.llm import LLM
from capax.engine.outputs import RequestOutput
from capax.errors import CapacityError, ConfigError
from capax.files.chat_template import render_chat
from capax.scaling.long_text import LongText

Score = Literal["both", "entropy", "question_nll", "mean_entropy", "kl"]
SCORES: tuple[Score, ...] = ("both", "entropy", "question_nll", "mean_entropy", "kl")
Progress = Callable[[int, int], None]  # tokens of the text read, and all of them
Floats = npt.NDArray[np.float32]

LARGE_CONTEXT = 4096  # from here on segments of 512 tokens, four of them; else 256, three
MAX_QUESTION_TOKENS = 128
_CONTENT = "\ue000"  # stands for the content of a message


@dataclass(frozen=True, slots=True)
class Options:
    """How to read. None: by the size of the context.

    `segment`, `overlap`: tokens; `keep`: segments that the answer is drawn from; `score`: what
    ranks them; `threshold`: keep only those whose entropy is not above it. `by_score`: put them
    together best first instead of in the order of the text. `refine`: score the kept ones again
    in halves. `together`: segments in one step. `snap`: end segments at lines and sentences.
    `chat`: ask as in a chat, None: if the model has a template.
    """

    segment: int | None = None
    overlap: int | None = None
    keep: int | None = None
    score: Score = "both"
    threshold: float | None = None
    by_score: bool = False
    refine: bool = False
    together: int = 4
    snap: bool = True
    chat: bool | None = None

    def __post_init__(self) -> None:
        for name, low in (("segment", 16), ("overlap", 0), ("keep", 1), ("together", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value} but must be at least {low}")
        if self.score not in SCORES:
            raise ConfigError(f"score is {self.score!r:.40}; use one of {', '.join(SCORES)}")


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens begin .. end - 1 of the text and what the model made of them, in nats."""

    begin: int
    end: int
    entropy: float
    mean_entropy: float
    question_nll: float
    kl: float


class Span(NamedTuple):
    """Tokens begin .. end - 1 of the text that the answer was drawn from, and their text."""

    begin: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class LongAnswer:
    """An answer and what it rests on; the rest of the text was not read by the final pass.

    `margin`: score of the best segment left out minus that of the worst kept, None if none was
    left out. `n_scored`: tokens read to score segments, beside those of `output`.
    """

    output: RequestOutput
    spans: list[Span]
    segments: list[Segment]
    kept: list[int]
    margin: float | None
    n_text: int
    n_scored: int
    peak_kv_nbytes: int

    @property
    def text(self) -> str:
        return self.output.text


class Window(NamedTuple):
    """Tokens of a segment, tokens that neighbours share, and segments to keep."""

    segment: int
    overlap: int
    keep: int


class Frame(NamedTuple):
    """Token ids before the text, and from its end to where the answer begins."""

    prefix: list[int]
    question: list[int]


def answer(
    llm: LLM,
    text: str | Iterable[str],
    question: str,
    params: SamplingParams | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> LongAnswer:
    """Answer `question` about `text`, which may be an iterator over parts of it.

    Raises ConfigError for a text or question that is empty, and CapacityError if the context has
    no room for a segment, the question and the answer.
    """
    with LongText(llm.tokenizer, text) as tokens:
        return answer_tokens(llm, tokens, question, params, options, progress=progress)


def answer_tokens(
    llm: LLM,
    text: LongText,
    question: str,
    params: SamplingParams | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> LongAnswer:
    """Like `answer`, for a text that is tokenised already, as for several questions about it."""
    params = params or SamplingParams()
    frame = frame_of(llm, question, (options or Options()).chat)
    n_new = 256 if params.max_tokens is None else params.max_tokens
    params = replace(params, max_tokens=n_new)
    o = options or Options()
    window = fitted(o, llm.context_len - n_new, frame)
    reader = Reader(llm, frame, window, o.together)
    segments: list[Segment] = []
    spans = text.segments(window.segment, window.overlap, snap=o.snap)
    if text.n_tokens <= window.keep * window.segment:  # all of it fits: nothing to choose
        kept: list[int] = []
        margin = None
        chosen = [(0, text.n_tokens)]
    else:
        segments = reader.score(text, spans, progress)
        kept, margin = select(segments, o, window.keep)
        if o.refine:
            halves = [half for i in kept for half in _halves(segments[i])]
            segments = reader.score(text, sorted(halves), None)
            kept, margin = select(segments, o, 2 * window.keep)
        chosen = splice([(segments[i].begin, segments[i].end) for i in kept], o.by_score)
    prompt = key_context(text, frame, chosen)
    output = llm.generate(prompt, params)
    return LongAnswer(
        output=output,
        spans=[Span(begin, end, text.text(begin, end)) for begin, end in chosen],
        segments=segments,
        kept=kept,
        margin=margin,
        n_text=text.n_tokens,
        n_scored=reader.n_scored,
        peak_kv_nbytes=reader.peak_kv_nbytes,
    )


# --- what is asked ---------------------------------------------------------------------


def frame_of(llm: LLM, question: str, chat: bool | None) -> Frame:
    """Return what stands around the text. Raises ConfigError for a question that does not do."""
    question = question.strip()
    if not question:
        raise ConfigError("the question is empty")
    template = llm.file.chat_template
    if chat is None:
        chat = template is not None
    tokenizer = llm.tokenizer

    def ids(text: str, parse_special: bool = False) -> list[int]:
        return tokenizer.encode(text, add_special=False, parse_special=parse_special)

    head: list[int] = []
    tail: list[int] = []
    if chat:
        if template is None:
            raise ConfigError(f"{llm.name} has no chat template; ask without one")
        rendered = render_chat(
            template,
            [{"role": "user", "content": _CONTENT}],
            add_generation_prompt=True,
            bos_token=None if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            eos_token=None if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id),
        )
        before, found, after = rendered.partition(_CONTENT)
        if not found:
            raise ConfigError(f"the chat template of {llm.name} leaves out what the user says")
        head, tail = ids(before, True), ids(after, True)
    if tokenizer.add_bos and tokenizer.bos_id is not None and head[:1] != [tokenizer.bos_id]:
        head = [tokenizer.bos_id, *head]
    asked = ids("\n" + question)
    if len(asked) > MAX_QUESTION_TOKENS:
        raise ConfigError(
            f"the question has {len(asked)} tokens; at most {MAX_QUESTION_TOKENS} are read with "
            "every segment"
        )
    return Frame(head, [*asked, *tail])


def fitted(options: Options, n_tokens: int, frame: Frame) -> Window:
    """Choose every size so that prefix + keep segments + question <= n_tokens.

    Raises CapacityError if not even one segment fits.
    """
    room = n_tokens - len(frame.prefix) - len(frame.question)
    segment = options.segment or (512 if n_tokens >= LARGE_CONTEXT else 256)
    keep = options.keep or (4 if n_tokens >= LARGE_CONTEXT else 3)
    # A segment may end a tenth later than asked for, at the end of a sentence.
    longest = segment + (segment // 10 if options.snap else 0)
    keep = min(keep, room // longest)
    if keep < 1 or (options.keep is not None and keep < options.keep):
        raise CapacityError(
            f"{options.keep or 1} segments of {longest} tokens do not fit the {room} tokens that "
            "the context leaves beside the question and the answer; lower segment, keep or "
            "max_tokens, or raise ctx_size"
        )
    overlap = segment // 8 if options.overlap is None else options.overlap
    if overlap >= segment - segment // 10:
        raise ConfigError(f"overlap is {overlap} but must be well below the segment's {segment}")
    return Window(segment, overlap, keep)


# --- scoring ---------------------------------------------------------------------------


class Reader:
    """Scores segments: each is read alone with the question behind it."""

    def __init__(self, llm: LLM, frame: Frame, window: Window, together: int) -> None:
        self._llm = llm
        self._frame = frame
        self._window = window
        self._together = together
        self._without: npt.NDArray[np.float64] | None = None  # log-probabilities
        self.n_scored = 0
        self.peak_kv_nbytes = 0

    def score(
        self, text: LongText, spans: Iterable[tuple[int, int]], progress: Progress | None
    ) -> list[Segment]:
        """Return the segments with their scores, in the order of `spans`."""
        frame = self._frame
        longest = len(frame.prefix) + len(frame.question) + 2 * self._window.segment
        longest = min(longest, self._llm.context_len)
        n = min(self._together, self._llm.max_contexts(longest))
        segments: list[Segment] = []
        with self._llm.contexts(max(n, 1), longest) as contexts:
            if self._without is None:
                self._without = self._read(contexts, [[]])[0].last
            for some in _batches(spans, max(n, 1)):
                bodies = [text.tokens(begin, end) for begin, end in some]
                for (begin, end), reading in zip(some, self._read(contexts, bodies), strict=True):
                    segments.append(self._segment(begin, end, reading))
                if progress:
                    progress(some[-1][1], text.n_tokens)
        return segments

    def _read(self, contexts: Contexts, bodies: Sequence[Sequence[int]]) -> list[_Reading]:
        """Read the question behind each body, each in a context of its own."""
        prefix, question = self._frame
        if len(question) >= self._llm.plan.prefill_chunk:
            raise ConfigError(
                f"the question takes {len(question)} tokens but a step "
                f"{self._llm.plan.prefill_chunk}; raise prefill_chunk"
            )
        targets = np.array(question, np.int64)
        # With nothing before the question its first token has no prediction.
        n_rows = len(question) + (1 if prefix or bodies[0] else 0)
        readings = [_Reading(n_rows) for _ in bodies]

        def visit(index: int, first: int, logits: Floats) -> None:
            readings[index].add(first, logits, targets[len(question) + 1 - n_rows :])

        new = [(i, [*prefix, *body, *question]) for i, body in enumerate(bodies)]
        contexts.visit_tails(new, n_rows, visit)
        self.n_scored += sum(len(tokens) for _, tokens in new)
        self.peak_kv_nbytes = max(self.peak_kv_nbytes, contexts.nbytes)
        for i in range(len(bodies)):
            contexts.truncate(i, 0)
        return readings

    def _segment(self, begin: int, end: int, reading: _Reading) -> Segment:
        assert self._without is not None
        p = np.exp(reading.last)
        return Segment(
            begin=begin,
            end=end,
            entropy=reading.entropies[-1],
            mean_entropy=statistics.fmean(reading.entropies),
            question_nll=statistics.fmean(reading.nlls),
            kl=float(p @ (reading.last - self._without)),
        )


class _Reading:
    """What the rows from the segment's last token to the question's last one say."""

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self.entropies: list[float] = []
        self.nlls: list[float] = []
        self.last: npt.NDArray[np.float64] = np.empty(0)  # log-probabilities of the last row

    def add(self, first: int, logits: Floats, targets: npt.NDArray[np.int64]) -> None:
        """Row i predicts target i; the last row predicts what comes after the question."""
        for i, row in enumerate(logits, first):
            logprobs = row.astype(np.float64)
            logprobs -= logprobs.max()
            p = np.exp(logprobs)
            total = p.sum()
            logprobs -= np.log(total)
            self.entropies.append(max(0.0, -float(p @ logprobs) / float(total)))
            if i < self._n_rows - 1:
                self.nlls.append(-float(logprobs[targets[i]]))
            else:
                self.last = logprobs


# --- choosing --------------------------------------------------------------------------


def ranks(segments: Sequence[Segment], score: Score) -> list[float]:
    """Return a number for each segment, the lower the more relevant."""
    if score == "both":
        by_nll = _standardised([s.question_nll for s in segments])
        by_entropy = _standardised([s.entropy for s in segments])
        return [a + b for a, b in zip(by_nll, by_entropy, strict=True)]
    sign = -1.0 if score == "kl" else 1.0
    return [sign * float(getattr(s, score)) for s in segments]


def _standardised(values: Sequence[float]) -> list[float]:
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / deviation if deviation else 0.0 for value in values]


def select(
    segments: Sequence[Segment], options: Options, keep: int
) -> tuple[list[int], float | None]:
    """Return the indices of the `keep` segments to keep, best first, and the margin.

    Of equal ones the earlier is better.
    """
    values = ranks(segments, options.score)
    order = sorted(range(len(segments)), key=lambda i: (values[i], segments[i].begin))
    if options.threshold is not None:
        certain = [i for i in order if segments[i].entropy <= options.threshold]
        order = certain or order[:1]
    kept, rest = order[:keep], order[keep:]
    return kept, values[rest[0]] - values[kept[-1]] if rest else None


def splice(spans: Sequence[tuple[int, int]], by_score: bool) -> list[tuple[int, int]]:
    """Return disjoint spans that cover the same tokens: in the order of the text, or best first."""
    if by_score:
        disjoint: list[tuple[int, int]] = []
        for begin, end in spans:
            for other_begin, other_end in disjoint:  # what is there already is not said twice
                if begin < other_end and other_begin < end:
                    begin, end = (begin, other_begin) if begin < other_begin else (other_end, end)
            if begin < end:
                disjoint.append((begin, end))
        return disjoint
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def key_context(text: LongText, frame: Frame, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Return the prompt of the final pass: prefix, the spans' tokens, question."""
    middle = [token for begin, end in spans for token in text.tokens(begin, end)]
    return [*frame.prefix, *middle, *frame.question]


def _halves(segment: Segment) -> list[tuple[int, int]]:
    middle = (segment.begin + segment.end) // 2
    return [(segment.begin, middle), (middle, segment.end)]


def _batches(spans: Iterable[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    for span in spans:
        batch.append(span)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
