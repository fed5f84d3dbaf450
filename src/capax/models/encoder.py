"""An encoder ready to run: whole texts in, one row per token out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import CapacityError, FileFormatError
from capax.files.config import ModelConfig
from capax.kv import PagedKVCache, PagePool
from capax.models import bert
from capax.models.program import ProgramBuilder
from capax.models.rope import rotary_tables
from capax.models.tensors import ModelTensors

Floats = npt.NDArray[np.float32]

# One entry per architecture: records the forward pass, returns the buffer of the final rows.
FAMILIES: dict[str, Callable[[ProgramBuilder, ModelTensors], int]] = {"bert": bert.build}


class Encoder:
    """Runs texts together in one ragged step of at most `max_tokens` tokens.

    A row depends on its own text alone: what else is in the step changes no bit of it.
    `pool`: pages for the keys and values of one layer of the texts of a step.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: ModelTensors,
        pool: PagePool,
        *,
        context_len: int,
        max_tokens: int,
        n_threads: int,
    ) -> None:
        build = FAMILIES.get(config.architecture)
        if build is None:
            raise FileFormatError(
                f"architecture {config.architecture!r} is no encoder; "
                f"encoders are {', '.join(sorted(FAMILIES))}"
            )
        self.config = config
        self.max_tokens = max_tokens
        self.native = _native.Program(n_threads)
        self._tensors = tensors
        self._pool = pool
        self._program = ProgramBuilder(config, rotary_tables(config, context_len), self.native)
        self._rows = build(self._program, tensors)
        self.native.reserve(max_tokens, 1)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of weights held in memory."""
        return self._tensors.nbytes

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of activations and tables held in memory."""
        tables = [self._program.rotary.cos, self._program.rotary.sin, *self._program.tables]
        return self.native.scratch_nbytes + sum(t.nbytes for t in tables)

    def forward(self, texts: Sequence[npt.NDArray[np.int32]]) -> Floats:
        """Return the final rows of the texts' tokens, [n_tokens, d_model].

        They are a view until the next call. `texts`: token ids, int32 [n] each, one after
        another in the step. Raises FileFormatError if a streamed weight can no longer be read,
        CapacityError without threads.
        """
        caches = [PagedKVCache(self._pool) for _ in texts]
        bounds = np.zeros((len(texts), 3), np.int32)  # first row, end row, first position
        bounds[:, 1] = np.cumsum([len(text) for text in texts])
        bounds[1:, 0] = bounds[:-1, 1]
        try:
            for cache, text in zip(caches, texts, strict=True):
                cache.reserve(len(text))
            self.native.run(
                0,
                self.native.n_operations,
                np.concatenate(texts),
                bounds,
                [cache.page_table for cache in caches],
                self._pool.native,
                self._pool.layout,
                np.empty(0, np.int32),
                [],
            )
        except _native.WeightReadError as e:
            raise FileFormatError(str(e)) from e
        except RuntimeError as e:  # no threads
            raise CapacityError(str(e)) from e
        finally:
            for cache in caches:
                cache.close()
        return self.native.rows(self._rows)[: bounds[-1, 1]]
