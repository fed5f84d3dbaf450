"""`Embedder`: one encoder, loaded within a memory budget, that turns texts into vectors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.decoding.params import INT32_MAX, Limits, check_number
from capax.engine.texts import Floats, Texts, TextTokens, check_finite, normalized
from capax.errors import ConfigError
from capax.files.model_file import open_model
from capax.files.registry import resolve
from capax.files.tokenizer import load_tokenizer
from capax.kv import KV_TYPES, FullCache, PagePool, pages_for, parse_kv
from capax.models import ModelTensors
from capax.models.encoder import Encoder
from capax.planning.budget import Budget
from capax.planning.plan import Plan, plan_run
from capax.planning.sizes import parse_size
from capax.settings import apply_isa

STEP_TOKENS = 512
STEP_SEQUENCES = 16
COUNT = Limits(1, INT32_MAX, is_integer=True, may_be_none=True)


class Embedder:
    """A sentence embedder from a registry name or a Hugging Face directory.

    `memory`: a hard limit on everything capax holds, as for `LLM`. `ctx_size`: tokens a text
    may have; None takes what the model's author means it for. `threads`: None takes the
    usable cores. `kv`: precision of keys and values, f32 unless said otherwise.

    A text's embedding depends on that text alone, bit for bit: not on the texts beside it.
    Thread-safe: calls take turns. Raises FileFormatError for a bad file or a decoder,
    ConfigError for a bad value, CapacityError when nothing fits.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: int | str | None = None,
        ctx_size: int | None = None,
        threads: int | None = None,
        kv: str | None = None,
    ) -> None:
        started = time.perf_counter()
        for name, value in (("ctx_size", ctx_size), ("threads", threads)):
            check_number(name, value, COUNT)
        self.isa = apply_isa()
        self.name = str(model)
        with _native.DefaultFloatEnvironment():
            self.file = open_model(resolve(model))
        self.config = self.file.config
        encoder = self.config.encoder
        if encoder is None:
            raise ConfigError(
                f"{self.name} is a {self.config.architecture} decoder; "
                "embed texts with it by LLM(...).embed"
            )
        self._encoder_config = encoder
        self.plan: Plan = plan_run(
            self.file,
            Budget(memory=None if memory is None else parse_size(memory, "memory")),
            context_len=ctx_size,
            kv=kv,
            threads=threads,
            prefill_chunk=STEP_TOKENS,
            n_sequences=STEP_SEQUENCES,
            logit_rows=1,
            name=self.name,
        )
        full = parse_kv(self.plan.kv).options
        if not isinstance(full, FullCache):
            raise ConfigError(
                f"{self.name} reads each text once: there is nothing for {self.plan.kv!r} to "
                f"keep; use one of {', '.join(KV_TYPES)}"
            )
        self.threads = self.plan.threads
        self.tokenizer = load_tokenizer(self.file)
        self.text_tokens = TextTokens(self.tokenizer, self.config.vocab_size, self.context_len)
        with _native.DefaultFloatEnvironment():
            self._pool = PagePool(self.config, full.type, self.plan.n_pages)
            self._encoder = Encoder(
                self.config,
                ModelTensors(self.file, self.plan.residency, self.threads),
                self._pool,
                context_len=self.context_len,
                max_tokens=self.plan.prefill_chunk,
                n_threads=self.threads,
            )
        self._lock = threading.Lock()  # guards the rows of the step that ran last, and the pool
        self.load_seconds = time.perf_counter() - started

    @property
    def context_len(self) -> int:
        """Tokens that a text may have, the special ones included."""
        return self.plan.context_len

    @property
    def n_dimensions(self) -> int:
        """Numbers in an embedding."""
        return self.config.d_model

    def measured_memory(self) -> dict[str, int]:
        """Bytes held now: weights, KV pages taken so far, scratch."""
        return {
            "weights": self._encoder.weights_nbytes,
            "kv": self._pool.nbytes,
            "scratch": self._encoder.scratch_nbytes,
        }

    def embed(self, texts: Texts, *, truncate: int | None = None) -> Floats:
        """Return the embedding of each text (or list of token ids): float32 [n, n_dimensions].

        Rows are pooled as the model says, for all-MiniLM-L6-v2 by their mean, and brought to
        length 1 if it says so. `truncate`: cut texts to so many tokens, keeping their
        beginning; without it a text that is too long raises ContextLengthError.
        """
        return self.embed_ids(self.text_tokens.ids_of(texts, truncate))

    def embed_ids(self, texts: Sequence[Sequence[int]]) -> Floats:
        """Return the embedding of each list of token ids, special tokens included."""
        ids = [self.text_tokens.checked(i, text) for i, text in enumerate(texts)]
        out = np.empty((len(ids), self.n_dimensions), np.float32)
        with _native.DefaultFloatEnvironment(), self._lock:
            for begin, end in self._steps(ids):
                rows = self._encoder.forward(ids[begin:end])
                first = 0
                for i in range(begin, end):
                    out[i] = self._pooled(rows[first : first + len(ids[i])])
                    first += len(ids[i])
        check_finite(out)
        return out

    def _steps(self, ids: Sequence[npt.NDArray[np.int32]]) -> Iterator[tuple[int, int]]:
        """Yield ranges of texts that fit a step together."""
        begin = n_tokens = n_pages = 0
        for i, text in enumerate(ids):
            n_tokens += len(text)
            n_pages += pages_for(len(text))
            if n_tokens > self._encoder.max_tokens or n_pages > self.plan.n_pages:
                yield begin, i
                begin, n_tokens, n_pages = i, len(text), pages_for(len(text))
        if begin < len(ids):
            yield begin, len(ids)

    def _pooled(self, rows: Floats) -> Floats:
        if self._encoder_config.pooling == "cls":
            pooled = rows[0].astype(np.float64)
        else:
            pooled = rows.mean(axis=0, dtype=np.float64)
        return normalized(pooled) if self._encoder_config.normalize else pooled.astype(np.float32)
