"""The form a chat answer must have and how its text is split: what tools, structured output and
reasoning add to a chat. A plain chat has none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Delta = dict[str, Any]  # fields of the message that a chunk adds to, as the stream writes them


class AnswerParser(Protocol):
    """Splits the text of one choice, as it comes, into the fields of a message."""

    reasoning_tokens: int  # of those pushed, how many belong to the reasoning

    def push(self, text: str, n_tokens: int) -> list[Delta]:
        """Take text that `n_tokens` tokens brought; return what is certain now, in order."""
        ...

    def finish(self, reason: str) -> tuple[list[Delta], str]:
        """Take the end of the text; return what was held back and the reason to report."""
        ...

    def message(self) -> dict[str, Any]:
        """Return the fields of the whole message but its role, after `finish`."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What one request demands. `parser` makes one parser for each choice."""

    constraint: Callable[[], Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None  # as the template shows them
    template_options: Mapping[str, Any] = field(default_factory=dict)
    parser: Callable[[], AnswerParser] | None = None
    # What the template shows of the messages, where that is not all of them as they are.
    messages: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None
    # Completes the shape when the prompt's tokens are known: an answer may begin in a thought.
    begin: Callable[[Shape, Sequence[int]], Shape] | None = None
    skip_special_tokens: bool | None = None  # False where a parser must see control tokens
    stop: tuple[str, ...] = ()  # beside the request's own


PLAIN = Shape()
