"""The Llama family: pre-norm decoder with rotary attention and SwiGLU.

Llama 1/2/3 and SmolLM2 (Touvron et al., 2023, arXiv 2302.13971), Mistral with its sliding
window (Jiang et al., 2023, arXiv 2310.06825), Qwen2 with biases on q, k and v (Yang et al.,
2024, arXiv 2407.10671) and Qwen3 with an RMS norm over each head of q and k (2025, arXiv
2505.09388) differ only in what `ModelConfig` says and in which tensors are present.

    x = embedding[token]
    for each layer:  x += W_o attention(rope(W_q h), rope(W_k h), W_v h),  h = rms_norm(x)
                     x += W_down (silu(W_gate h) * W_up h),                h = rms_norm(x)
    logits = W_out rms_norm(x)
"""

from __future__ import annotations

from capax.models.program import Norm, ProgramBuilder
from capax.models.tensors import ModelTensors


def build(p: ProgramBuilder, w: ModelTensors) -> None:
    """Record the forward pass over the tensors of one model."""
    c = p.config

    def norm(name: str) -> Norm:
        return Norm(w.vector(f"{name}.weight"), c.norm_eps)

    def optional_norm(name: str) -> Norm | None:
        return norm(name) if c.qk_norm else None

    x = p.buffer(c.d_model)
    q = p.buffer(c.n_heads * c.head_dim)
    k = p.buffer(c.n_kv_heads * c.head_dim)
    v = p.buffer(c.n_kv_heads * c.head_dim)
    a = p.buffer(c.n_heads * c.head_dim)
    gate = p.buffer(c.d_ffn)
    up = p.buffer(c.d_ffn)

    p.embed(w.matrix("token_embd.weight"), x)
    for layer in range(c.n_layers):
        block = f"blk.{layer}"
        attn_norm = norm(f"{block}.attn_norm")
        qkv = [(f"{block}.attn_{letter}", out) for letter, out in (("q", q), ("k", k), ("v", v))]
        p.linear(
            x,
            [(w.matrix(f"{n}.weight"), w.optional_vector(f"{n}.bias"), out) for n, out in qkv],
            norm=attn_norm,
        )
        p.attention(
            layer,
            x=x,
            q=q,
            k=k,
            v=v,
            out=a,
            norm=attn_norm,
            q_norm=optional_norm(f"{block}.attn_q_norm"),
            k_norm=optional_norm(f"{block}.attn_k_norm"),
        )
        if layer == c.n_layers - 1:
            # Nothing attends to what follows: only rows whose logits are wanted go on.
            x, a = p.gather(x), p.gather(a)
            gate, up = p.like(x, c.d_ffn), p.like(x, c.d_ffn)
        p.linear(a, [(w.matrix(f"{block}.attn_output.weight"), None, x)], add=True)
        p.linear(
            x,
            [
                (w.matrix(f"{block}.ffn_gate.weight"), None, gate),
                (w.matrix(f"{block}.ffn_up.weight"), None, up),
            ],
            norm=norm(f"{block}.ffn_norm"),
        )
        p.linear(gate, [(w.matrix(f"{block}.ffn_down.weight"), None, x)], up=up, add=True)
    p.output(x, w.matrix(w.output_name), norm("output_norm"))
