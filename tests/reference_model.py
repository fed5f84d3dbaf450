"""The forward pass in float64 numpy, one token sequence at a time, written to be read.

An oracle beside transformers: it runs straight from a `ModelFile`, so also from a GGUF in
any encoding (decoded by the `gguf` package) and with either order of rotary pairs.
"""

from __future__ import annotations

import math

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from capax.files.config import ModelConfig, RopeConfig
from capax.files.model_file import ModelFile
from capax.files.tensors import TensorReader


def reference_logits(model: ModelFile, token_ids: list[int]) -> np.ndarray:
    """Return the logits after every token: float64 [T, vocab_size]."""
    c = model.config
    w = decoded_weights(model)
    cos, sin = rotations(c.rope, len(token_ids))
    x = w["token_embd.weight"][token_ids]
    for layer in range(c.n_layers):
        p = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blk.{layer}.")}
        x = x + attention(c, layer, p, rms_norm(x, p["attn_norm.weight"], c.norm_eps), cos, sin)
        h = rms_norm(x, p["ffn_norm.weight"], c.norm_eps)
        gate = h @ p["ffn_gate.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (h @ p["ffn_up.weight"].T)
        x = x + gated @ p["ffn_down.weight"].T
    x = rms_norm(x, w["output_norm.weight"], c.norm_eps)
    return x @ w["token_embd.weight" if c.tied_embeddings else "output.weight"].T


def decoded_weights(model: ModelFile) -> dict[str, np.ndarray]:
    """Decode every tensor to float64 of its shape."""
    weights = {}
    with TensorReader() as reader:
        for name, t in model.tensors.items():
            raw = reader.read(t)
            kind = GGMLQuantizationType(t.encoding.ggml_type)
            if t.encoding.name in ("F32", "F16"):
                raw = raw.view("<f4" if t.encoding.name == "F32" else "<f2")
            weights[name] = dequantize(raw, kind).reshape(t.shape).astype(np.float64)
    return weights


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def attention(
    c: ModelConfig,
    layer: int,
    p: dict[str, np.ndarray],
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
) -> np.ndarray:
    """Return what attention adds to the residual stream: [T, d_model]."""
    n_tokens = len(x)
    q, k, v = (x @ p[f"attn_{m}.weight"].T + p.get(f"attn_{m}.bias", 0.0) for m in "qkv")
    q = q.reshape(n_tokens, c.n_heads, c.head_dim)
    k = k.reshape(n_tokens, c.n_kv_heads, c.head_dim)
    v = v.reshape(n_tokens, c.n_kv_heads, c.head_dim)
    if c.qk_norm:
        q = rms_norm(q, p["attn_q_norm.weight"], c.norm_eps)
        k = rms_norm(k, p["attn_k_norm.weight"], c.norm_eps)
    q, k = rotated(q, cos, sin, c.rope), rotated(k, cos, sin, c.rope)
    k, v = (np.repeat(m, c.n_heads // c.n_kv_heads, axis=1) for m in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(c.head_dim)
    distance = np.subtract.outer(np.arange(n_tokens), np.arange(n_tokens))
    window = c.window_of(layer) or n_tokens
    scores[:, (distance < 0) | (distance >= window)] = -np.inf
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", probs, v).reshape(n_tokens, c.d_q)
    return mixed @ p["attn_output.weight"].T


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Rotate pairs of x: [T, heads, head_dim] by cos, sin: [T, dim/2]."""
    half = rope.dim // 2
    pairs = (
        (slice(0, rope.dim, 2), slice(1, rope.dim, 2))
        if rope.style == "interleaved"
        else (slice(0, half), slice(half, rope.dim))
    )
    a, b = x[..., pairs[0]], x[..., pairs[1]]
    c, s = cos[:, None, :], sin[:, None, :]
    out = x.copy()
    out[..., pairs[0]], out[..., pairs[1]] = a * c - b * s, b * c + a * s
    return out


def rotations(rope: RopeConfig, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin of every position: [T, dim/2]."""
    angles = np.outer(np.arange(n_tokens), inverse_frequencies(rope))
    return np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor


def inverse_frequencies(rope: RopeConfig) -> np.ndarray:
    """Return the angle per position of each pair, with the file's scaling: [dim/2]."""
    plain = rope.base ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if rope.freq_factors is not None:
        plain = plain / np.array(rope.freq_factors)
    if rope.scaling == "none":
        return plain
    if rope.scaling == "linear":
        return plain / rope.factor
    assert rope.original_context_len is not None
    turns = rope.original_context_len * plain / (2 * math.pi)  # over the original context
    if rope.scaling == "llama3":
        share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        share = np.clip(share, 0.0, 1.0)
    else:  # yarn: a ramp between the dimensions that turn beta_fast and beta_slow times

        def dimension_of(n_turns: float) -> float:
            assert rope.original_context_len is not None
            ratio = rope.original_context_len / (n_turns * 2 * math.pi)
            return rope.dim * math.log(ratio) / (2 * math.log(rope.base))

        low = max(math.floor(dimension_of(rope.beta_fast)), 0)
        high = min(math.ceil(dimension_of(rope.beta_slow)), rope.dim - 1)
        ramp = (np.arange(rope.dim // 2) - low) / max(high - low, 0.001)
        share = 1.0 - np.clip(ramp, 0.0, 1.0)
    return share * plain + (1 - share) * plain / rope.factor
