"""Text to tokens for requests: within the context, off the event loop, in bounded memory.

The tokenizer takes some 0.5 KiB for each token of one call, and a body of 8 MiB may hold millions.
So a long text is first counted slice by slice, and refused as soon as it is certain that it has
too many tokens; what is then tokenised as a whole has no more than the context holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from capax.files.tokenizer import Tokenizer
from capax.serving.errors import invalid
from capax.serving.state import Server

T = TypeVar("T")

INLINE_CHARS = 4_000  # more are tokenised in another thread; these take about 0.5 ms
MAX_COUNTED = 131_072  # tokens of a text that is only counted, or two contexts if that is more
SLICE_CHARS = 16_384
SLICE_SLACK = 16  # a cut may add tokens, fewer than this


def check_fits(
    n_prompt: int, max_tokens: int | None, context_len: int, *, param: str, at_least: bool = False
) -> None:
    """Raise 400 context_length_exceeded unless prompt and answer fit the context."""
    wanted = max_tokens or 1
    if n_prompt + wanted <= context_len:
        return
    counted = f"at least {n_prompt}" if at_least else f"{n_prompt}"
    raise invalid(
        f"This model's maximum context length is {context_len} tokens, but the request needs "
        f"{'at least ' if at_least else ''}{n_prompt + wanted}: {counted} in the {param} and "
        f"{wanted} in the answer; shorten the {param}"
        + (", lower max_tokens" if wanted > 1 else "")
        + " or start the server with a larger --ctx-size",
        param=param,
        code="context_length_exceeded",
    )


async def encode_text(
    server: Server, text: str, *, add_special: bool, parse_special: bool, param: str
) -> list[int]:
    """Return the tokens of a prompt.

    Raises 400 context_length_exceeded for a text that cannot fit, without tokenising all of it.
    """
    tokenizer, context_len = server.llm.tokenizer, server.llm.context_len

    def encode() -> list[int]:
        check_text_fits(tokenizer, text, context_len, param)
        return tokenizer.encode(text, add_special, parse_special)

    return await off_loop(encode, is_long=len(text) > INLINE_CHARS)


def check_text_fits(tokenizer: Tokenizer, text: str, context_len: int, param: str) -> None:
    """Raise 400 context_length_exceeded if a text has more tokens than the context holds."""
    check_fits(
        least_tokens(tokenizer, text, context_len), None, context_len, param=param, at_least=True
    )


def check_countable(tokenizer: Tokenizer, text: str, context_len: int, param: str) -> None:
    """Raise 400 if a text has more tokens than are counted or listed at once."""
    most = max(MAX_COUNTED, 2 * context_len)
    if least_tokens(tokenizer, text, most) > most:
        raise invalid(
            f"the {param} has more than {most} tokens, the most that are counted at once; split it",
            param=param,
        )


def least_tokens(tokenizer: Tokenizer, text: str, enough: int) -> int:
    """Return a number of tokens that the text has at least, counting until it is over `enough`.

    Texts of one slice are not counted: 0.
    """
    if len(text) <= SLICE_CHARS:
        return 0
    n_tokens = 0
    for begin in range(0, len(text), SLICE_CHARS):
        part = text[begin : begin + SLICE_CHARS]
        n_tokens += len(tokenizer.encode(part, add_special=False, parse_special=True))
        n_tokens -= SLICE_SLACK
        if n_tokens > enough:
            break
    return max(n_tokens, 0)


async def off_loop(function: Callable[[], T], *, is_long: bool = True) -> T:
    """Call a function in a worker thread if it takes long, else here."""
    return await asyncio.to_thread(function) if is_long else function()
