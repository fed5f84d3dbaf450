"""Keys and values of a text, as the exact cache holds them, to fit codebooks to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import ConfigError
from capax.files.model_file import ModelFile
from capax.kv import PAGE_TOKENS, PagePool, pages_for
from capax.models import Model, ModelTensors, SequenceSlice, Step

Halves = npt.NDArray[np.float16]

_CHUNK = 256


def keys_and_values(
    file: ModelFile, windows: Sequence[Sequence[int]], n_threads: int
) -> tuple[Halves, Halves]:
    """Return rotated keys and values of all windows, each read from position 0.

    Both are [n_layers, n_tokens, n_kv_heads, head_dim] float16, the very numbers that the cache
    `full:type=f16` stores. Raises ConfigError without windows or for one that does not fit.
    """
    config = file.config
    longest = max(map(len, windows), default=0)
    if not 1 <= longest <= config.context_len:
        raise ConfigError(
            f"the longest window has {longest:,} tokens; the model reads 1 to "
            f"{config.context_len:,}"
        )
    with _native.DefaultFloatEnvironment():
        model = Model(
            config,
            ModelTensors(file, n_threads=n_threads),
            context_len=longest,
            max_tokens=_CHUNK,
            max_logit_rows=1,
            n_threads=n_threads,
        )
    pool = PagePool(config, "f16", pages_for(longest))
    n_tokens = sum(map(len, windows))
    shape = (config.n_cache_layers, n_tokens, config.n_kv_heads, config.head_dim)
    k, v = np.empty(shape, np.float16), np.empty(shape, np.float16)
    done = 0
    for window in windows:
        cache = pool.new()
        for begin in range(0, len(window), _CHUNK):
            tokens = np.array(window[begin : begin + _CHUNK], np.int32)
            cache.reserve(len(tokens))
            slice_ = SequenceSlice(cache, 0, len(tokens))
            model.run_body(Step(tokens, [slice_], np.empty(0, np.int32)))
        for i, page in enumerate(cache.page_table):
            begin, end = i * PAGE_TOKENS, min((i + 1) * PAGE_TOKENS, len(window))
            page_k, page_v = _page(pool, int(page))
            k[:, done + begin : done + end] = page_k[:, : end - begin]
            v[:, done + begin : done + end] = page_v[:, : end - begin]
        done += len(window)
        cache.close()
    return k, v


def _page(pool: PagePool, page: int) -> tuple[Halves, Halves]:
    """Keys and values of one page, [n_layers, 64, n_kv_heads, head_dim]."""
    config = pool.config
    dim, stride = config.head_dim, -(-config.head_dim // 16) * 16
    raw = np.frombuffer(pool.native.read(page), np.float16)
    heads = raw.reshape(config.n_cache_layers, config.n_kv_heads, PAGE_TOKENS * (dim + stride))
    k = heads[:, :, : PAGE_TOKENS * dim].reshape(*heads.shape[:2], dim, PAGE_TOKENS)
    v = heads[:, :, PAGE_TOKENS * dim :].reshape(*heads.shape[:2], PAGE_TOKENS, stride)
    return k.transpose(0, 3, 1, 2), v[..., :dim].transpose(0, 2, 1, 3)
