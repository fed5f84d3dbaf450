"""A small Llama to train from scratch, whose attention may be exchanged.

The same forward pass as `capax.models.llama` (pre-norm, rotary embedding of pairs (i, i + dim/2),
SwiGLU, no biases), with the parameter names of Hugging Face, so that `export` writes a directory
that the engine loads and transformers too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [b, n_heads, t, head_dim], k, v [b, n_kv_heads, t, head_dim]), q and k rotated, to
[b, n_heads, t, head_dim]."""


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The sizes of a model; `context_len`: the most positions it is said to have."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ffn: int
    context_len: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    def hf_config(self) -> dict[str, object]:
        """Return what `config.json` says of such a model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ffn,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_len,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": self.tied_embeddings,
            "hidden_act": "silu",
        }


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to every earlier position and oneself."""
    n_groups = q.shape[1] // k.shape[1]
    return functional.scaled_dot_product_attention(
        q,
        k.repeat_interleave(n_groups, 1) if n_groups > 1 else k,
        v.repeat_interleave(n_groups, 1) if n_groups > 1 else v,
        is_causal=True,
    )


class Llama(nn.Module):
    """Token ids [b, t] to logits [b, t, vocab_size]."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every matrix; those that write to the residual stream are smaller with depth."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
                continue
            is_writer = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.1 if "embed" in name else parameter.shape[1] ** -0.5
            if is_writer:
                std /= math.sqrt(2 * self.shape.n_layers)
            nn.init.normal_(parameter, 0.0, std, generator=generator)

    def forward(
        self,
        tokens: Tensor,
        *,
        attention: Attention = causal_attention,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the logits; `positions` [t], None: 0, 1, ..."""
        return self.head(self.hidden(tokens, attention=attention, positions=positions))

    def hidden(
        self,
        tokens: Tensor,
        *,
        attention: Attention = causal_attention,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the rows before the output matrix, normalised: [b, t, d_model]."""
        if positions is None:
            positions = torch.arange(tokens.shape[1])
        rotary = _rotary(positions, self.shape)
        x: Tensor = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rotary, attention)
        return _rms_norm(x, self.model.norm.weight, self.shape.norm_eps)

    def head(self, rows: Tensor) -> Tensor:
        """Return the logits of normalised rows."""
        matrix = self.model.embed_tokens if self.shape.tied_embeddings else self.lm_head
        return functional.linear(rows, matrix.weight)

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())


class _Body(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.n_layers))
        self.norm = _Norm(shape.d_model)


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.input_layernorm = _Norm(shape.d_model)
        self.self_attn = _SelfAttention(shape)
        self.post_attention_layernorm = _Norm(shape.d_model)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        x = x + self.self_attn(
            _rms_norm(x, self.input_layernorm.weight, self.eps), rotary, attention
        )
        out: Tensor = self.mlp(_rms_norm(x, self.post_attention_layernorm.weight, self.eps))
        return x + out


class _SelfAttention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        d_q, d_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.d_model, d_q, bias=False)
        self.k_proj = nn.Linear(shape.d_model, d_kv, bias=False)
        self.v_proj = nn.Linear(shape.d_model, d_kv, bias=False)
        self.o_proj = nn.Linear(d_q, shape.d_model, bias=False)

    def forward(self, h: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        b, t, _ = h.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(b, t, -1, self.head_dim).transpose(1, 2)

        q, k = rotate(heads(self.q_proj(h)), *rotary), rotate(heads(self.k_proj(h)), *rotary)
        a = attention(q, k, heads(self.v_proj(h)))
        out: Tensor = self.o_proj(a.transpose(1, 2).reshape(b, t, -1))
        return out


class FeedForward(nn.Module):
    """The gated part of a layer: rows [..., d_model] to rows."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.d_model, shape.d_ffn, bias=False)
        self.up_proj = nn.Linear(shape.d_model, shape.d_ffn, bias=False)
        self.down_proj = nn.Linear(shape.d_ffn, shape.d_model, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))
        return out


def _rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), gain, eps)


def _rotary(positions: Tensor, shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [t, head_dim / 2]: angles in float64, rounded once."""
    pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float64)
    angles = torch.outer(positions.double(), shape.rope_base ** (-pairs / shape.head_dim))
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + dim/2) of `x` [..., t, dim] by angles [t, dim / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def export(
    model: Llama,
    folder: Path,
    tokenizer: str,
    *,
    tokenizer_config: Mapping[str, object],
    extra: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer to `folder`.

    `tokenizer`: the text of a `tokenizer.json`; `extra`: further keys of `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.shape.hf_config() | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config | dict(extra or {}), indent=2) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    tensors = {name: p.detach().to(dtype).contiguous() for name, p in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
