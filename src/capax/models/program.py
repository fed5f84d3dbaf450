"""Records a family's forward pass as a native program.

A family file says, in the order of the computation, which operation reads which buffer of
rows; nothing is computed while recording. The engine then runs the whole program, or the
part between two attention operations, with one native call per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.files.config import ModelConfig
from capax.models.rope import RotaryTables
from capax.weights import NativeWeight

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMS norm before a linear map: `gain` float32 [n_in]."""

    gain: Floats
    eps: float


@dataclass(frozen=True, slots=True)
class Attention:
    """One recorded attention operation, as a cache outside the program needs to see it.

    `operation` is its index in the program; `x`, `q`, `k`, `v`, `out` are buffer ids.
    """

    operation: int
    layer: int
    x: int
    q: int
    k: int
    v: int
    out: int
    norm: Norm
    q_norm: Norm | None
    k_norm: Norm | None


@dataclass
class ProgramBuilder:
    """Buffers are rows of float32, one per token of the step; ids are small integers."""

    config: ModelConfig
    rotary: RotaryTables
    native: _native.Program
    attentions: list[Attention] = field(default_factory=list)
    tables: list[Floats] = field(default_factory=list)  # that operations read, besides `rotary`
    widths: dict[int, int] = field(default_factory=dict)  # of buffers with a row for each token
    head: int = -1  # index of the first operation of the head
    hidden: int = -1  # buffer of what the output's norm reads [n_logit_rows, d_model]
    output_norm: Norm | None = None
    output_operation: int = -1  # index of the operation that makes the logits
    logits: int = -1  # buffer [n_logit_rows, vocab_size]

    def buffer(self, width: int) -> int:
        """Return a new buffer of `width` floats per token."""
        buffer = self.native.buffer(width, False)
        self.widths[buffer] = width
        return buffer

    def like(self, x: int, width: int) -> int:
        """Return a new buffer of `width` with as many rows as x."""
        return self.buffer(width) if x in self.widths else self.native.buffer(width, True)

    def embed(self, table: NativeWeight, out: int) -> None:
        """out[t] = row `token[t]` of the embedding table."""
        self.native.embed(table, out)

    def linear(
        self,
        x: int,
        outputs: Sequence[tuple[NativeWeight, Floats | None, int]],
        *,
        norm: Norm | None = None,
        up: int | None = None,
        add: bool = False,
    ) -> None:
        """For each (weight, bias, out): out = W h + bias, or out += W h with `add`.

        h is x, its RMS norm, or silu(x) * up (SwiGLU, Shazeer 2020, arXiv 2002.05202).
        """
        gain = norm.gain if norm else None
        eps = norm.eps if norm else 0.0
        operation = self.native.linear(x, gain, eps, -1 if up is None else up, add)
        for weight, bias, out in outputs:
            self.native.linear_output(operation, weight, bias, out)

    def attention(
        self,
        layer: int,
        *,
        x: int,
        q: int,
        k: int,
        v: int,
        out: int,
        norm: Norm,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        """Normalise (if asked) and rotate q and k, append k and v to the cache, attend.

        `x` and `norm` name where the layer's input came from, for caches that keep it.
        """
        c = self.config
        operation = self.native.attention(
            layer,
            q,
            k,
            v,
            out,
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            self.rotary.cos,
            self.rotary.sin,
            self.rotary.style == "interleaved",
            q_norm.gain if q_norm else None,
            k_norm.gain if k_norm else None,
            q_norm.eps if q_norm else 0.0,
            c.attention_scale,
            c.window_of(layer) or 0,
            True,
        )
        self.attentions.append(Attention(operation, layer, x, q, k, v, out, norm, q_norm, k_norm))

    def encoder_attention(self, *, q: int, k: int, v: int, out: int) -> None:
        """Let every token of a text attend to all of them.

        Keys and values go where those of the layer before were: nobody reads them again.
        """
        c = self.config
        cos, sin = self.rotary.cos, self.rotary.sin
        self.native.attention(
            0, q, k, v, out, c.n_heads, c.n_kv_heads, c.head_dim, cos, sin, False, None, None, 0.0,
            c.attention_scale, 0, False,
        )  # fmt: skip

    def positions(self, table: Floats, x: int) -> None:
        """x[t] += table[position of t]; table: float32 [n_positions, width of x]."""
        self.tables.append(table)
        self.native.positions(x, table)

    def layer_norm(self, x: int, weight: Floats, bias: Floats) -> None:
        """Normalise every row of x in place (Ba et al., 2016, arXiv 1607.06450)."""
        self.native.layer_norm(x, weight, bias, self.config.norm_eps)

    def gelu(self, x: int) -> None:
        """Multiply x by Phi(x) in place (GELU, Hendrycks and Gimpel, 2016, arXiv 1606.08415)."""
        self.native.gelu(x)

    def gather(self, x: int) -> int:
        """Return a buffer with only the rows whose logits are wanted.

        The first call begins the head: what is recorded from here on can run again for other
        rows, and not at all for a chunk of a prompt that is not the last.
        """
        gathered = self.native.buffer(self.widths[x], True)
        operation = self.native.gather(x, gathered)
        if self.head < 0:
            self.head = operation
        return gathered

    def output(self, x: int, weight: NativeWeight, norm: Norm, bias: Floats | None = None) -> None:
        """Record the logits of gathered rows x, [n_logit_rows, vocab_size], and the sampling."""
        self.hidden, self.output_norm = x, norm
        self.output_operation = self.native.n_operations
        self.logits = self.native.buffer(weight.n_out, True)
        self.linear(x, [(weight, bias, self.logits)], norm=norm)
        self.native.sample(self.logits)
