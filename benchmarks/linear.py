"""The linear maps of one layer alone: what share of the dot-product peak the kernels reach."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

REPEATS = 10


def layer_gmacs(gguf: Path, threads: int, n_tokens: int) -> float:
    """Multiply `n_tokens` rows by the matrices of the first layer; returns 1e9 multiply-adds per second.

    Each thread computes its share of every matrix's output rows, quantising the inputs itself.
    """
    from capax.files.model_file import open_model
    from capax.weights import load_weight

    tensors = open_model(gguf).tensors
    weights = [
        load_weight(t)
        for name, t in tensors.items()
        if name.startswith("blk.0.") and len(t.shape) == 2
    ]
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal((n_tokens, n), np.float32) for n in {w.n_in for w in weights}}
    outputs = [np.zeros((n_tokens, w.n_out), np.float32) for w in weights]
    start = threading.Barrier(threads + 1)

    def work(rank: int, repeats: int) -> None:
        start.wait()
        for _ in range(repeats):
            for weight, y in zip(weights, outputs, strict=True):
                first = weight.n_groups * rank // threads
                last = weight.n_groups * (rank + 1) // threads
                weight.matmul_groups(inputs[weight.n_in], y, first, last)

    def timed(repeats: int) -> float:
        team = [threading.Thread(target=work, args=(r, repeats)) for r in range(threads)]
        for thread in team:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in team:
            thread.join()
        return time.perf_counter() - began

    timed(1)
    macs = sum(w.n_out * w.n_in for w in weights) * n_tokens * REPEATS
    return macs / timed(REPEATS) / 1e9
