"""The engine that the server uses, with clients in its own process: the server without HTTP."""

from __future__ import annotations

import asyncio
import time

from benchmarks.peers.capax_engine import Capax
from capax import LLM, SamplingParams
from capax.engine.runner import Runner


class CapaxRunner(Capax):
    """A GGUF file in capax, answering several clients at a time."""

    def __init__(self, model: str, threads: int, context: int, *, sequences: int) -> None:
        """Load `model` with room for `sequences` contexts of `context` tokens."""
        self._llm = LLM(
            model, threads=threads, ctx_size=context, n_sequences=sequences, parallel=sequences
        )
        self._settings = f"kv={self._llm.plan.kv} isa={self._llm.isa}"

    def clients(self, requests: list[tuple[str, int]], concurrency: int) -> dict[str, float]:
        """Let `concurrency` clients stream (prompt, answer tokens) until none is left."""
        return asyncio.run(self._clients(requests, concurrency))

    async def _clients(self, requests: list[tuple[str, int]], concurrency: int) -> dict[str, float]:
        left = iter(requests)
        n_tokens = 0

        async def client() -> None:
            nonlocal n_tokens
            for prompt, n_answer in left:
                params = SamplingParams(max_tokens=n_answer, temperature=0, ignore_eos=True)
                async for pieces in runner.stream(self._llm.tokenizer.encode(prompt), params):
                    n_tokens += sum(len(piece.token_ids) for piece in pieces)

        async with Runner(self._llm, max_queue=len(requests)) as runner:
            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(concurrency)))
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "n_tokens": n_tokens}
