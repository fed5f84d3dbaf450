"""Logits against transformers in float32, for every family, rotary scaling and file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capax import LLM
from capax.files.model_file import open_model
from tests.models import (
    FAMILY_NAMES,
    LINEAR_ROPE,
    LLAMA3_ROPE,
    VOCAB_SIZE,
    YARN_ROPE,
    gguf_model,
    hf_model,
    hf_oracle,
)
from tests.reference_model import reference_logits

# Largest |difference| allowed with float32 weights and activations, as a share of the largest
# |logit|. Measured when written: 1.4e-6.
FLOAT_TOLERANCE = 1e-5
# With quantised weights activations are int8 in blocks of 32; against float64 on the same
# dequantised weights the root mean square of the differences is this share of the logits'.
# Measured when written, largest of four encodings: 0.0315, through 3 layers 64 wide.
INT8_TOLERANCE = 0.05


def oracle_logits(model_dir: Path, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(hf_oracle(model_dir)(torch.tensor([ids])).logits[0].numpy())


def some_ids(n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, VOCAB_SIZE, n)]


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_float32_logits_equal_transformers(family: str) -> None:
    ids = some_ids(100)
    reference = oracle_logits(hf_model(family), ids)
    for path in (hf_model(family), gguf_model(family)):
        logits = LLM(path, kv="f32", threads=2).logits(ids)
        assert relative_error(logits, reference) < FLOAT_TOLERANCE
        assert np.abs(logits - reference).max() < 1e-3


@pytest.mark.parametrize(
    "rope", [LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE], ids=["linear", "llama3", "yarn"]
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rotary_scaling_equals_transformers(family: str, rope: dict[str, Any]) -> None:
    ids = some_ids(200)
    reference = oracle_logits(hf_model(family, rope=rope), ids)
    for path in (hf_model(family, rope=rope), gguf_model(family, rope=rope)):
        assert relative_error(LLM(path, kv="f32").logits(ids), reference) < FLOAT_TOLERANCE


def test_rotary_scaling_changes_logits() -> None:
    """The comparison above would notice if scaling were ignored."""
    ids = some_ids(200)
    plain = oracle_logits(hf_model("llama"), ids)
    for rope in (LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE):
        scaled = LLM(hf_model("llama", rope=rope), kv="f32").logits(ids)
        assert relative_error(scaled, plain) > 100 * FLOAT_TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_embeddings(tied: bool) -> None:
    ids = some_ids(40)
    for family in ("llama", "qwen3"):
        path = hf_model(family, tie_word_embeddings=tied)
        reference = oracle_logits(path, ids)
        assert relative_error(LLM(path, kv="f32").logits(ids), reference) < FLOAT_TOLERANCE


@pytest.mark.parametrize("encoding", ["F16", "BF16"])
def test_half_precision_weights_equal_their_float64_reference(encoding: str) -> None:
    ids = some_ids(64)
    path = gguf_model("llama", encoding=encoding)
    exact = reference_logits(open_model(path), ids)
    assert relative_error(LLM(path, kv="f32").logits(ids), exact) < FLOAT_TOLERANCE


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_integer_activations_stay_within_their_bound(encoding: str) -> None:
    ids = some_ids(64)
    path = gguf_model("llama", encoding=encoding)
    exact = reference_logits(open_model(path), ids)
    difference = LLM(path, kv="f32").logits(ids) - exact
    error = float(np.sqrt((difference**2).sum() / (exact**2).sum()))
    assert 0 < error < INT8_TOLERANCE


@pytest.mark.parametrize(("kv", "bound"), [("f16", 2e-3), ("bf16", 2e-2), ("int8", 4e-2)])
def test_cache_precision_stays_within_its_bound(kv: str, bound: float) -> None:
    ids = some_ids(150)
    path = hf_model("llama")
    exact = LLM(path, kv="f32").logits(ids)
    error = relative_error(LLM(path, kv=kv).logits(ids), exact)
    assert 0 < error < bound


def test_sliding_window_hides_old_tokens() -> None:
    """Beyond layers x window, the first token cannot reach the last one's logits."""
    llm = LLM(hf_model("mistral"), kv="f32")
    window, n_layers = llm.config.sliding_window, llm.config.n_layers
    assert window is not None
    n = n_layers * window + 8
    a, b = some_ids(n), some_ids(n)
    b[0] = (b[0] + 1) % VOCAB_SIZE
    last_a, last_b = llm.logits(a)[-1], llm.logits(b)[-1]
    assert np.array_equal(last_a, last_b)
    assert not np.array_equal(llm.logits(a)[window - 1], llm.logits(b)[window - 1])
