"""What OpenAI-compatible servers answer, as far as it is read; other fields are ignored.

Every field's type and range is checked while decoding: an answer is untrusted.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from capax.engine.outputs import Usage

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
# A log-probability may come out a rounding above 0.
Logprob = Annotated[float, msgspec.Meta(le=1e-3)]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]


class PromptDetails(msgspec.Struct):
    """Of the prompt's tokens, those that were known already."""

    cached_tokens: Count | None = None


class UsageCounts(msgspec.Struct):
    """Tokens of a call."""

    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: PromptDetails | None = None

    def counts(self) -> Usage:
        """Return the counts; never more cached tokens than there are."""
        details = self.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details else 0
        return Usage(self.prompt_tokens, self.completion_tokens, min(cached, self.prompt_tokens))


class LegacyLogprobs(msgspec.Struct):
    """Log-probabilities of completions: one entry per token; the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    text_offset: list[Count]
    top_logprobs: list[dict[str, Logprob] | None] | None = None


class TextChoice(msgspec.Struct):
    """One choice of a completion."""

    text: str
    finish_reason: FinishReason
    index: Count = 0
    logprobs: LegacyLogprobs | None = None

    def content(self) -> str:
        return self.text

    def token_logprobs(self) -> list[float | None] | None:
        return self.logprobs.token_logprobs if self.logprobs else None

    def reasoning(self) -> str | None:
        return None


class TextAnswer(msgspec.Struct):
    """The answer to /v1/completions."""

    choices: list[TextChoice]
    usage: UsageCounts | None = None
    model: str | None = None


class TokenLogprob(msgspec.Struct):
    """One token of a chat's log-probabilities."""

    logprob: Logprob


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob] | None = None


class ChatMessage(msgspec.Struct):
    """What the model said, and what it thought where the server tells that apart."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChoice(msgspec.Struct):
    """One choice of a chat."""

    message: ChatMessage
    finish_reason: FinishReason
    index: Count = 0
    logprobs: ChatLogprobs | None = None

    def content(self) -> str:
        return self.message.content or ""

    def token_logprobs(self) -> list[float | None] | None:
        entries = self.logprobs.content if self.logprobs else None
        return None if entries is None else [entry.logprob for entry in entries]

    def reasoning(self) -> str | None:
        return self.message.reasoning_content or self.message.reasoning or None


class ChatAnswer(msgspec.Struct):
    """The answer to /v1/chat/completions."""

    choices: list[ChatChoice]
    usage: UsageCounts | None = None
    model: str | None = None


class ErrorFields(msgspec.Struct):
    """What an error says; servers differ in all of it."""

    message: str = ""
    code: str | int | None = None


class ErrorAnswer(msgspec.Struct):
    """The body of a failure."""

    error: ErrorFields | str
