"""What a plan will cost in time: a roofline over the probe of this machine.

Decode reads every weight and the KV cache once per token, so its time is bytes over the
probed bandwidth at that footprint. Prefill reads them once per chunk and is bound by
arithmetic: multiply-adds over the probed peak. What the engine reaches of each roof is a
measured factor, stated here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from capax.files.model_file import ModelFile
from capax.kv import kv_method
from capax.planning.footprint import Shape, matrix_names, packed_matrix_nbytes
from capax.planning.probe import Probe

# Shares of the probed roof that the engine reaches, measured 2026-11-22 with SmolLM2-135M
# Q4_1, f16 KV, one thread, AVX-512 VNNI on a shared machine, the best of many short runs:
# weights 0.78 to 0.85 of the read bandwidth; attention of one token at depths 512 and 2,048
# 0.2 to 0.3 of it (converting and multiplying bind it, not reading); prefill of 64 to 1,024
# tokens 0.49 to 0.56 of the int8 and float32 peaks.
DECODE_EFFICIENCY = 0.80
KV_EFFICIENCY = 0.28
PREFILL_EFFICIENCY = 0.54
PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Prediction:
    """Tokens per second, and what they were derived from.

    `decode_at_full_context` is the speed of the last token that still fits; `prefill` is for
    a prompt of `prompt_tokens`.
    """

    decode_tokens_per_second: float
    decode_tokens_per_second_at_full_context: float
    prefill_tokens_per_second: float
    prompt_tokens: int
    basis: str


def predict(model: ModelFile, shape: Shape, probe: Probe) -> Prediction:
    """Predict the speed of one sequence run in this shape on the probed machine."""
    prompt = min(PROMPT_TOKENS, shape.context_len)
    return Prediction(
        decode_tokens_per_second=1 / decode_seconds(model, shape, probe, 0),
        decode_tokens_per_second_at_full_context=1
        / decode_seconds(model, shape, probe, shape.context_len - 1),
        prefill_tokens_per_second=prompt / prefill_seconds(model, shape, probe, prompt),
        prompt_tokens=prompt,
        basis=f"probe of {probe.cpu_model}, {probe.isa}, {probe.threads} threads, {probe.created}",
    )


def decode_seconds(model: ModelFile, shape: Shape, probe: Probe, depth: int) -> float:
    """Return the seconds of one decoded token with `depth` tokens in the cache."""
    read = [name for name in matrix_names(model) if not _is_lookup_only(model, name)]
    packed = sum(packed_matrix_nbytes(model, name) for name in read if name not in shape.streamed)
    footprint = kv_method(shape.kv).footprint(model.config)
    kv = footprint.page * (depth + 1) // footprint.page_tokens  # not whole pages
    if footprint.max_pages is not None:
        kv = min(kv, footprint.page * footprint.max_pages)
    rate = probe.read_rate(packed + kv)
    in_memory = packed / DECODE_EFFICIENCY + kv / KV_EFFICIENCY
    return in_memory / rate + _streamed_seconds(model, shape, probe)


def prefill_seconds(model: ModelFile, shape: Shape, probe: Probe, n_tokens: int) -> float:
    """Return the seconds until a prompt of `n_tokens` is in an empty cache."""
    c = model.config
    int8 = floats = 0
    for name in matrix_names(model):
        if _is_lookup_only(model, name) or name == output_name(model):
            continue  # the output runs for the last token only
        tensor = model.tensors[name]
        n_out, n_in = tensor.shape
        if tensor.encoding.is_float:
            floats += 2 * n_out * n_in
        else:
            int8 += n_out * n_in
    attention = 4 * c.d_q * c.n_layers * n_tokens / 2  # float operations of an average token
    per_token = int8 / probe.int8_rate(shape.threads) + (floats + attention) / probe.f32_rate(
        shape.threads
    )
    chunks = -(-n_tokens // shape.prefill_chunk)
    return n_tokens * per_token / PREFILL_EFFICIENCY + chunks * _streamed_seconds(
        model, shape, probe
    )


def output_name(model: ModelFile) -> str:
    """Return the name of the matrix that makes logits."""
    return "token_embd.weight" if model.config.tied_embeddings else "output.weight"


def _is_lookup_only(model: ModelFile, name: str) -> bool:
    """An embedding of its own gives one row per token and is never read whole."""
    return name == "token_embd.weight" and not model.config.tied_embeddings


def _streamed_seconds(model: ModelFile, shape: Shape, probe: Probe) -> float:
    """Reading every streamed matrix once, uncached: page cache is not part of the budget."""
    streamed = sum(
        model.tensors[name].nbytes for name in shape.streamed if not _is_lookup_only(model, name)
    )
    return streamed / probe.disk_rate("sequential")
