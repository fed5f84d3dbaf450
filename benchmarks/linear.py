"""The linear maps of one layer alone: what share of the dot-product peak the kernels reach."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

REPEATS = 20


def layer_gmacs(gguf: Path, threads: int, n_tokens: int) -> float:
    """Run the first layer's matrices over `n_tokens` rows; returns 1e9 multiply-adds per second.

    The engine's own operations on its own threads, quantising the inputs and SwiGLU included,
    without attention.
    """
    from capax import _native
    from capax.files.model_file import open_model
    from capax.weights import load_weight

    model = open_model(gguf)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    w = {name: load_weight(model.tensors[f"blk.0.{name}.weight"]) for name in names}
    table = load_weight(model.tensors["token_embd.weight"], "streamed")
    program = _native.Program(threads)
    x, out = program.buffer(w["attn_q"].n_in, False), program.buffer(w["ffn_down"].n_out, False)
    program.embed(table, x)

    def linear(source: int, up: int, *maps: tuple[str, int]) -> None:
        operation = program.linear(source, None, 0.0, up, False)
        for name, target in maps:
            program.linear_output(operation, w[name], None, target)

    q, k, v, gate, up = (
        program.buffer(w[name].n_out, False)
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
    )
    first = program.n_operations
    linear(x, -1, ("attn_q", q), ("attn_k", k), ("attn_v", v))
    linear(q, -1, ("attn_output", out))
    linear(x, -1, ("ffn_gate", gate), ("ffn_up", up))
    linear(gate, up, ("ffn_down", out))
    program.reserve(n_tokens, 1)

    tokens = np.arange(n_tokens, dtype=np.int32)
    bounds, nothing = np.array([[0, n_tokens, 0]], np.int32), np.empty(0, np.int32)

    def run(begin: int) -> None:
        program.run(begin, program.n_operations, tokens, bounds, [], None, None, nothing, [])

    run(0)
    started = time.perf_counter()
    for _ in range(REPEATS):
        run(first)
    seconds = time.perf_counter() - started
    return sum(m.n_out * m.n_in for m in w.values()) * n_tokens * REPEATS / seconds / 1e9
