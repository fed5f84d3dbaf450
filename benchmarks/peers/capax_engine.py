"""capax itself, behind the same calls as its peers.

The same work as llama-bench: given tokens, logits of each decoded one, nothing sampled.
"""

from __future__ import annotations

import asyncio
import time

import capax
from benchmarks.peers.base import prompt_ids
from capax import LLM, SamplingParams, _native
from capax.endpoints import GenerateRequest
from capax.endpoints.local import LocalEndpoint


class Capax:
    """A GGUF file in capax."""

    def __init__(
        self, model: str, threads: int, context: int, *, kv: str = "f16", sequences: int = 1
    ) -> None:
        """Load `model` with room for `sequences` of `context` tokens."""
        self._llm = LLM(
            model,
            threads=threads,
            ctx_size=context,
            kv=kv,
            n_sequences=sequences,
            parallel=sequences,
        )
        self._settings = f"kv={kv} isa={self._llm.isa}"
        self.prefill(8)

    def prefill(self, n_tokens: int) -> float:
        """Return the seconds from an empty cache to the logits of the last of `n_tokens`."""
        return self._llm.bench_prefill(n_tokens)

    def decode(self, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` single-token steps after `depth` tokens of context."""
        return self._llm.bench_decode(n_tokens, depth)

    def batch(self, n_sequences: int, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` steps that each decode one token of every sequence."""
        return self._llm.bench_batch(n_sequences, n_tokens, depth)

    def score(self, n_tokens: int) -> tuple[float, float]:
        """Return the seconds for all log-probabilities of the fixed prompt, and their mean."""
        ids = prompt_ids(n_tokens)
        started = time.perf_counter()
        logprobs = self._llm.score(ids).logprobs
        seconds = time.perf_counter() - started
        known = [x for x in logprobs if x is not None]
        return seconds, sum(known) / len(known)

    def generate(self, n_prompts: int, n_choices: int, prompt: int, n_tokens: int) -> float:
        """Return the seconds in which the whole engine answers prompts of `prompt` tokens.

        Nothing of an earlier call is reused, and nothing of one prompt for another: each has
        a namespace of its own, so that equal prompts are computed as often as they are asked.
        """
        llm, params = (
            self._llm,
            SamplingParams(n=n_choices, max_tokens=n_tokens, ignore_eos=True, seed=1),
        )
        llm.close()
        requests = [llm.request(prompt_ids(prompt), params) for _ in range(n_prompts)]
        started = time.perf_counter()
        for number, request in enumerate(requests):
            request.tenant = str(number)
            llm.engine.submit(request)
        while not all(request.is_finished for request in requests):
            llm.engine.step()
        return time.perf_counter() - started

    def sample(self, n_samples: int, prompt: list[int], n_tokens: int) -> float:
        """Return the seconds for `n_samples` answers through the endpoint, counted and as text."""
        params = SamplingParams(
            n=n_samples, max_tokens=n_tokens, temperature=0.6, ignore_eos=True, seed=1
        )
        text = self._llm.tokenizer.decode(prompt)
        self._llm.close()  # forgets the prompt of the call before

        async def ask() -> float:
            async with LocalEndpoint(self._llm) as endpoint:
                started = time.perf_counter()
                await endpoint.generate(GenerateRequest(text, params))
                return time.perf_counter() - started

        return asyncio.run(ask())

    def probe(self, nbytes: int, seconds: float = 0.5) -> dict[str, float]:
        """Return the best the machine does now: reading `nbytes` over and over, int8 dot products.

        `read_gbps`: 10^9 bytes per second; `int8_gmacs`: 10^9 multiply-adds per second.
        """
        threads = self._llm.threads
        return {
            "read_gbps": _native.probe_read_gbps(nbytes, threads, seconds)[0],
            "int8_gmacs": _native.probe_int8_gmacs(threads, seconds)[0],
        }

    def version(self) -> str:
        """Return the version with the settings that matter."""
        return f"capax {capax.__version__}, {self._settings}"
