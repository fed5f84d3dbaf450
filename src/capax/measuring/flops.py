"""Floating-point operations of a decoder, counted from its shape: 2 for each multiply-add.

`exact` counts the matrix products and the attended pairs that decoding n tokens from an empty
cache takes, logits at every position; norms, rotations and softmax are left out, as everywhere
in the literature. `published` is the formula of the information-capacity paper (2025, arXiv
2511.08066) and reproduces its table: it derives the head size from d_model, leaves a token out
of its own attention, and counts `kv_lora_rank` positions for latent attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capax.files.config import ModelConfig


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the published formula needs of a model.

    `d_ffn`: of one expert where there are experts, `n_active_experts` of which (shared ones
    included) run for a token.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_ffn: int
    vocab_size: int
    attention: Literal["grouped", "latent"] = "grouped"
    n_active_experts: int = 1
    kv_lora_rank: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> DecoderShape:
        """Return the shape of a model that capax runs."""
        return cls(
            config.n_layers,
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            config.d_ffn,
            config.vocab_size,
        )


def published_flops(shape: DecoderShape, n_tokens: int) -> int:
    """Operations of decoding `n_tokens`, by the paper's formula."""
    s = shape
    head_dim = s.d_model // s.n_heads
    projections = 4 * s.d_model**2 + 4 * s.d_model * s.n_kv_heads * head_dim
    feed_forward = 6 * s.d_model * s.d_ffn * s.n_active_experts
    if s.attention == "latent":
        attention = 4 * s.n_heads * head_dim * n_tokens * s.kv_lora_rank
    else:
        attention = 4 * s.n_heads * head_dim * (n_tokens * (n_tokens - 1) // 2)
    head = 2 * n_tokens * s.d_model * s.vocab_size
    return s.n_layers * (n_tokens * (projections + feed_forward) + attention) + head


def exact_flops(config: ModelConfig, n_tokens: int) -> int:
    """Operations of decoding `n_tokens` from an empty cache, logits at every position."""
    c = config
    projections = 2 * c.d_model * (2 * c.d_q + 2 * c.d_kv)
    feed_forward = 6 * c.d_model * c.d_ffn
    linear = n_tokens * (c.n_layers * (projections + feed_forward) + 2 * c.d_model * c.vocab_size)
    pairs = sum(attended_pairs(n_tokens, c.window_of(layer)) for layer in range(c.n_layers))
    return linear + 4 * c.d_q * pairs


def attended_pairs(n_tokens: int, window: int | None) -> int:
    """Return how many (query, key) pairs causal attention visits, each token its own included."""
    w = n_tokens if window is None else min(window, n_tokens)
    return w * (w + 1) // 2 + (n_tokens - w) * w
