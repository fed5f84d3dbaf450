"""What a load consists of: when requests arrive, how long they are, and what they say.

Everything follows from a seed, so that two servers, or two versions of one, get the same load.
Prompts are words that most tokenizers know as one token each; how many tokens they are is what
the server counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from capax.errors import ConfigError

Floats = npt.NDArray[np.float64]
Dataset = Literal["sharegpt-like", "random"]

# Conversations of ShareGPT have prompts of 161 and answers of 338 tokens on average (Kwon et
# al., 2023, arXiv 2309.06180), most far shorter and some far longer. Log-normal lengths with
# these medians and spreads, drawn again outside the limits as vLLM's benchmark does, have
# averages near those.
PROMPT_MEDIAN, PROMPT_SIGMA = 91.0, 1.4
ANSWER_MEDIAN, ANSWER_SIGMA = 305.0, 0.9
LEAST_TOKENS, MOST_TOKENS = 4, 1024

_TEXT = """
the of and to in is that for on with as was at by from this are have not but they which one you
all there her his been has more when who will would out up about them into than its only some
time very what your two our other could these first any now like over most after work people
many through years where much before also around life between under never same another house
water world school still small found every part place again great away night light line right
hand high left few head story food air point land city tree far sea near page white book river
car feet paper group music both often letter until mile children side
"""
WORDS = _TEXT.split()


class Length(NamedTuple):
    """Tokens of one request: about those of its prompt, at most those of its answer."""

    n_prompt: int
    n_answer: int


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a load: when it arrives, in seconds from the beginning, and what it asks."""

    index: int
    arrival_s: float
    prompt: str
    n_prompt: int
    max_tokens: int


def arrivals(n: int, rate: float, burstiness: float, seed: int) -> Floats:
    """Return when n requests arrive: float64 [n], ascending, beginning near 0.

    Gaps are gamma-distributed with mean 1 / rate and shape `burstiness`: 1 is a Poisson process,
    less comes in bursts, more is more even. They are scaled so that the last one arrives at
    (n - 1) / rate. An infinite rate lets all arrive at once.
    """
    if not rate > 0:
        raise ConfigError(f"the request rate is {rate:g}; it must be above 0, or inf")
    if not 0 < burstiness < math.inf:
        raise ConfigError(f"the burstiness is {burstiness:g}; it must be above 0 and finite")
    if math.isinf(rate) or n <= 1:
        return np.zeros(n)
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / burstiness, n - 1)
    total = gaps.sum()
    gaps = gaps / total if total > 0 else np.full(n - 1, 1 / (n - 1))
    return np.concatenate([[0.0], np.cumsum(gaps)]) * ((n - 1) / rate)


def sharegpt_like_lengths(
    n: int, seed: int, *, max_prompt: int = MOST_TOKENS, max_answer: int = MOST_TOKENS
) -> list[Length]:
    """Return n lengths distributed as conversations with a chat model are."""
    rng = np.random.default_rng([seed, 1])

    def draw(median: float, sigma: float, most: int) -> int:
        while True:
            n_tokens = round(float(rng.lognormal(math.log(median), sigma)))
            if LEAST_TOKENS <= n_tokens <= max(most, LEAST_TOKENS):
                return n_tokens

    return [
        Length(
            draw(PROMPT_MEDIAN, PROMPT_SIGMA, max_prompt),
            draw(ANSWER_MEDIAN, ANSWER_SIGMA, max_answer),
        )
        for _ in range(n)
    ]


def random_lengths(
    n: int, seed: int, n_prompt: int, n_answer: int, range_ratio: float = 0.0
) -> list[Length]:
    """Return n lengths, uniform within `range_ratio` below and above the ones given."""
    if not 0 <= range_ratio < 1:
        raise ConfigError(f"the range ratio is {range_ratio:g}; it must be from 0 to below 1")
    rng = np.random.default_rng([seed, 1])

    def draw(middle: int) -> int:
        low, high = math.floor(middle * (1 - range_ratio)), math.ceil(middle * (1 + range_ratio))
        return max(1, int(rng.integers(low, high + 1)))

    return [Length(draw(n_prompt), draw(n_answer)) for _ in range(n)]


def prompt_of(n_words: int, seed: int, index: int, prefix: str = "") -> str:
    """Return a prompt of about so many tokens that begins like no other one after the prefix."""
    rng = np.random.default_rng([seed, 2, index])
    words = [str(index), *(WORDS[i] for i in rng.integers(0, len(WORDS), max(0, n_words - 1)))]
    return " ".join([prefix, *words] if prefix else words)


def plan_load(
    lengths: list[Length],
    arrival_s: Floats,
    seed: int,
    *,
    n_prefix: int = 0,
) -> list[Planned]:
    """Put together a load. `n_prefix`: words that all prompts begin with, before their own."""
    prefix = prompt_of(n_prefix, seed, -1 % (1 << 32)) if n_prefix else ""
    return [
        Planned(
            index=i,
            arrival_s=float(at),
            prompt=prompt_of(length.n_prompt, seed, i, prefix),
            n_prompt=n_prefix + length.n_prompt,
            max_tokens=length.n_answer,
        )
        for i, (length, at) in enumerate(zip(lengths, arrival_s, strict=True))
    ]
