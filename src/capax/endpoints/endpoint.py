"""What everything above the engine is written against: a model that can be asked.

`Endpoint.generate` completes a prompt or a conversation, `score` gives the log-probability of
each token of a text. Both are asynchronous, may run many times at once, and account for every
token in the endpoint's ledger, whatever goes wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from capax.decoding.params import SamplingParams
from capax.endpoints.ledger import Ledger
from capax.engine.outputs import Usage

Message = Mapping[str, Any]  # {"role": ..., "content": ...}


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A text to continue, or messages to answer. `purpose` names the call in the ledger.

    `ledger`: where the call is booked besides the endpoint's own; a cap of either holds.
    """

    prompt: str | Sequence[Message]
    params: SamplingParams = field(default_factory=SamplingParams)
    purpose: str = "generate"
    ledger: Ledger | None = None

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `logprobs`: of each of its tokens, natural log, if they were asked for.

    `finish_reason`: stop, length, tool_calls, content_filter, or error. `reasoning`: what the
    model thought before the answer, where the endpoint tells it apart. `n_tokens`: sampled tokens,
    None where the endpoint does not say for each answer.
    """

    index: int
    text: str
    finish_reason: str
    logprobs: tuple[float, ...] | None = None
    reasoning: str | None = None
    n_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to one request, what they took, and how long (wall seconds, retries included)."""

    choices: tuple[Choice, ...]
    usage: Usage
    seconds: float
    model: str

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class TokenScores:
    """A text's tokens under the model: `logprobs[i]` of token i given those before, natural log.

    `logprobs[0]` is None: nothing precedes the first token. `offsets[i]`: characters before
    token i. `is_greedy[i]`: whether token i was the most probable one; None if unknown.
    """

    tokens: tuple[str, ...]
    offsets: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    is_greedy: tuple[bool | None, ...]

    @property
    def total(self) -> float:
        """Log-probability of the text after its first token."""
        return sum(x for x in self.logprobs if x is not None)


class Endpoint(Protocol):
    """A model that can be asked; safe to use for many requests at once."""

    @property
    def name(self) -> str:
        """What the ledger and run directories call it."""
        ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def max_choices(self) -> int:
        """The most choices that one request may ask for."""
        ...

    async def generate(self, request: GenerateRequest) -> Completion:
        """Complete a prompt.

        Raises BudgetExceeded before anything is sent if it could break the ledger's cap,
        ConfigError if the endpoint refuses the request, EndpointError if it fails.
        """
        ...

    async def count_prompt(self, prompt: str | Sequence[Message]) -> int:
        """Return the tokens that a prompt takes, or more where only the server could count them."""
        ...

    async def score(self, text: str) -> TokenScores:
        """Score the tokens of a text. Raises as `generate`."""
        ...

    async def aclose(self) -> None:
        """Give connections and threads back."""
        ...
