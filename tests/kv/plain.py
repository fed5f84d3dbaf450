"""The simplest cache outside the program: arrays of keys and values, and numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv import AttentionInput, CountedStore, KVFootprint
from capax.methods import Method, register

Floats = npt.NDArray[np.float32]
PAGE_TOKENS = 32


class PlainStore(CountedStore):
    def __init__(self, config: ModelConfig, footprint: KVFootprint, n_pages: int) -> None:
        super().__init__(footprint, n_pages)
        self.config = config

    def new(self) -> PlainCache:
        return PlainCache(self)


class PlainCache:
    """Takes its pages when it needs them, and gives them back."""

    def __init__(self, store: PlainStore) -> None:
        self._store = store
        self.n_tokens = self._n_pages = 0
        self._k: list[Floats] = []
        self._v: list[Floats] = []
        self._grow(0)

    @property
    def nbytes(self) -> int:
        return self._n_pages * self._store.footprint.page

    def pages_wanted(self, n_new: int) -> int:
        return self._store.pages_for(self.n_tokens + n_new) - self._n_pages

    def reserve(self, n_new: int) -> None:
        wanted = self.pages_wanted(n_new)
        if wanted > 0:
            self._store.take(wanted)
            self._grow(self._n_pages + wanted)

    def _grow(self, n_pages: int) -> None:
        c = self._store.config
        shape = (c.n_layers, n_pages * PAGE_TOKENS, c.n_kv_heads, c.head_dim)
        k, v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        n = self.n_tokens
        for layer in range(len(self._k)):
            k[layer, :n], v[layer, :n] = self._k[layer][:n], self._v[layer][:n]
        self._k, self._v = list(k), list(v)
        self._store.nbytes_changed((n_pages - self._n_pages) * self._store.footprint.page)
        self._n_pages = n_pages

    def append(self, layer: int, inputs: AttentionInput, positions: npt.NDArray[np.int32]) -> None:
        shape = (len(positions), *self._k[layer].shape[1:])
        self._k[layer][positions] = inputs.rotate(inputs.k, positions).reshape(shape)
        self._v[layer][positions] = inputs.v.reshape(shape)

    def attend(self, layer: int, q: Floats, positions: npt.NDArray[np.int32]) -> Floats:
        group = q.shape[1] // self._k[layer].shape[1]
        out = np.empty_like(q)
        for i, position in enumerate(positions):  # one by one: a row's bits are its own
            k = np.repeat(self._k[layer][: position + 1], group, axis=1)
            v = np.repeat(self._v[layer][: position + 1], group, axis=1)
            s = np.einsum("hd,thd->ht", q[i], k) * self._store.config.attention_scale
            p = np.exp(s - s.max(axis=1, keepdims=True))
            out[i] = np.einsum("ht,thd->hd", p / p.sum(axis=1, keepdims=True), v)
        return out

    def advance(self, n_new: int) -> None:
        self.n_tokens += n_new

    def truncate(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self.n_tokens:
            raise ValueError(f"cannot truncate {self.n_tokens} tokens to {n_tokens}")
        self.n_tokens = n_tokens
        surplus = self._n_pages - self._store.pages_for(n_tokens)
        self._store.give_back(surplus)
        self._grow(self._n_pages - surplus)

    def fork(self) -> Self:
        twin = type(self)(self._store)
        twin.reserve(self.n_tokens)
        twin.n_tokens = self.n_tokens
        for layer in range(len(self._k)):
            twin._k[layer][: self.n_tokens] = self._k[layer][: self.n_tokens]
            twin._v[layer][: self.n_tokens] = self._v[layer][: self.n_tokens]
        return twin

    def export(self) -> bytes:
        return b""

    def load(self, content: bytes) -> None:
        raise ValueError("nothing was exported")

    def close(self) -> None:
        self.truncate(0)

    def __del__(self) -> None:
        if self._n_pages:
            self.close()


@dataclass(frozen=True)
class Plain:
    """No options."""

    def footprint(self, config: ModelConfig) -> KVFootprint:
        token = 2 * 4 * config.n_layers * config.d_kv
        return KVFootprint(PAGE_TOKENS * token, PAGE_TOKENS)

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> PlainStore:
        return PlainStore(model.config, self.footprint(model.config), n_pages)


register(Method("plain-for-tests", "kv", "no paper", "Arrays of keys and values.", Plain))
