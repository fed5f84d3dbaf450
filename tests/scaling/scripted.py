"""A model whose answers are a function of the request, to run sampling without one."""

from __future__ import annotations

import asyncio
import hashlib

from capax.endpoints import Choice, Completion, GenerateRequest, Ledger, Price, TokenScores
from capax.engine.outputs import Usage
from capax.errors import EndpointError
from capax.scaling.checkers import checker_named
from capax.scaling.tasks import Task


def sums(n: int) -> list[Task]:
    return [Task(f"t{i}", f"{i} + {i} =", str(2 * i), checker_named("numeric")) for i in range(n)]


class Scripted:
    """Answers '2i' in about a third of the draws, by seed and choice alone; fails after `fail_at`.

    `most_at_once`: the most calls that were open together.
    """

    name = "scripted"
    max_choices = 128

    def __init__(self, ledger: Ledger | None = None, fail_at: int | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.n_calls = self.open = self.most_at_once = 0
        self._fail_at = fail_at

    async def generate(self, request: GenerateRequest) -> Completion:
        params = request.params
        with self.ledger.call(
            self.name,
            request.purpose,
            Price(),
            prompt_tokens=4,
            new_tokens=2 * params.n,
            also=request.ledger,
        ) as call:
            self.n_calls += 1
            self.open += 1
            self.most_at_once = max(self.most_at_once, self.open)
            if self._fail_at is not None and self.n_calls >= self._fail_at:
                raise EndpointError("scripted failure")
            await asyncio.sleep(0)
            i = int(str(request.prompt).split()[0])
            choices = []
            for index in range(params.n):
                draw = hashlib.sha256(f"{params.seed} {index}".encode()).digest()
                answer = 2 * i if draw[0] < 85 else draw[1] % 7 + 1000
                choices.append(Choice(index, f"It is {answer}.", "stop", n_tokens=2))
            call.settle(Usage(4, 2 * params.n))
            self.open -= 1
        return Completion(tuple(choices), Usage(4, 2 * params.n), 0.001, "scripted")

    async def count_prompt(self, prompt: object) -> int:
        return 4

    async def score(self, text: str) -> TokenScores:
        raise EndpointError("scripted answers have no probabilities")

    async def aclose(self) -> None:
        pass
