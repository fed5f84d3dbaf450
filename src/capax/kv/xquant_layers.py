"""The matrices of one layer that XQuant stores through and rematerialises with.

Notation: X [t, d] is a layer's normalised input, H the residual stream before that norm,
X = gain * H / rms(H); W_k, W_v [d, d_kv] project it. Every product is the engine's own float32
kernel, whose rows do not depend on each other: so a token's numbers are the same alone, in a chunk
or read again later. Matrices that a model keeps in few bits are dequantised first.

    x            K = X W_k                       V = X W_v
    latent       K = A (S_k B_k'),  A = X U_k    V = C (S_v B_v'),  C = X U_v
                 from W_k = U_k S_k B_k' and W_v = U_v S_v B_v', each of full rank
    cross-layer  K = X W_k, V = X W_v; deltas go through U_kv of [W_k | W_v], or of
                 diag(gain) [W_k | W_v] where H is accumulated, and come back by U_kv'

The decompositions are made in float64 and rounded to float32 once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.files.tensors import TensorReader, read_float32
from capax.weights import NativeWeight, load_weight

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.floating]

__all__ = ["LayerMatrices", "latent_width", "layer_matrices", "matrices_nbytes", "one_blas_thread"]


@dataclass(frozen=True)
class LayerMatrices:
    """`down`: what a row is stored through, X -> (A | C) or delta -> latent; `up`: back again.

    `k`: rows -> keys [d_kv]; `v`: one matrix for each KV head, rows -> [head_dim]. Biases are
    added after. `gain` is that of the norm before the projections.
    """

    k: NativeWeight
    v: tuple[NativeWeight, ...]
    k_bias: Floats | None
    v_bias: Floats | None
    gain: Floats
    down: tuple[NativeWeight, ...] = ()
    up: NativeWeight | None = None

    @property
    def nbytes(self) -> int:
        matrices = [self.k, *self.v, *self.down, *([self.up] if self.up else [])]
        vectors = [b for b in (self.k_bias, self.v_bias) if b is not None]
        return sum(w.nbytes for w in matrices) + sum(b.nbytes for b in [*vectors, self.gain])

    def keys(self, rows: Floats) -> Floats:
        """Return keys [t, d_kv] of rows, not yet normalised or rotated."""
        k = self.k.matmul(rows)
        return k if self.k_bias is None else k + self.k_bias

    def values(self, rows: Floats) -> Floats:
        """Return values [t, n_kv_heads, head_dim] of rows."""
        v = np.stack([head.matmul(rows) for head in self.v], axis=1)
        return v if self.v_bias is None else v + self.v_bias.reshape(v.shape[1:])

    def values_of_sums(self, sums: Floats) -> Floats:
        """Return what attention over rows, [t, n_heads, width], is as attention over values.

        Absorption: sum_j p_j (row_j W_v) = (sum_j p_j row_j) W_v, and the p_j add up to 1.
        """
        t, _, width = sums.shape
        groups = sums.reshape(t, len(self.v), -1, width)
        out = []
        for g, head in enumerate(self.v):
            rows = np.ascontiguousarray(groups[:, g]).reshape(-1, width)
            v = head.matmul(rows).reshape(t, -1, head.n_out)
            bias = self.v_bias
            out.append(v if bias is None else v + bias.reshape(len(self.v), -1)[g])
        return np.concatenate(out, axis=1)


def layer_matrices(
    model: ModelFile, reader: TensorReader, layer: int, *, latent: bool, deltas: bool, gained: bool
) -> LayerMatrices:
    """Return the matrices of one layer.

    `latent`: store through the decomposition; `deltas`: rows are whole X or H, `latent` concerns
    what is stored of their deltas; `gained`: the rows are H.
    """
    c = model.config
    name = f"blk.{layer}.attn_"
    w_k, w_v = (load_weight(model.tensors[f"{name}{x}.weight"]).dequantize() for x in "kv")
    biases = [model.tensors.get(f"{name}{x}.bias") for x in "kv"]
    k_bias, v_bias = (None if b is None else read_float32(reader, b) for b in biases)
    gain = read_float32(reader, model.tensors[f"{name}norm.weight"])
    heads = np.split(w_v, c.n_kv_heads)
    if not latent:
        return LayerMatrices(_weight(w_k), _weights(heads), k_bias, v_bias, gain)
    down: tuple[NativeWeight, ...]
    if deltas:
        both = np.concatenate([w_k, w_v]).astype(np.float64)
        u, _, _ = _thin_svd(both * gain if gained else both)
        down, up = (_weight(u.T),), _weight(u)
        return LayerMatrices(_weight(w_k), _weights(heads), k_bias, v_bias, gain, down, up)
    u_k, s_k, b_k = _thin_svd(w_k.astype(np.float64))
    u_v, s_v, b_v = _thin_svd(w_v.astype(np.float64))
    k, v = (s_k[:, None] * b_k).T, (s_v[:, None] * b_v).T  # [d_kv, width]
    down = _weight(u_k.T), _weight(u_v.T)
    return LayerMatrices(
        _weight(k), _weights(np.split(v, c.n_kv_heads)), k_bias, v_bias, gain, down
    )


def latent_width(config: ModelConfig, *, deltas: bool) -> int:
    """Return the numbers stored of a row: of A and of C each, or of a delta."""
    return min(config.d_model, config.d_kv * (2 if deltas else 1))


def matrices_nbytes(config: ModelConfig, *, latent: bool, deltas: bool) -> int:
    """Return the bytes of `LayerMatrices` of all layers."""
    c = config
    width = latent_width(c, deltas=deltas)
    in_k = width if latent and not deltas else c.d_model
    shapes = [(c.d_kv, in_k)] + [(c.head_dim, in_k)] * c.n_kv_heads
    if latent:
        shapes += [(width, c.d_model), (c.d_model, width)] if deltas else [(width, c.d_model)] * 2
    matrices = sum(NativeWeight.packed_nbytes("F32", *shape) for shape in shapes)
    vectors = c.d_model + (2 * c.d_kv if c.qkv_bias else 0)
    return c.n_layers * (matrices + 4 * vectors)


def one_blas_thread() -> AbstractContextManager[object]:
    """Hold BLAS to one thread: the same bits on any number of cores, and no spinning.

    Measured on two busy cores: 0.04 s for a decomposition of [576, 192] instead of 3.6 s.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def _thin_svd(w: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return U [d, r], S [r] and B' [r, n] of w' = U S B' for w [n, d]."""
    u, s, b = np.linalg.svd(w.T, full_matrices=False)
    return u, s, b


def _weights(parts: list[Matrix]) -> tuple[NativeWeight, ...]:
    return tuple(_weight(part) for part in parts)


def _weight(matrix: Matrix) -> NativeWeight:
    rows = np.ascontiguousarray(matrix, np.float32)
    return NativeWeight.from_bytes(rows.view(np.uint8).reshape(-1), "F32", *rows.shape)
