"""A Llama whose weights do not learn, in PyTorch: what distillation differentiates through.

The weights come from the same file that the engine runs, decoded by capax's own loader. Only
what is added to the attention scores, a bias per key, can carry a gradient to somebody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capax.errors import ConfigError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.files.tensors import TensorReader, read_float32
from capax.models.rope import rotary_tables
from capax.weights import load_weight

# (layer, x [T, d_model]: the normalised input of attention) -> what is added to the scores
# [n_kv_heads, T, T], -inf above the diagonal; None: nothing but the causal mask.
ScoreBias = Callable[[int, Tensor], Tensor]

_LAYER_TENSORS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip


@dataclass(frozen=True)
class FrozenLayer:
    """The weights of one layer: matrices [n_out, n_in], vectors [n]."""

    attn_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    ffn_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class FrozenLlama:
    """One sequence at a time: `logits(tokens [T]) -> [T, vocab_size]`.

    `dtype` is that of all weights and activations, except the softmax and the norms in bfloat16,
    which are float32. Raises ConfigError for a model with biases, QK norms or windows.
    """

    def __init__(
        self, model: ModelFile, context_len: int, dtype: torch.dtype = torch.float32
    ) -> None:
        c = model.config
        if c.qk_norm or c.rope is None or "blk.0.attn_q.bias" in model.tensors:
            raise ConfigError(
                f"{model.path}: gates are trained on Llama models without biases and QK norms; "
                f"this one is {c.architecture!r}"
            )
        self.config: ModelConfig = c
        self.dtype = dtype
        with TensorReader() as reader:

            def tensor(name: str) -> Tensor:
                info = model.tensors[name]
                if len(info.shape) == 2:
                    return torch.from_numpy(load_weight(info).dequantize()).to(dtype)
                kept = dtype if dtype == torch.float64 else torch.float32
                return torch.from_numpy(read_float32(reader, info).copy()).to(kept)

            self.layers = [
                FrozenLayer(*(tensor(f"blk.{layer}.{name}.weight") for name in _LAYER_TENSORS))
                for layer in range(c.n_layers)
            ]
            self.embedding = tensor("token_embd.weight")
            self.output = self.embedding if c.tied_embeddings else tensor("output.weight")
            self.output_norm = tensor("output_norm.weight")
        tables = rotary_tables(c, context_len)
        self.cos, self.sin = torch.from_numpy(tables.cos), torch.from_numpy(tables.sin)
        self.interleaved = tables.style == "interleaved"

    def logits(self, tokens: Tensor, bias: ScoreBias | None = None) -> Tensor:
        """Return the logits after every token: [T, vocab_size], at least float32."""
        causal = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)
        x = self.embedding[tokens]
        for index, layer in enumerate(self.layers):
            h = self._norm(x, layer.attn_norm)
            added = causal if bias is None else bias(index, h)
            x = x + F.linear(self._attention(layer, h, added), layer.o)
            h = self._norm(x, layer.ffn_norm)
            gated = F.silu(F.linear(h, layer.gate)) * F.linear(h, layer.up)
            x = x + F.linear(gated, layer.down)
        logits = F.linear(self._norm(x, self.output_norm), self.output)
        return logits.float() if self.dtype == torch.bfloat16 else logits

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        wide = x.to(gain.dtype)
        rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return (wide * rms * gain).to(self.dtype)

    def _attention(self, layer: FrozenLayer, h: Tensor, added: Tensor) -> Tensor:
        """Causal attention over one sequence: h [T, d_model] -> [T, n_heads * head_dim]."""
        c, n = self.config, len(h)
        group = c.n_heads // c.n_kv_heads
        q = self._rotated(F.linear(h, layer.q).view(n, c.n_heads, c.head_dim))
        k = self._rotated(F.linear(h, layer.k).view(n, c.n_kv_heads, c.head_dim))
        v = F.linear(h, layer.v).view(n, c.n_kv_heads, c.head_dim)
        # Query heads of a group lie side by side: [n_kv_heads, group * T, head_dim].
        q = q.view(n, c.n_kv_heads, group, c.head_dim).permute(1, 2, 0, 3)
        scores = q.reshape(c.n_kv_heads, group * n, c.head_dim) @ k.permute(1, 2, 0)
        scores = scores.view(c.n_kv_heads, group, n, n) * c.attention_scale
        probs = torch.softmax(scores.to(added.dtype) + added.unsqueeze(-3), -1).to(self.dtype)
        mixed = probs.view(c.n_kv_heads, group * n, n) @ v.permute(1, 0, 2)
        mixed = mixed.view(c.n_kv_heads, group, n, c.head_dim).permute(2, 0, 1, 3)
        return mixed.reshape(n, c.n_heads * c.head_dim)

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotate pairs of x [T, heads, head_dim] to positions 0 .. T - 1."""
        half = self.cos.shape[1]
        cos = self.cos[: len(x), None].to(self.dtype)
        sin = self.sin[: len(x), None].to(self.dtype)
        if self.interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        a, b = x[..., :half], x[..., half : 2 * half]
        rest = x[..., 2 * half :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
