"""Models whose density is the question: pruned, quantised, distilled, with layers used twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from capax.errors import ConfigError
from capax.files.gguf import GGUFFile
from capax.training.bench_s import TOKENS, BenchS
from capax.training.documents import begun, readable
from capax.training.gguf_export import write_llama_gguf
from capax.training.ladder import Rung
from capax.training.llama import Llama
from capax.weights.encodings import dequantize, quantize

CHARS = {";": "<|end|>"}


def pruned(model: Llama, share: float) -> Llama:
    """Return a copy without the `share` of smallest weights of every matrix but the embedding.

    By magnitude, not trained afterwards. The zeros are still stored.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share is {share} but must be from 0 to below 1")
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        for name, matrix in smaller.named_parameters():
            if matrix.ndim == 2 and "embed" not in name:
                n = round(share * matrix.numel())
                matrix.view(-1)[matrix.abs().view(-1).argsort()[:n]] = 0.0
    return smaller


def encoded(model: Llama, encoding: str) -> Llama:
    """Return a copy with what `encoding` keeps of every matrix, the embedding too."""
    coarser = copy.deepcopy(model)
    with torch.no_grad():
        for matrix in coarser.parameters():
            if matrix.ndim == 2:
                rows = np.ascontiguousarray(matrix.numpy(), np.float32)
                back = dequantize(encoding, quantize(encoding, rows), rows.size)
                matrix.copy_(torch.from_numpy(back.reshape(rows.shape)))
    return coarser


def bits_in_file(model: Llama, encoding: str, path: Path) -> dict[str, int]:
    """Write `model` as GGUF to `path`; return the bits of its tensors, with the embedding and not.

    Matrices are in `encoding`, vectors in F32.
    """
    vocabulary = [CHARS.get(token, token) for token in TOKENS]
    write_llama_gguf(model, path, encoding, name=path.stem, tokens=vocabulary, n_control=1,
                     end_id=len(vocabulary) - 1)  # fmt: skip
    tensors = GGUFFile.open(path).tensors
    every = 8 * sum(t.nbytes for t in tensors.values())
    return {"all": every, "without_embedding": every - 8 * tensors["token_embd.weight"].nbytes}


def looped(rung: Rung, seed: int) -> Llama:
    """Return an untrained model of this size that goes through its layers twice."""
    model = begun(rung.shape(), seed)
    model.model.layers = nn.ModuleList([*model.model.layers, *model.model.layers])
    return model


def distillation(
    teacher: nn.Module, bench: BenchS, seed: int, n_tokens: int, share: float = 0.5
) -> Callable[[Llama, int], Tensor]:
    """Return the loss of a step: `share` against the teacher's probabilities, the rest usual."""

    def loss_of(model: Llama, step: int) -> Tensor:
        given = torch.from_numpy(bench.block(seed, step, n_tokens).astype(np.int64))
        inputs, targets = readable(given)[:, :-1], given[:, 1:].reshape(-1)
        counts = targets >= 0
        with torch.no_grad():
            taught = teacher(inputs).flatten(0, 1)[counts].softmax(-1)
        logits = model(inputs).flatten(0, 1)[counts]
        soft = functional.cross_entropy(logits, taught)
        return share * soft + (1 - share) * functional.cross_entropy(logits, targets[counts])

    return loss_of


def n_zeros(model: Llama) -> int:
    """Return how many weights outside the embedding are zero."""
    return sum(int((p == 0).sum()) for name, p in model.named_parameters() if "embed" not in name)
