"""CTranslate2 with int8 weights, the fastest prefill among the peers.

CTranslate2 reads its own format, made from a Hugging Face directory by its converter. The directory
holds the GGUF file's weights dequantised to float32 (`benchmarks.reference`), so both engines start
from the same numbers.
"""

from __future__ import annotations

import time
from pathlib import Path

import ctranslate2

from benchmarks.peers.base import prompt_ids


def convert(huggingface_directory: Path, target: Path) -> None:
    """Write a CTranslate2 model with int8 weights."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(huggingface_directory)).convert(
        str(target), quantization="int8", force=True
    )


class CTranslate2Int8:
    """A converted model in CTranslate2 on the CPU."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the converted directory `path`; the context grows by itself."""
        self._generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self._context = context
        self.prefill(8)

    def _generate(self, n_prompt: int, n_new: int) -> float:
        tokens = [f"t{i}" for i in prompt_ids(n_prompt)]
        started = time.perf_counter()
        self._generator.generate_batch(
            [tokens],
            max_length=n_new,
            min_length=n_new,
            include_prompt_in_result=False,
            beam_size=1,
        )
        return time.perf_counter() - started

    def prefill(self, n_tokens: int) -> float:
        """Return the seconds for a prompt of `n_tokens` and the choice of one token."""
        return self._generate(n_tokens, 1)

    def decode(self, n_tokens: int, depth: int) -> float:
        """Return the seconds for `n_tokens` further tokens: two runs, the prompt's time subtracted.

        CTranslate2 has no call for a step on an existing cache.
        """
        prompt = max(depth, 1)
        return self._generate(prompt, n_tokens + 1) - self._generate(prompt, 1)

    def version(self) -> str:
        """Return the version of the package and the compute type in use."""
        return f"ctranslate2 {ctranslate2.__version__}, {self._generator.compute_type}"
