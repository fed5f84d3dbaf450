"""Who may judge: a node compares pairs whose better answer is known, and needs 17 of 20.

Each challenge is asked in both orders; if they cancel, up to `MAX_TIEBREAKS` more in an order drawn
anew, then a coin. Of a chance judge one in 776 attempts passes, which is why attempts cost tokens
and are limited by the day (`registry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from capax.endpoints import GenerateRequest, Ledger
from capax.errors import ConfigError
from capax.scaling.checkers import checker_named
from capax.scaling.swarm.consensus import JUDGE, Node

MAX_TIEBREAKS = 3
MAX_LINE_NBYTES = 1 << 20


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question with a better and a worse answer.

    `checker`: how an answer is compared with the better one ('exact', 'numeric', ...). Without it
    only these two are known, and whether a node's own answer is right is not.
    """

    question: str
    better: str
    worse: str
    checker: str | None = None

    def is_right(self, answer: str) -> bool | None:
        """Say whether an answer is as good as the better one, None if that is not known."""
        if answer in (self.better, self.worse):
            return answer == self.better
        if self.checker is None:
            return None
        return checker_named(self.checker).check(answer, self.better)


class Admission(NamedTuple):
    """How many challenges a node judged rightly, of how many, for how many tokens."""

    right: int
    asked: int
    tokens: int


def read_challenges(path: Path) -> list[Challenge]:
    """Read challenges, one JSON object per line. Raises ConfigError naming a line that is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_NBYTES:
                raise ConfigError("it is too long")
            challenge = msgspec.json.decode(line, type=Challenge)
            if challenge.checker is not None:
                checker_named(challenge.checker)
            found.append(challenge)
        except (msgspec.MsgspecError, ConfigError, UnicodeDecodeError, RecursionError) as e:
            raise ConfigError(f"{path} line {number} is no challenge: {e}") from None
    if not found:
        raise ConfigError(f"{path} has no challenge; give question, better and worse per line")
    return found


async def examine(node: Node, challenges: Sequence[Challenge], seed: int = 0) -> Admission:
    """Let a node judge challenges. Raises what its endpoint raises."""
    rng = np.random.default_rng(seed)
    ledger = Ledger()
    right, n_calls = 0, 0
    for challenge in challenges:
        score = sum(await ask_pair(node, challenge, seed * 1_000_003 + n_calls, ledger))
        n_calls += 2
        for _ in range(MAX_TIEBREAKS):
            if score:
                break
            n_calls += 1
            better_first = bool(rng.random() < 0.5)
            score += await prefers_better(
                node, challenge, better_first, seed * 1_000_003 + n_calls, ledger
            )
        right += score > 0 or (score == 0 and bool(rng.random() < 0.5))
    return Admission(right, len(challenges), ledger.totals.tokens)


async def ask_pair(
    node: Node, challenge: Challenge, seed: int, ledger: Ledger | None = None
) -> list[int]:
    """Return `prefers_better` of both orders."""
    return [await prefers_better(node, challenge, first, seed + first, ledger) for first in (1, 0)]


async def prefers_better(
    node: Node, challenge: Challenge, better_first: bool | int, seed: int,
    ledger: Ledger | None = None,
) -> int:  # fmt: skip
    """Return 1 if the node prefers the better answer, -1 for the worse, 0 for neither."""
    shown = (challenge.better, challenge.worse)
    first, second = shown if better_first else shown[::-1]
    prompt = node.prompts.compare(challenge.question, first, second)
    request = GenerateRequest(prompt, replace(JUDGE, seed=seed), "challenge", ledger)
    verdict = node.prompts.verdict((await node.endpoint.generate(request)).text)
    if verdict not in ("A", "B"):
        return 0
    return 1 if (verdict == "A") == bool(better_first) else -1
