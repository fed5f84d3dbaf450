"""From logits to tokens: the Python face of the native sampler.

The uniform number of a draw is a function of (seed, choice, position) alone, so a choice has the
same tokens alone, in a batch, after a restart and on any number of threads.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.decoding.params import SamplingParams
from capax.errors import CapaxError

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
    """

    def __init__(self, params: SamplingParams, choice: int, prompt_ids: Sequence[int]) -> None:
        seed = secrets.randbits(64) if params.seed is None else params.seed
        self.position = len(prompt_ids)  # of the token to be chosen next
        self._options: dict[str, Any] = {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "seed": seed % 2**64,
            "choice": choice,
            "n_top": params.logprobs or 0,
        }
        if params.logit_bias:
            self._options["bias_tokens"] = np.array(list(params.logit_bias), np.int32)
            self._options["bias_values"] = np.array(list(params.logit_bias.values()), np.float32)
        is_penalised = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        self._counts = TokenCounts(prompt_ids) if is_penalised else None

    def sample(
        self, logits: npt.NDArray[np.float32], mask: npt.NDArray[np.uint32] | None = None
    ) -> Sampled | None:
        """Choose the next token from logits [vocab_size]; None if they hold a NaN or an infinity.

        `mask`: bit t % 32 of word t // 32 allows token t. Raises CapaxError if it allows none.
        """
        counts: dict[str, Any] = {} if self._counts is None else self._counts.arrays()
        status, token, logprob, top_tokens, top_logprobs = _native.sample(
            logits, position=self.position, mask=mask, **self._options, **counts
        )
        if status == "nonfinite":
            return None
        if status != "ok":
            raise CapaxError(f"no token is allowed at position {self.position}; widen the mask")
        self.position += 1
        if self._counts is not None:
            self._counts.add_output(token)
        top = list(zip(top_tokens.tolist(), top_logprobs.tolist(), strict=True))
        return Sampled(token, logprob, top)


class TokenCounts:
    """How often each token of the prompt and the output occurs in the output."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        tokens = dict.fromkeys(int(token) for token in prompt_ids)
        self._index = {token: i for i, token in enumerate(tokens)}
        self._tokens = np.array([*tokens, *[0] * 64], np.int32)
        self._outputs = np.zeros(len(self._tokens), np.int32)

    def add_output(self, token: int) -> None:
        """Count one more occurrence in the output."""
        i = self._index.setdefault(token, len(self._index))
        if i == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._outputs = np.concatenate([self._outputs, np.zeros_like(self._outputs)])
        self._tokens[i] = token
        self._outputs[i] += 1

    def arrays(self) -> dict[str, npt.NDArray[np.int32]]:
        """Return the native sampler's arguments: views, valid until the next `add_output`."""
        n = len(self._index)
        return {"count_tokens": self._tokens[:n], "count_outputs": self._outputs[:n]}


def sample_rows(
    logits: npt.NDArray[np.float32], samplers: Sequence[Sampler]
) -> list[Sampled | None]:
    """Choose one token per row of logits [rows, vocab_size]; None where they are not finite."""
    return [sampler.sample(row) for row, sampler in zip(logits, samplers, strict=True)]


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
