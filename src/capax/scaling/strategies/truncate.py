"""Thinking that is cut off: after so many tokens the model has to say its answer.

"Think Deep, Think Fast" (2025, arXiv 2504.14047) cuts hidden reasoning at a budget and closes its
tag; "s1" (2025, arXiv 2501.19393) calls it budget forcing. An answer that ends by itself stays as
it is. Of one that does not, the model is shown what it wrote, with a cue to answer: after a text
the cue goes on in the model's own voice, in a conversation it is a further request. Without
`tokens` the cut comes as late as the budget of the whole answer allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from capax.endpoints import Choice
from capax.errors import ConfigError
from capax.methods import Method, register
from capax.scaling.strategies.strategy import Prompt, Purse, check_range, followed_by

REQUEST = "Stop here. Reply with the final answer only."
OPEN, CLOSE = "<think>", "</think>"
MAX_CUE_CHARS = 200


@dataclass(frozen=True)
class Truncate:
    """Cut after `tokens`; the answer that is then asked for has `answer_tokens` at most.

    `cue`: what a text is continued with.
    """

    tokens: int | None = None
    answer_tokens: int = 24
    cue: str = "The answer is"

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_range("tokens", self.tokens, 1, 1 << 20)
        check_range("answer_tokens", self.answer_tokens, 1, 4096)
        if not 1 <= len(self.cue) <= MAX_CUE_CHARS:
            raise ConfigError(
                f"cue has {len(self.cue)} characters but must have 1 to {MAX_CUE_CHARS}"
            )

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        limit = await self._limit(purse, prompt)
        params = replace(
            purse.params, max_tokens=limit,
            min_tokens=min(purse.params.min_tokens, limit or purse.params.min_tokens),
        )  # fmt: skip
        thought = purse.need(await purse.ask(prompt, params=params))[0]
        if thought.finish_reason != "length":
            return thought, [thought]
        said = thought.text or thought.reasoning or ""
        cue = self._cue(prompt, said)
        brief = replace(
            purse.params, max_tokens=self.answer_tokens,
            min_tokens=min(purse.params.min_tokens, self.answer_tokens),
        )  # fmt: skip
        got = await purse.ask(_asked(prompt, said, cue), purpose="force", params=brief)
        if not got:
            return thought, [thought]
        text = f"{said}{cue}{got[0].text}" if cue else f"{said}\n\n{got[0].text}"
        sizes = (thought.n_tokens, got[0].n_tokens)
        n_tokens = None if None in sizes else sum(size or 0 for size in sizes)
        answer = replace(got[0], text=text, logprobs=None, n_tokens=n_tokens)
        return answer, [answer]

    def _cue(self, prompt: Prompt, said: str) -> str:
        """Return what goes on after a text; nothing in a conversation."""
        if not isinstance(prompt, str):
            return ""
        text = prompt + said
        is_open = text.rfind(OPEN) > text.rfind(CLOSE)
        return f"{CLOSE if is_open else ''} {self.cue}"

    async def _limit(self, purse: Purse, prompt: Prompt) -> int | None:
        """Return the tokens to think for, so that the budget holds the second call as well."""
        limits = [n for n in (self.tokens, purse.params.max_tokens) if n is not None]
        left = purse.ledger.tokens_left
        if left is not None:
            size = await purse.endpoint.count_prompt(prompt)
            again = await purse.endpoint.count_prompt(_asked(prompt, "", self._cue(prompt, "")))
            # Twice: what is thought is new once and read again before the answer.
            room = (left - size - again - self.answer_tokens) // 2
            if room >= 1:
                limits.append(room)
        return min(limits, default=None)


def _asked(prompt: Prompt, said: str, cue: str) -> Prompt:
    return f"{prompt}{said}{cue}" if isinstance(prompt, str) else followed_by(prompt, said, REQUEST)


register(
    Method(
        "truncate", "strategy", "Think Deep, Think Fast (2025, arXiv 2504.14047)",
        "One answer, cut off after so many tokens and forced to an end.", Truncate,
    )
)  # fmt: skip
