"""The BERT family: post-norm encoder with learned positions.

Devlin et al., 2019, arXiv 1810.04805. Every token attends to every other one of its text,
so a text is one forward pass and nothing of it is kept. MiniLM (Wang et al., 2020, arXiv
2002.10957) and most sentence embedders are BERT with other sizes.

    x = layer_norm(token[t] + position[p] + type[0])
    for each layer:  x = layer_norm(x + W_o attention(W_q x, W_k x, W_v x))
                     x = layer_norm(x + W_down gelu(W_up x))
"""

from __future__ import annotations

from capax.models.program import ProgramBuilder
from capax.models.tensors import ModelTensors


def build(p: ProgramBuilder, w: ModelTensors) -> int:
    """Record the forward pass over the tensors of one model; returns the buffer of its rows."""
    c = p.config

    def norm(name: str) -> None:
        p.layer_norm(x, w.vector(f"{name}.weight"), w.vector(f"{name}.bias"))

    x = p.buffer(c.d_model)
    q = p.buffer(c.d_model)
    k = p.buffer(c.d_model)
    v = p.buffer(c.d_model)
    a = p.buffer(c.d_model)
    up = p.buffer(c.d_ffn)

    p.embed(w.matrix("token_embd.weight"), x)
    types = w.matrix("token_types.weight").dequantize()
    p.positions(w.matrix("position_embd.weight").dequantize() + types[0], x)
    norm("token_embd_norm")
    for layer in range(c.n_layers):
        block = f"blk.{layer}"

        def linear(*names: tuple[str, int], of: int, block: str = block, add: bool = False) -> None:
            outputs = [
                (w.matrix(f"{block}.{name}.weight"), w.vector(f"{block}.{name}.bias"), out)
                for name, out in names
            ]
            p.linear(of, outputs, add=add)

        linear(("attn_q", q), ("attn_k", k), ("attn_v", v), of=x)
        p.encoder_attention(q=q, k=k, v=v, out=a)
        linear(("attn_output", x), of=a, add=True)
        norm(f"{block}.attn_output_norm")
        linear(("ffn_up", up), of=x)
        p.gelu(up)
        linear(("ffn_down", x), of=up, add=True)
        norm(f"{block}.layer_output_norm")
    return x
