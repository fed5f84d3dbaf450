"""What a request gives back, in the shapes users of vLLM know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "error", "cancelled"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability under the model's own distribution, before any filter."""

    logprob: float
    rank: int | None
    decoded_token: str


# One position: the chosen token first, then the most probable ones.
PositionLogprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice. `text` excludes the stop string; `token_ids` are all sampled tokens."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    cumulative_logprob: float
    logprobs: list[PositionLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. Cached tokens are a part of the prompt tokens, not in addition."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, with llama-server's names; `_ms` are milliseconds of wall time.

    `prompt_n` counts computed prompt tokens, `cache_n` the reused ones.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float

    @property
    def prompt_per_second(self) -> float:
        return 1e3 * self.prompt_n / self.prompt_ms if self.prompt_ms > 0 else 0.0

    @property
    def predicted_per_second(self) -> float:
        return 1e3 * self.predicted_n / self.predicted_ms if self.predicted_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt; `outputs` has one entry for each of its `n` choices.

    `prompt_logprobs[i]` belongs to prompt token i; the first is None, nothing precedes it.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    usage: Usage
    timings: Timings
    prompt_logprobs: list[PositionLogprobs | None] | None = None

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the first choice."""
        return self.outputs[0].token_ids

    @property
    def logprobs(self) -> list[PositionLogprobs] | None:
        """Log-probabilities of the first choice, if they were asked for."""
        return self.outputs[0].logprobs


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """News of one choice. The last piece of a choice carries its finish reason; the last of
    the request also the whole `RequestOutput`."""

    index: int
    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How probable a text is: `logprobs[i]` of token i given those before it, natural log.

    `logprobs[0]` is None; `is_greedy[i]` says whether token i was the most probable one.
    """

    token_ids: list[int]
    logprobs: list[float | None]
    is_greedy: list[bool | None]

    @property
    def total(self) -> float:
        """Log-probability of the text after its first token."""
        return sum(x for x in self.logprobs if x is not None)
