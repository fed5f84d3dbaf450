"""Driving a model over a bounded cache: chunks of any size, gates that say what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from capax.files.model_file import ModelFile, open_model
from capax.kv import KVCache, parse_kv
from capax.kv.bounded import BoundedCache, BoundedMethod, BoundedStore
from capax.kv.retention_gates import write_gates
from capax.kv.trim import TrimPolicy
from capax.models import Model, ModelTensors, SequenceSlice, Step
from tests.models import VOCAB_SIZE, gguf_model


def tiny(encoding: str) -> Path:
    """Return a random model with a context of 2,048."""
    return gguf_model("llama", encoding=encoding, max_position_embeddings=2048)


class Runner:
    """A tiny model, and its logits over any cache."""

    def __init__(self, path: Path | None = None) -> None:
        self.file: ModelFile = open_model(path or tiny("Q8_0"))
        self.config = self.file.config
        self.model = Model(
            self.config,
            ModelTensors(self.file),
            context_len=self.config.context_len,
            max_tokens=512,
            max_logit_rows=512,
            n_threads=1,
        )

    def cache(self, kv: str) -> KVCache:
        """Return a cache of the method that `kv` spells."""
        return parse_kv(kv).options.open(self.file, 16, 1).new()

    def bounded(self, kv: str) -> BoundedCache:
        cache = self.cache(kv)
        assert isinstance(cache, BoundedCache)
        return cache

    def feed(self, cache: KVCache, tokens: Sequence[int], chunk: int = 512) -> np.ndarray:
        """Run tokens in chunks; returns all logits [len(tokens), vocab_size]."""
        out = [self._step(cache, tokens[i : i + chunk]) for i in range(0, len(tokens), chunk)]
        return np.concatenate(out)

    def _step(self, cache: KVCache, tokens: Sequence[int]) -> np.ndarray:
        n = len(tokens)
        cache.reserve(n)
        rows = np.arange(n, dtype=np.int32)
        step = Step(np.array(tokens, np.int32), [SequenceSlice(cache, 0, n)], rows)
        return self.model.forward(step).copy()


class PlannedGates:
    """log beta of a token by its layer and position, asked in order of positions."""

    def __init__(self, plan: Callable[[int, int], Sequence[float]]) -> None:
        self._plan = plan
        self._next: dict[int, int] = {}

    def log_beta(self, layer: int, x: np.ndarray) -> np.ndarray:
        begin = self._next.get(layer, 0)
        self._next[layer] = begin + len(x)
        columns = [self._plan(layer, p) for p in range(begin, begin + len(x))]
        return np.array(columns, np.float32).T.copy()


class RecordingGates:
    """Passes on what other gates say, and keeps it: [n_kv_heads, n_tokens] of each layer."""

    def __init__(self, gates: object) -> None:
        self._gates = gates
        self._parts: dict[int, list[np.ndarray]] = {}

    def log_beta(self, layer: int, x: np.ndarray) -> np.ndarray:
        part = self._gates.log_beta(layer, x)  # type: ignore[attr-defined]
        self._parts.setdefault(layer, []).append(part)
        return part

    def said(self, layer: int) -> np.ndarray:
        return np.concatenate(self._parts[layer], axis=1)


class PlannedTrim(BoundedMethod):
    """`trim` with gates that a test made."""

    notes = True

    def policy(self, model: ModelFile) -> TrimPolicy:
        raise AssertionError("the test gives the policy")


def trim_cache(runner: Runner, gates: object, memory: int, buffer: int) -> BoundedCache:
    """Return a trim cache without a file of gates."""
    method = PlannedTrim(memory=memory, buffer=buffer)
    policy = TrimPolicy(gates, 0)  # type: ignore[arg-type]
    return BoundedStore(method, runner.config, policy, 4).new()


def gates_file(path: Path, runner: Runner, seed: int = 0, width: int = 16) -> Path:
    """Write random gates for the model: half-lives from a few tokens to a few hundred."""
    from capax.files.digest import weights_digest

    rng, c = np.random.default_rng(seed), runner.config
    tensors = {}
    for layer in range(c.n_layers):
        shapes = {
            "w1": (width, c.d_model), "b1": (width,), "w2": (c.n_kv_heads, width),
            "bias": (c.n_kv_heads,),
        }  # fmt: skip
        for part, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32)
            scale = 4.0 if part == "bias" else 0.5
            tensors[f"blk.{layer}.retention.{part}"] = values * np.float32(scale)
    write_gates(path, tensors, {"model": weights_digest(runner.file).hex(), "input": "rms"})
    return path


def some_ids(n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, VOCAB_SIZE, n)]


def heads(cache: BoundedCache, n_layers: int) -> Iterator[np.ndarray]:
    """Yield the positions that each head of each layer holds."""
    for layer in range(n_layers):
        yield from cache.kept(layer)
