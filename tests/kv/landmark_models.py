"""Tiny random models with landmarks, and their oracle: landmark attention over everything."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from capax.files.model_file import open_model
from capax.kv import kv_method
from capax.kv.landmark import LandmarkStore
from capax.models import Model, ModelTensors, SequenceSlice, Step

BLOCK, WINDOW, LANDMARK_ID, VOCAB_SIZE = 8, 64, 7, 300


@functools.cache
def landmark_model(n_kv_heads: int = 2, *, has_landmarks: bool = True) -> Path:
    """Return the directory of a model with 3 layers; its attention is sharp."""
    folder = Path(_root().name) / f"{n_kv_heads}-{has_landmarks}"
    _, _, export, _ = _training()
    keys = {"block": BLOCK, "token_id": LANDMARK_ID, "train_ctx": WINDOW}
    extra: dict[str, object] = {f"landmark.{name}": value for name, value in keys.items()}
    from capax.training.landmark_data import END, train_tokenizer

    # Enough different text for as many merges.
    words = ["".join(chr(97 + i * i * j % 23) for i in range(40)) for j in range(60)]
    export(
        torch_model(n_kv_heads),
        folder,
        train_tokenizer(words, VOCAB_SIZE),
        tokenizer_config={"eos_token": END},
        extra=extra if has_landmarks else {},
        dtype=_torch().float32,
    )
    return folder


@functools.cache
def torch_model(n_kv_heads: int = 2) -> Any:
    llama, shape, _, _ = _training()
    model = llama(
        shape(
            vocab_size=VOCAB_SIZE,
            d_model=48,
            n_layers=3,
            n_heads=4,
            n_kv_heads=n_kv_heads,
            d_ffn=64,
            context_len=4096,
        )
    )
    torch = _torch()
    model.initialise(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(2.0)
            elif name.endswith(("o_proj.weight", "embed_tokens.weight")):
                parameter.mul_(3.0)
    return model


def oracle_logits(ids: list[int], n_kv_heads: int = 2) -> np.ndarray:
    """Return the logits after each of `ids`: one forward pass, the grouped softmax over all."""
    torch = _torch()
    _, _, _, attention = _training()
    rows = np.arange(len(ids)) // (BLOCK - 1) + np.arange(len(ids))
    n = -(-(rows[-1] + 1) // BLOCK) * BLOCK  # causal: what stands behind the end changes nothing
    stream = np.full(n, LANDMARK_ID)
    stream[rows] = ids
    with torch.inference_mode():
        logits = torch_model(n_kv_heads)(torch.tensor(stream)[None], attention=attention(BLOCK))
    return logits[0].numpy()[rows]


class Reader:
    """A model and a store of one method; feeds token ids to caches."""

    def __init__(self, spec: str, n_kv_heads: int = 2, context_len: int = 2048) -> None:
        file = open_model(landmark_model(n_kv_heads))
        self.model = Model(
            file.config,
            ModelTensors(file),
            context_len=context_len,
            max_tokens=1024,
            max_logit_rows=1024,
            n_threads=1,
        )
        store = kv_method(spec).open(file, 64, 4)
        assert isinstance(store, LandmarkStore)
        self.store = store

    def feed(self, cache: Any, ids: list[int], chunk: int | None = None) -> np.ndarray:
        """Return the logits after each of `ids`, fed in steps of `chunk`."""
        out = []
        for begin in range(0, len(ids), chunk or len(ids)):
            part = ids[begin : begin + (chunk or len(ids))]
            cache.reserve(len(part))
            rows = np.arange(len(part), dtype=np.int32)
            slices = [SequenceSlice(cache, 0, len(part))]
            out.append(self.model.forward(Step(np.array(part, np.int32), slices, rows)).copy())
        return np.concatenate(out)

    def read(self, ids: list[int], chunk: int | None = None) -> np.ndarray:
        cache = self.store.new()
        logits = self.feed(cache, ids, chunk)
        cache.close()
        return logits


def some_ids(n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(10, 290, n)]


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="capax-landmark-models-")


def _training() -> tuple[Any, Any, Any, Any]:
    from capax.training.landmark import landmark_attention
    from capax.training.llama import Llama, LlamaShape, export

    return Llama, LlamaShape, export, landmark_attention


def _torch() -> Any:
    import torch

    return torch
