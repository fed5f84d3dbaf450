"""What the files say is enough to compute what transformers computes.

The forward pass is `tests/reference_model.py` in float64, so a difference above rounding
of the float32 oracle means a wrong name, shape, permutation or configuration value.
"""

from typing import Any

import numpy as np
import pytest

from capax.files.model_file import open_model
from tests.models import (
    FAMILY_NAMES,
    LINEAR_ROPE,
    LLAMA3_ROPE,
    YARN_ROPE,
    gguf_model,
    hf_model,
    hf_oracle,
)
from tests.reference_model import reference_logits

TOKEN_IDS = np.random.default_rng(7).integers(0, 320, 90).tolist()
# Largest |difference| over largest |logit|; measured 1e-6, the rounding of the oracle.
TOLERANCE = 1e-5

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILY_NAMES),
    *(("llama", {"rope": rope}) for rope in (LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE)),
    ("qwen2", {"rope": YARN_ROPE}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
]


def oracle_logits(family: str, options: dict[str, Any]) -> np.ndarray:
    import torch

    model = hf_oracle(hf_model(family, **options))
    with torch.no_grad():
        logits = model(torch.tensor([TOKEN_IDS])).logits[0]
    return np.asarray(logits.numpy(), np.float64)


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
def test_both_formats_give_the_logits_of_transformers(family: str, options: dict[str, Any]) -> None:
    expected = oracle_logits(family, options)
    hf = reference_logits(open_model(hf_model(family, **options)), TOKEN_IDS)
    assert relative_difference(hf, expected) < TOLERANCE
    if "max_window_layers" in options:
        return  # GGUF has no key for windows in some layers only
    gguf = reference_logits(open_model(gguf_model(family, **options)), TOKEN_IDS)
    assert relative_difference(gguf, expected) < TOLERANCE


def test_the_comparison_sees_a_wrong_model() -> None:
    """Negative control: other scalings, windows or families are far outside the tolerance."""
    expected = oracle_logits("llama", {})
    for rope in (LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE):
        other = reference_logits(open_model(hf_model("llama", rope=rope)), TOKEN_IDS)
        assert relative_difference(other, expected) > 100 * TOLERANCE
    wide = reference_logits(open_model(hf_model("mistral", sliding_window=90)), TOKEN_IDS)
    assert relative_difference(wide, oracle_logits("mistral", {})) > 100 * TOLERANCE


# Relative RMS error of the logits measured on this random model (which amplifies every
# rounding; a trained one does not), 2026-11.
MEASURED_ERROR = {
    "F16": 0.0013,
    "BF16": 0.012,
    "Q8_0": 0.036,
    "Q5_1": 0.26,
    "Q5_0": 0.28,
    "Q4_1": 0.50,
    "Q4_0": 0.51,
}


@pytest.mark.parametrize("encoding", MEASURED_ERROR)
def test_quantised_files_are_as_far_from_the_float_model_as_measured(encoding: str) -> None:
    expected = reference_logits(open_model(gguf_model("llama")), TOKEN_IDS)
    got = reference_logits(open_model(gguf_model("llama", encoding=encoding)), TOKEN_IDS)
    error = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
    assert error == pytest.approx(MEASURED_ERROR[encoding], rel=0.1)


def test_both_formats_give_the_same_token_ids() -> None:
    from capax.files.tokenizer import Tokenizer

    hf, gguf = open_model(hf_model("qwen3")), open_model(gguf_model("qwen3"))
    a, b = Tokenizer.from_directory(hf.path), Tokenizer.from_gguf(gguf.metadata)
    text = "The other thing is on the shelf: ünï 🙂 12"
    assert a.encode(text) == b.encode(text)
    assert a.decode(a.encode(text)) == text
    assert a.vocab_size == hf.config.vocab_size
