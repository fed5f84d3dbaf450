"""Contexts by several KV methods over one model, to compare the methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from capax.engine.contexts import Contexts
from capax.engine.engine import Engine
from capax.kv import KVStore
from capax.models import Model


class MethodContexts(Contexts):
    """One context for each of `stores`, in that order; made by `LLM.contexts_by`."""

    COPIES: ClassVar[int] = 2  # contexts that a store has room for: its own and one branch

    def __init__(self, engine: Engine, model: Model, stores: Sequence[KVStore]) -> None:
        self._stores = stores
        super().__init__(engine, model, [store.new() for store in stores])

    def nbytes_of(self, index: int) -> int:
        """Return the bytes that a method's memory takes now, shared ones included."""
        return self._stores[index].nbytes

    @contextmanager
    def branch(self, index: int) -> Iterator[Contexts]:
        """A copy of one context, number 0 of the contexts yielded; the original stays as it is."""
        with self._engine.exclusive():
            twin = self._caches[index].fork()
        try:
            yield Contexts(self._engine, self._model, [twin])
        finally:
            with self._engine.exclusive():
                twin.close()

    def reset(self) -> None:
        """Begin anew with every context empty, and its memory given back."""
        with self._engine.exclusive():
            for cache in self._caches:
                cache.close()
            for store in self._stores:
                store.trim()
            self._caches = [store.new() for store in self._stores]
