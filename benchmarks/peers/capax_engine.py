"""capax itself, behind the same calls as its peers.

The same work as llama-bench: given tokens, logits of each decoded one, nothing sampled.
"""

from __future__ import annotations

import capax
from capax import LLM, _native


class Capax:
    """A GGUF file in capax."""

    def __init__(self, model: str, threads: int, context: int, *, kv: str = "f16") -> None:
        """Load `model` with room for `context` tokens."""
        self._llm = LLM(model, threads=threads, ctx_size=context, kv=kv)
        self._settings = f"kv={kv} isa={self._llm.isa}"
        self.prefill(8)

    def prefill(self, n_tokens: int) -> float:
        """Return the seconds from an empty cache to the logits of the last of `n_tokens`."""
        return self._llm.bench_prefill(n_tokens)

    def decode(self, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` single-token steps after `depth` tokens of context."""
        return self._llm.bench_decode(n_tokens, depth)

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
