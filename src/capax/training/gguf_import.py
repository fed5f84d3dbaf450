"""Read a model of the Llama family back into PyTorch, to go on training it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from capax.errors import ConfigError
from capax.files.model_file import open_model
from capax.files.tensors import TensorInfo, TensorReader, read_float32
from capax.training.gguf_export import gguf_name_of
from capax.training.llama import Llama, LlamaShape
from capax.weights import load_weight


def read_llama_gguf(path: Path) -> Llama:
    """Return the model of a file that `write_llama_gguf` wrote, weights decoded to float32.

    Raises ConfigError for a model of another make.
    """
    file = open_model(path)
    c = file.config
    if c.architecture != "llama" or c.rope is None or c.head_dim * c.n_heads != c.d_model:
        raise ConfigError(f"{path} is no Llama of the kind that is trained here")
    model = Llama(
        LlamaShape(
            vocab_size=c.vocab_size, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads, d_ffn=c.d_ffn, context_len=c.context_len,
        )
    )  # fmt: skip
    for key, parameter in model.state_dict().items():
        name = gguf_name_of(key)
        if name not in file.tensors:
            raise ConfigError(f"{path} has no tensor {name}; it is of another make")
        values = _decoded(file.tensors[name])
        if ".attn_q." in name:
            values = _in_halves(values, c.n_heads)
        elif ".attn_k." in name:
            values = _in_halves(values, c.n_kv_heads)
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    return model


def _decoded(tensor: TensorInfo) -> np.ndarray:
    if len(tensor.shape) == 1:
        with TensorReader() as reader:
            return read_float32(reader, tensor)
    return load_weight(tensor).dequantize()


def _in_halves(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder the rows of each head from pairs (2i, 2i + 1) to halves (i, i + dim/2)."""
    rows = values.reshape(n_heads, values.shape[0] // n_heads // 2, 2, values.shape[1])
    return rows.swapaxes(1, 2).reshape(values.shape)
