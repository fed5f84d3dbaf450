"""Information capacity: bits of text a model saves per unit of compute.

"Information Capacity: Evaluating the Efficiency of Large Language Models via Text Compression"
(2025, arXiv 2511.08066). A model that codes text with its probabilities saves

    gain = TS - NLL      bits per token,  TS = 8 * bytes per token, NLL = mean of -log2 p

and pays FLOPs per token for it, so IC = (gain + b) / log2(FLOPs per token), with one bias b per
data set, chosen so that a family of models of several sizes gets about the same value. Fewer
tokens for the same text raise TS: the tokenizer counts.

Texts are scored alone, from position 0, cut to `max_tokens`, BOS as the model asks. `paper` mode
keeps the paper's conventions (TS is a mean over texts, rounded to two decimals; its FLOP
formula); `exact` mode weighs TS by tokens as NLL is, and counts every attended pair. IC with the
paper's own biases means nothing on other texts, so b is 0 unless it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from capax.errors import CapaxError, ConfigError
from capax.measuring.perplexity import Scorer, TokenBytes

Mode = Literal["paper", "exact"]
DEFAULT_MAX_TOKENS = 1024  # of a text, as in the paper
N_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TextScore:
    """One text under the model: what was scored is every token but the first."""

    n_tokens: int
    n_bytes: int
    nll: float  # bits, their sum

    @property
    def text_size(self) -> float:
        """Bits of text per token."""
        return 8 * self.n_bytes / self.n_tokens


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """What a model is worth on a set of texts.

    `ic` is None, and `status` says why, where gain + bias is not positive. `nll_interval`: 95 %,
    from resampling texts. `ic_per_nll`: by how much IC falls per bit of NLL.
    """

    mode: Mode
    n_texts: int
    n_skipped: int
    n_tokens: int
    text_size: float
    nll: float
    nll_interval: tuple[float, float]
    bits_per_byte: float
    flops_per_token: float
    bias: float
    ic: float | None
    ic_per_nll: float
    status: Literal["ok", "no gain"]

    @property
    def gain(self) -> float:
        """Bits saved per token."""
        return self.text_size - self.nll


def score_texts(
    scorer: Scorer, tokenizer: TokenBytes, texts: Iterable[str], max_tokens: int
) -> Iterator[TextScore | None]:
    """Score one text after another; None for one with fewer than two tokens.

    Raises ConfigError for a limit below 2, CapaxError if a log-probability is not finite.
    """
    if max_tokens < 2:
        raise ConfigError(f"max_tokens is {max_tokens}; a text needs at least 2")
    for number, text in enumerate(texts, 1):
        ids = tokenizer.encode(text)[:max_tokens]
        if len(ids) < 2:
            yield None
            continue
        logprobs = [x for x in scorer.score(ids).logprobs if x is not None]
        if len(logprobs) != len(ids) - 1 or not all(map(math.isfinite, logprobs)):
            raise CapaxError(f"text {number} has a token without finite log-probability")
        n_bytes = sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
        yield TextScore(len(ids) - 1, n_bytes, -math.fsum(logprobs) / math.log(2))


def capacity(
    scores: Sequence[TextScore | None],
    flops_per_token: float,
    *,
    bias: float = 0.0,
    mode: Mode = "exact",
    seed: int = 0,
) -> CapacityReport:
    """Sum up scored texts. Raises ConfigError if none of them could be scored."""
    kept = [score for score in scores if score is not None]
    if not kept:
        raise ConfigError("no text has two tokens or more; give longer texts")
    n_tokens = sum(s.n_tokens for s in kept)
    n_bytes = sum(s.n_bytes for s in kept)
    nll = math.fsum(s.nll for s in kept) / n_tokens
    if mode == "paper":
        text_size = round(math.fsum(s.text_size for s in kept) / len(kept), 2)
    else:
        text_size = 8 * n_bytes / n_tokens
    value = information_capacity(text_size, nll, flops_per_token, bias)
    return CapacityReport(
        mode=mode,
        n_texts=len(kept),
        n_skipped=len(scores) - len(kept),
        n_tokens=n_tokens,
        text_size=text_size,
        nll=nll,
        nll_interval=_interval(kept, seed),
        bits_per_byte=math.fsum(s.nll for s in kept) / n_bytes,
        flops_per_token=flops_per_token,
        bias=bias,
        ic=value if text_size - nll + bias > 0 else None,
        ic_per_nll=-1 / math.log2(flops_per_token),
        status="ok" if text_size - nll + bias > 0 else "no gain",
    )


def information_capacity(
    text_size: float, nll: float, flops_per_token: float, bias: float = 0.0
) -> float:
    """Return (TS - NLL + b) / log2(FLOPs per token)."""
    return (text_size - nll + bias) / math.log2(flops_per_token)


# --- families -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One size of a family: what it saves per token, and what a token costs."""

    gain: float
    flops_per_token: float


def fit_bias(families: Sequence[Sequence[Member]]) -> float:
    """Return the bias that makes IC flattest inside families of three sizes or more.

    Minimises the sum of squared coefficients of variation, by golden-section search between
    0.5 - (the smallest gain) and 0: one bias for the data set. Raises ConfigError if no family has
    three members.
    """
    usable = [family for family in families if len(family) >= 3]
    if not usable:
        raise ConfigError("fitting the bias needs a family of three sizes or more")
    least = min(member.gain for family in usable for member in family)

    def spread(bias: float) -> float:
        total = 0.0
        for family in usable:
            values = [(m.gain + bias) / math.log2(m.flops_per_token) for m in family]
            total += float(np.var(values) / np.mean(values) ** 2)
        return total

    return _golden_section(spread, min(0.5 - least, 0.0), 0.0)


def predict_nll(
    reference: Member, reference_text_size: float, flops_per_token: float, bias: float
) -> float:
    """Predict the NLL of another size of the reference's family: IC is the same."""
    ic = (reference.gain + bias) / math.log2(reference.flops_per_token)
    return reference_text_size - (ic * math.log2(flops_per_token) - bias)


def decompose(a: CapacityReport, b: CapacityReport) -> dict[str, float]:
    """Split IC(b) - IC(a) into parts due to text size, NLL and FLOPs.

    Each part is the mean over the six orders of changing one after the other (Shapley value);
    the parts sum to the difference. Both reports need the same bias.
    """
    if a.bias != b.bias:
        raise ConfigError(f"the biases differ ({a.bias} and {b.bias}); compare with one bias")
    old = {"text_size": a.text_size, "nll": a.nll, "flops_per_token": a.flops_per_token}
    new = {"text_size": b.text_size, "nll": b.nll, "flops_per_token": b.flops_per_token}
    parts = dict.fromkeys(old, 0.0)
    orders = list(permutations(old))
    for order in orders:
        now = dict(old)
        before = information_capacity(**now, bias=a.bias)
        for name in order:
            now[name] = new[name]
            after = information_capacity(**now, bias=a.bias)
            parts[name] += (after - before) / len(orders)
            before = after
    return parts


def _golden_section(f: Callable[[float], float], low: float, high: float) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if f(a) < f(b):
            high = b
        else:
            low = a
    return (low + high) / 2


def _interval(scores: Sequence[TextScore], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of NLL over which texts happened to be in the set."""
    rng = np.random.default_rng(seed)
    tokens = np.array([s.n_tokens for s in scores], np.float64)
    nll = np.array([s.nll for s in scores])
    picks = rng.integers(0, len(scores), (N_RESAMPLES, len(scores)))
    means = nll[picks].sum(1) / tokens[picks].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
