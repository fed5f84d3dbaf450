"""What a KV method does to a model's predictions: KL divergence, perplexity, agreement, bytes.

Every method reads the same tokens in the same steps, one after another over one model, and its
logits are compared with those of the reference, the full float32 cache of the same engine:

    KL = mean over positions of  sum_v p(v) ln(p(v) / q(v)),   p reference, q method

from the logits of the whole vocabulary, in float64. Perplexity scores each token but a chunk's
first. Chunks are independent; intervals are of a bootstrap over them. Beside what the reference
says in one step, float64 [step, vocab_size], only a few rows are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from capax.engine.llm import LLM
from capax.engine.method_contexts import MethodContexts
from capax.errors import CapaxError, ConfigError
from capax.files.config import ModelConfig
from capax.kv import kv_method, kv_name

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

REFERENCE = "f32"
STEP_TOKENS = 256
DRAWS = 1000
OFF_BY = 0.01  # of predicted bytes; more is a mistake in the prediction


@dataclass(frozen=True, slots=True)
class ChunkQuality:
    """Sums over one chunk under one method. `nbytes`: the most its memory took meanwhile."""

    n_positions: int
    n_scored: int
    kl: float  # nats, over all positions
    nll: float  # nats, over scored tokens
    n_top1: int  # positions whose likeliest token is the reference's
    nbytes: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChunkQuality:
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Interval(NamedTuple):
    """95 % of the bootstrap's means lie between."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One method over all chunks.

    `kl`: nats per token; `perplexity_ratio`: to the reference's; `bytes_per_token`: predicted at
    the chunks' length, by part; `kept_bytes_per_token`: measured, the mean over chunks of the most
    that was taken, `working` memory excluded.
    """

    method: str
    perplexity: float
    perplexity_ratio: float
    kl: float
    kl_interval: Interval
    top1: float
    bytes_per_token: Mapping[str, float]
    kept_bytes_per_token: float
    n_tokens: int
    n_chunks: int

    @property
    def total_bytes_per_token(self) -> float:
        """All parts together."""
        return sum(self.bytes_per_token.values())

    @property
    def prediction_error(self) -> float:
        """By how much of the predicted bytes the measured ones differ."""
        predicted = sum(v for k, v in self.bytes_per_token.items() if k != "accumulator")
        return abs(self.kept_bytes_per_token - predicted) / predicted


def evaluate(
    llm: LLM,
    chunks: Sequence[Sequence[int]],
    methods: Sequence[str],
    reference: str = REFERENCE,
    *,
    step: int = STEP_TOKENS,
    on_chunk: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Compare methods on chunks of token ids, all of one length; the reference's row comes first.

    `step`: tokens a method takes in at once. `on_chunk`: told chunks done and all of them. Raises
    ConfigError for a method that does not work with the model, CapacityError beyond the budget.
    """
    methods = list(dict.fromkeys([kv_name(reference), *map(kv_name, methods)]))
    if not chunks or len({len(chunk) for chunk in chunks}) != 1 or len(chunks[0]) < 2:
        raise ConfigError("chunks of one length are needed, of at least 2 tokens")
    done: dict[str, list[ChunkQuality]] = {method: [] for method in methods}
    with llm.contexts_by(methods, len(chunks[0])) as contexts:
        for number, chunk in enumerate(chunks, 1):
            found = measure_chunk_in(llm, contexts, chunk, methods, step=step)
            for method, quality in found.items():
                done[method].append(quality)
            contexts.reset()
            if on_chunk is not None:
                on_chunk(number, len(chunks))
    return [
        summarize(llm.config, method, len(chunks[0]), done[method], done[methods[0]])
        for method in methods
    ]


def measure_chunk(
    llm: LLM, chunk: Sequence[int], methods: Sequence[str], *, step: int = STEP_TOKENS
) -> dict[str, ChunkQuality]:
    """Run one chunk under each method, the first of which is the reference of the others."""
    with llm.contexts_by(methods, len(chunk)) as contexts:
        return measure_chunk_in(llm, contexts, chunk, methods, step=step)


def measure_chunk_in(
    llm: LLM,
    contexts: MethodContexts,
    chunk: Sequence[int],
    methods: Sequence[str],
    *,
    step: int = STEP_TOKENS,
) -> dict[str, ChunkQuality]:
    """Do so in the empty contexts of these methods."""
    sums = [_Sums() for _ in methods]
    for begin in range(0, len(chunk), step):
        tokens = chunk[begin : begin + step]
        targets = np.array(chunk[begin + 1 : begin + 1 + len(tokens)], np.int64)
        expected = Expected(len(tokens), llm.config.vocab_size)
        is_last = begin + step >= len(chunk)
        for index, method in enumerate(methods):
            for first, logits in _each_logits(contexts, index, method, tokens, is_last):
                rows = slice(first, first + len(logits))
                if not np.isfinite(logits).all():
                    raise CapaxError(
                        f"KV method {method} gave logits that are not finite near position "
                        f"{begin + first:,}; leave it out, or give other options"
                    )
                x = logits.astype(np.float64)
                if index == 0:
                    expected.fill(rows, x)
                sums[index].add(expected, rows, x, targets[rows])
                sums[index].nbytes = max(sums[index].nbytes, contexts.nbytes_of(index))
    return {m: s.result() for m, s in zip(methods, sums, strict=True)}


def _each_logits(
    contexts: MethodContexts, index: int, method: str, tokens: Sequence[int], is_last: bool
) -> Iterator[tuple[int, Floats]]:
    """Yield (number of the first token, logits of some rows) of a method's step.

    A chunk's last token comes alone: just before it, exact windows are as full as they get.
    """
    begin = 0
    if is_last and len(tokens) > 1 and not takes_whole_blocks(method):
        begin = len(tokens) - 1
        yield from contexts.each_logits(index, tokens[:begin])
    for first, logits in contexts.each_logits(index, tokens[begin:]):
        yield begin + first, logits


def takes_whole_blocks(method: str) -> bool:
    """Whether a method reads every token from codes, so that it cannot take tokens one by one."""
    return getattr(kv_method(method), "exact_window", True) is False


class Expected:
    """What the reference predicts in a step of `n` tokens, filled some rows at a time.

    Its probabilities p, [n, vocab_size] float64, are kept, so that a method costs one exponential
    and one product for each number: KL = sum p ln p - sum p x + ln sum exp x, x its logits.
    """

    def __init__(self, n: int, vocab_size: int) -> None:
        self._p = np.empty((n, vocab_size))
        self._negative_entropy = np.empty(n)
        self._likeliest = np.empty(n, np.int64)

    def fill(self, rows: slice, logits: Doubles) -> None:
        """Note the reference's logits of some rows, float64."""
        x = logits - log_sum_exp(logits)[:, None]
        self._p[rows] = np.exp(x)
        self._negative_entropy[rows] = np.einsum("tv,tv->t", self._p[rows], x)
        self._likeliest[rows] = logits.argmax(axis=1)

    def kl(self, rows: slice, logits: Doubles, normaliser: Doubles) -> float:
        """Return the divergence of a method's rows from the reference's, summed; nats."""
        shared = np.einsum("tv,tv->t", self._p[rows], logits)
        kl = self._negative_entropy[rows] - shared + normaliser
        return float(np.maximum(kl, 0.0).sum())  # rounding may leave -1e-14

    def n_top1(self, rows: slice, logits: Doubles) -> int:
        """Return in how many rows a method finds the same token likeliest."""
        return int((self._likeliest[rows] == logits.argmax(axis=1)).sum())


@dataclass
class _Sums:
    n_positions: int = 0
    n_scored: int = 0
    kl: float = 0.0
    nll: float = 0.0
    n_top1: int = 0
    nbytes: int = 0

    def add(
        self, expected: Expected, rows: slice, logits: Doubles, targets: npt.NDArray[np.int64]
    ) -> None:
        """Count rows [t, vocab_size]; `targets`: the tokens that follow, perhaps one fewer."""
        normaliser = log_sum_exp(logits)
        n = len(targets)
        self.kl += expected.kl(rows, logits, normaliser)
        self.n_top1 += expected.n_top1(rows, logits)
        self.nll += float((normaliser[:n] - logits[np.arange(n), targets]).sum())
        self.n_positions += len(logits)
        self.n_scored += n

    def result(self) -> ChunkQuality:
        return ChunkQuality(
            self.n_positions, self.n_scored, self.kl, self.nll, self.n_top1, self.nbytes
        )


def log_sum_exp(x: Doubles) -> Doubles:
    """Return ln sum exp of each row."""
    most = x.max(axis=1)
    total: Doubles = most + np.log(np.exp(x - most[:, None]).sum(axis=1))
    return total


def bytes_per_token(config: ModelConfig, method: str, n_tokens: int) -> dict[str, float]:
    """Return the bytes per token that a method predicts for a sequence of `n_tokens`, by part.

    `codes` and `scales` (`pages` where tokens are not kept as codes) hold the tokens, `window` what
    is kept exactly besides, `shared` codebooks and the like, `accumulator` what reading needs.
    """
    footprint = kv_method(method).footprint(config)
    n_pages = footprint.pages_for(n_tokens)
    codes = footprint.codes
    parts = {
        "pages": n_pages * footprint.page if codes is None else 0,
        "codes": n_pages * (codes or 0),
        "scales": n_pages * (footprint.page - codes) if codes is not None else 0,
        "window": footprint.sequence,
        "shared": footprint.shared,
        "accumulator": footprint.scratch,
    }
    return {k: v / n_tokens for k, v in parts.items() if v}


def summarize(
    config: ModelConfig,
    method: str,
    n_tokens: int,
    chunks: Sequence[ChunkQuality],
    reference: Sequence[ChunkQuality],
    *,
    seed: int = 0,
) -> Row:
    """Return a method's row from its chunks of `n_tokens` and the reference's on the same."""
    n = sum(c.n_positions for c in chunks)
    n_scored = sum(c.n_scored for c in chunks)
    nll = sum(c.nll for c in chunks) / n_scored
    nll_reference = sum(c.nll for c in reference) / sum(c.n_scored for c in reference)
    return Row(
        method=method,
        perplexity=math.exp(nll),
        perplexity_ratio=math.exp(nll - nll_reference),
        kl=sum(c.kl for c in chunks) / n,
        kl_interval=bootstrap([c.kl / c.n_positions for c in chunks], seed),
        top1=sum(c.n_top1 for c in chunks) / n,
        bytes_per_token=bytes_per_token(config, method, n_tokens),
        kept_bytes_per_token=sum(c.nbytes for c in chunks) / len(chunks) / n_tokens,
        n_tokens=n,
        n_chunks=len(chunks),
    )


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> Interval:
    """Return the 95 % interval of the mean of `values`, drawn with replacement."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(np.array(values)[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(low), float(high))


def check_methods(llm: LLM, methods: Sequence[str], n_tokens: int) -> None:
    """See that every method works with this model, and fits its budget beside the first one.

    Raises ConfigError or CapacityError naming the method, before anything is computed.
    """
    for method in methods[1:]:
        try:
            llm.check_contexts_by([methods[0], method], n_tokens)
            with llm.contexts_by([method], n_tokens):
                pass
        except CapaxError as e:
            raise type(e)(f"KV method {method}: {e}") from None
