"""Sequential runs: answer, exact check, a critic's feedback, answer again.

The critic knows the truth and must not tell it: `OracleCritic` names what is wrong with the answer
(a clause, a road, a constraint), by the family's `hint`; `SelfCritic` asks the model, which knows
only that the answer was wrong, and whose tokens are paid by the same ledger. A run ends at the
first right answer or after `rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from capax.decoding.params import SamplingParams
from capax.endpoints import Endpoint, GenerateRequest, Message
from capax.errors import ConfigError
from capax.scaling.complex.families import family_named
from capax.scaling.complex.instance import Instance
from capax.scaling.sampling import block_seed


@dataclass(frozen=True)
class Rounds:
    """A sequential run: `solved_at` counts answers from 1, None if none was right.

    Tokens are new ones: `answer_tokens[i]` of answer i, `critic_tokens[i]` of the feedback to it.
    """

    key: str
    answers: tuple[str | None, ...]
    solved_at: int | None
    answer_tokens: tuple[int, ...]
    critic_tokens: tuple[int, ...]


class Critic(Protocol):
    """Gives feedback to a wrong answer: the text, and the new tokens it took."""

    async def feedback(
        self, instance: Instance, messages: list[Message], answer: str | None, seed: int
    ) -> tuple[str, int]: ...


class OracleCritic:
    """Says what is wrong, exactly, and nothing about what is right."""

    async def feedback(
        self, instance: Instance, messages: list[Message], answer: str | None, seed: int
    ) -> tuple[str, int]:
        """Return the family's hint; it takes no tokens."""
        return family_named(instance.family).hint(instance, answer), 0


@dataclass(frozen=True)
class SelfCritic:
    """The same or another model, told only that the answer is wrong."""

    endpoint: Endpoint
    params: SamplingParams

    async def feedback(
        self, instance: Instance, messages: list[Message], answer: str | None, seed: int
    ) -> tuple[str, int]:
        """Ask for a reflection and a hint."""
        asked: list[Message] = [
            *messages,
            {
                "role": "user",
                "content": "That answer is wrong. List the wrong answers so far, say what went "
                "wrong, and give a hint for the next attempt. Do not give an answer.",
            },
        ]
        params = replace(self.params, n=1, seed=seed)
        done = await self.endpoint.generate(GenerateRequest(asked, params, "critic"))
        return done.text, done.usage.completion_tokens


async def sequential(
    endpoint: Endpoint,
    instance: Instance,
    critic: Critic,
    params: SamplingParams,
    *,
    rounds: int = 3,
    seed: int = 0,
) -> Rounds:
    """Answer up to `rounds` times, each after feedback to the last.

    Raises ConfigError for rounds outside 1 to 64, and what the endpoint raises.
    """
    if not 1 <= rounds <= 64:
        raise ConfigError(f"rounds is {rounds} but must be 1 to 64")
    family = family_named(instance.family)
    messages: list[Message] = [{"role": "user", "content": instance.prompt}]
    answers: list[str | None] = []
    answer_tokens: list[int] = []
    critic_tokens: list[int] = []
    for number in range(rounds):
        own = replace(params, n=1, seed=block_seed(seed, instance.key, 2 * number))
        done = await endpoint.generate(GenerateRequest(list(messages), own, "answer"))
        answer = family.extract(done.text)
        answers.append(answer)
        answer_tokens.append(done.usage.completion_tokens)
        if answer is not None and family.is_right(instance.truth, answer):
            return Rounds(
                instance.key, tuple(answers), number + 1, tuple(answer_tokens), tuple(critic_tokens)
            )
        if number + 1 == rounds:
            break
        messages.append({"role": "assistant", "content": done.text})
        critic_seed = block_seed(seed, instance.key, 2 * number + 1)
        hint, n_tokens = await critic.feedback(instance, list(messages), answer, critic_seed)
        critic_tokens.append(n_tokens)
        attempts = f"{number + 1} attempt{'s' if number else ''} made"
        messages.append({"role": "user", "content": f"That is incorrect, {attempts}. Hint: {hint}"})
    return Rounds(instance.key, tuple(answers), None, tuple(answer_tokens), tuple(critic_tokens))


def solved_within(runs: list[Rounds], n: int) -> float:
    """Return the share of runs with a right answer among the first n."""
    return sum(run.solved_at is not None and run.solved_at <= n for run in runs) / len(runs)
