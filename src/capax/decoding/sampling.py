"""From logits to tokens: the Python face of the native sampler.

The uniform number of a draw is a function of (seed, choice, position) alone, so a choice has the
same tokens alone, in a batch, after a restart and on any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.decoding.params import SamplingParams
from capax.errors import CapaxError
from capax.methods import Method, register

TokenLogprobs = list[tuple[int, float]]  # (token, natural log-probability), the best first


class Sampled(NamedTuple):
    """A chosen token, its log-probability under the model, and the best tokens if wanted."""

    token: int
    logprob: float
    top: TokenLogprobs


class Scored(NamedTuple):
    """Given tokens under the model, one entry per row."""

    logprobs: list[float]
    is_greedy: list[bool]
    top: list[TokenLogprobs]


class Sampler:
    """Chooses the tokens of one choice of a request, in order, and remembers what it chose.

    `choice` is the index among the request's n; `seed` of the parameters is drawn if it is None.
    `native` is what a model's step takes to choose tokens within the same native call.
    """

    def __init__(self, params: SamplingParams, choice: int, prompt_ids: Sequence[int]) -> None:
        seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        bias = params.logit_bias
        self.native = _native.Sampler(
            np.array(prompt_ids, np.int32),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=seed % 2**64,
            choice=choice,
            n_top=params.logprobs or 0,
            bias_tokens=np.array(list(bias), np.int32) if bias else None,
            bias_values=np.array(list(bias.values()), np.float32) if bias else None,
        )

    @property
    def position(self) -> int:
        """Position of the token to be chosen next."""
        return self.native.position

    def sample(
        self, logits: npt.NDArray[np.float32], mask: npt.NDArray[np.uint32] | None = None
    ) -> Sampled | None:
        """Choose the next token from logits [vocab_size]; None if they hold a NaN or an infinity.

        `mask`: bit t % 32 of word t // 32 allows token t. Raises CapaxError if it allows none.
        """
        return sampled_of(self.native.sample(logits, mask))


def sampled_of(result: _native.SampleResult) -> Sampled | None:
    """Return what a native sampler chose; None if the logits were not finite.

    Raises CapaxError if no token was allowed.
    """
    status, token, logprob, top = result
    if status == "nonfinite":
        return None
    if status != "ok":
        raise CapaxError("no token is allowed at this position; widen the mask")
    return Sampled(token, logprob, top)


def score_rows(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int32], n_top: int = 0
) -> Scored:
    """Score given tokens [rows] under logits [rows, vocab_size], with the n_top best per row.

    Raises CapaxError if a row is not finite.
    """
    finite, logprobs, greedy, tokens, top_logprobs = _native.score_rows(logits, targets, n_top)
    if not finite.all():
        row = int(np.argmin(finite))
        raise CapaxError(
            f"the logits of row {row} of {len(finite)} are not finite: the model file may be "
            "damaged, run 'capax inspect' on it"
        )
    pairs = zip(tokens.tolist(), top_logprobs.tolist(), strict=True)
    top = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    return Scored(logprobs.tolist(), (greedy == targets).tolist(), top)


register(
    Method(
        "autoregressive",
        "decoding",
        "",
        "Choose one token at a time from the filtered distribution (see SamplingParams).",
    )
)
