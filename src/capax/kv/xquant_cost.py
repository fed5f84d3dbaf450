"""What XQuant costs: bytes beside a 16-bit cache, and operations beside reading the weights.

A shape is `n_layers`, `d_model`, `d_kv`; sizes are fractions of the 4 d_kv bytes that a token and
layer take in f16. Rematerialising hides behind reading the weights up to T* cached tokens:

    T* = (weight bytes / bandwidth) operations per second / (operations per cached token)
"""

from __future__ import annotations

from dataclasses import dataclass

from capax.files.config import ModelConfig
from capax.kv.quantiser import BLOCK_TOKENS
from capax.kv.xquant import XQuantCaching, XQuantLayout


@dataclass(frozen=True)
class Machine:
    """`bandwidth`: bytes per second; `flops`: operations per second."""

    name: str
    bandwidth: float
    flops: float


H100 = Machine("H100", 3.35e12, 989e12)


@dataclass(frozen=True)
class XQuantCost:
    """Bytes per token, all layers, by part; operations per cached token and step.

    `window`: of a whole sequence, whatever its length. `of_f16`: stored bytes by those of a 16-bit
    cache; `live_of_f16`: the accumulator of CL too, which each sequence of a batch has.
    """

    codes: float
    scales: float
    rms: float
    accumulator: float
    window: int
    f16: int
    remat_flops: int

    @property
    def stored(self) -> float:
        return self.codes + self.scales + self.rms

    @property
    def of_f16(self) -> float:
        return self.stored / self.f16

    @property
    def live_of_f16(self) -> float:
        return (self.stored + self.accumulator) / self.f16

    def break_even_tokens(self, weight_nbytes: float, machine: Machine = H100) -> float:
        """Return T*: cached tokens up to which reading the weights takes longer."""
        return weight_nbytes / machine.bandwidth * machine.flops / self.remat_flops


def xquant_cost(options: XQuantCaching, config: ModelConfig) -> XQuantCost:
    """Return the cost of a method for a model, from the layout that caches allocate by."""
    layout = XQuantLayout(options, config)
    return XQuantCost(
        codes=layout.code_nbytes / BLOCK_TOKENS,
        scales=layout.scale_nbytes / BLOCK_TOKENS,
        rms=layout.rms_nbytes / BLOCK_TOKENS,
        accumulator=layout.accumulator_nbytes / BLOCK_TOKENS,
        window=layout.window_nbytes if options.exact_window else 0,
        f16=4 * config.d_kv * config.n_layers,
        remat_flops=remat_flops(layout, absorbed=False),
    )


def remat_flops(layout: XQuantLayout, *, absorbed: bool) -> int:
    """Return operations per cached token and step, all layers; 2 for a product and its sum.

    `absorbed`: values are summed as rows, and projected once for each query head.
    """
    c = layout.config
    width = layout.row_width // 2 if layout.is_latent_rows else c.d_model
    values = 2 * c.n_heads * width if absorbed else 2 * width * c.d_kv
    total = c.n_layers * (2 * width * c.d_kv + values)
    if layout.options.cross_layer:
        for layer in range(c.n_layers):
            if layout.codes_latents(layer):
                total += 2 * c.d_model * layout.streams[layer][0].quantiser.n_channels
    return total


def closed_form_size(
    n_layers: int, bits: int, *, group: int = 128, base_layers: int = 0, base_bits: int = 4
) -> float:
    """Return the size of stored X beside keys and values in f16, on a multi-head model.

    (b + 32 / G) / 32 per layer: half the numbers, b bits and a share of two 16-bit numbers each.
    """
    overhead = 32 / group
    base = base_layers * (base_bits + overhead)
    return (base + (n_layers - base_layers) * (bits + overhead)) / (32 * n_layers)


# Published shapes, from the models' cards: layers, width, width of K, bytes of weights in 16 bits.
LLAMA_2_7B = 32, 4096, 4096, 2 * 6_738_415_616
LLAMA_31_8B = 32, 4096, 1024, 2 * 8_030_261_248


def published_break_even() -> dict[str, float]:
    """Return T* on an H100 of X (Llama-2-7B), latents and latent deltas (Llama-3.1-8B)."""

    def tokens(shape: tuple[int, int, int, int], flops: int) -> float:
        layers, _, _, nbytes = shape
        return nbytes / H100.bandwidth * H100.flops / (layers * flops)

    _, d, d_kv, _ = LLAMA_31_8B
    return {
        "X, Llama-2-7B": tokens(LLAMA_2_7B, 4 * LLAMA_2_7B[1] * LLAMA_2_7B[2]),
        "latents, Llama-3.1-8B": tokens(LLAMA_31_8B, 4 * d_kv**2),
        "latent deltas, Llama-3.1-8B": tokens(LLAMA_31_8B, 8 * d * d_kv),
    }
