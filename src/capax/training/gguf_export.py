"""Write a trained `Llama` as a GGUF file in any encoding the engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capax.files.encodings import F32, encoding_named
from capax.files.gguf import TensorData, Typed, ValueType, write_gguf
from capax.training.llama import Llama
from capax.weights.encodings import quantize

_NORMAL, _CONTROL = 1, 3
_OF_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "post_attention_layernorm.weight": "ffn_norm",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd",
    "model.norm.weight": "output_norm",
    "lm_head.weight": "output",
}


def write_llama_gguf(
    model: Llama,
    path: Path,
    encoding: str,
    *,
    name: str,
    tokens: Sequence[str],
    n_control: int,
    merges: Sequence[str] = (),
    end_id: int | None = None,
    chat_template: str | None = None,
) -> None:
    """Write `model` to `path`: every matrix in `encoding`, the embedding too, vectors in F32.

    `tokens`: a byte-level vocabulary whose last `n_control` are control tokens; `merges`: pairs of
    its tokens, "a b", the first ones first; `end_id`: the token that ends a text; `chat_template`:
    Jinja source that makes a prompt out of messages.
    """
    shape = model.shape
    tensors = []
    with torch.no_grad():
        for key, parameter in model.state_dict().items():
            values = parameter.detach().float().numpy()
            gguf_name = gguf_name_of(key)
            if ".attn_q." in gguf_name:
                values = _in_pairs(values, shape.n_heads)
            elif ".attn_k." in gguf_name:
                values = _in_pairs(values, shape.n_kv_heads)
            if values.ndim == 1:
                tensors.append(TensorData(gguf_name, values.shape, F32, values))
            else:
                data = quantize(encoding, np.ascontiguousarray(values))
                known = encoding_named(encoding)
                tensors.append(TensorData(gguf_name, values.shape, known, data))
    kinds = [_NORMAL] * (len(tokens) - n_control) + [_CONTROL] * n_control
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": name,
        "llama.block_count": shape.n_layers,
        "llama.context_length": shape.context_len,
        "llama.embedding_length": shape.d_model,
        "llama.feed_forward_length": shape.d_ffn,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": shape.norm_eps,
        "llama.rope.freq_base": shape.rope_base,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.vocab_size": shape.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": Typed(kinds, ValueType.INT32),
        "tokenizer.ggml.merges": Typed(list(merges), ValueType.STRING),
        "tokenizer.ggml.add_bos_token": False,
    }
    if end_id is not None:
        metadata["tokenizer.ggml.eos_token_id"] = end_id
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    write_gguf(path, metadata, tensors)


def gguf_name_of(key: str) -> str:
    """Return what GGUF calls a parameter of `Llama`."""
    if key in _OUTSIDE:
        return f"{_OUTSIDE[key]}.weight"
    _, _, layer, inner = key.split(".", 3)  # model.layers.<i>.<inner>
    return f"blk.{layer}.{_OF_LAYER[inner]}.weight"


def _in_pairs(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder the rows of each head from halves (i, i + dim/2) to pairs (2i, 2i + 1)."""
    rows = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, values.shape[1])
    return rows.swapaxes(1, 2).reshape(values.shape)
