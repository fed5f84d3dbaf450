"""What every engine under measurement can do.

A peer lives in a process of its own (`benchmarks.worker`), so that engines share no threads and
peak memory belongs to one engine. Times are what the engine needs, without tokenizing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

# Ordinary token ids, fixed, so that every engine sees the same work. The multiplier and the modulus
# are coprime: no id comes twice within one prompt.
FIRST_ID, N_IDS, STRIDE = 100, 30_011, 7_919


def prompt_ids(n_tokens: int) -> list[int]:
    """Return `n_tokens` distinct ordinary token ids, the same on every call."""
    return [FIRST_ID + (i * STRIDE) % N_IDS for i in range(n_tokens)]


def batch_ids(n_sequences: int, n_tokens: int) -> list[list[int]]:
    """Return distinct sequences of ordinary token ids, the same on every call."""
    return [
        [FIRST_ID + (i + j * STRIDE) % N_IDS for j in range(n_tokens)] for i in range(n_sequences)
    ]


class Peer(Protocol):
    """One loaded model in one engine."""

    def prefill(self, n_tokens: int) -> float:
        """Return the seconds from an empty cache to the logits of the last of `n_tokens`."""
        ...

    def decode(self, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` single-token steps after `depth` tokens of context."""
        ...

    def version(self) -> str:
        """Return the name and version of the engine with the settings that matter."""
        ...


@runtime_checkable
class Batching(Protocol):
    """An engine that decodes several sequences in one step."""

    def batch(self, n_sequences: int, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` steps that each decode one token of every sequence.

        Each sequence begins with `depth` tokens of its own.
        """
        ...


@runtime_checkable
class Scoring(Protocol):
    """An engine that gives the log-probabilities of a given text."""

    def score(self, n_tokens: int) -> tuple[float, float]:
        """Return the seconds for all log-probabilities of `n_tokens`, and their mean."""
        ...


@runtime_checkable
class Sampling(Protocol):
    """An engine that samples many answers to one prompt."""

    def sample(self, n_samples: int, prompt: list[int], n_tokens: int) -> float:
        """Return the seconds for `n_samples` answers of `n_tokens` tokens to a prompt.

        The prompt is computed once; temperature 0.6, no other filter, the text is made as well.
        """
        ...


@runtime_checkable
class Probing(Protocol):
    """An engine that can also measure what the machine reaches."""

    def probe(self, nbytes: int) -> dict[str, float]:
        """Return `read_gbps` for a footprint of `nbytes`, and `int8_gmacs`."""
        ...


@runtime_checkable
class Serving(Protocol):
    """An engine that answers several clients at a time."""

    def clients(self, requests: list[tuple[str, int]], concurrency: int) -> dict[str, float]:
        """Let `concurrency` clients work off (prompt, answer tokens); `seconds`, `n_tokens`."""
        ...


def peak_rss_bytes() -> int:
    """Return this process's peak resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM line: this needs Linux")
