"""Capacity for random strings (Morris et al. 2025): how bits and exposures are counted."""

import json
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from benchmarks import random_strings as strings_of  # noqa: E402

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "random_strings.json"


def test_a_string_has_224_bits_and_a_uniform_model_stores_none() -> None:
    strings = strings_of.draw_strings(24, seed=0)
    model = strings_of.Llama(strings_of.SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # logits are 0 over 128 symbols and the start: log2 129 bits per symbol
    missing = 24 * 32 * (torch.tensor(129.0).log2().item() - 7)
    assert strings_of.stored_bits(model, strings) == pytest.approx(-missing, abs=1e-2)


def test_every_string_is_shown_once_per_epoch() -> None:
    strings = strings_of.draw_strings(24, seed=0)
    shown = Counter(
        tuple(row.tolist()) for step in range(36) for row in strings_of.batch(strings, 2, step, 0)
    )
    assert set(shown.values()) == {3}
    assert len(shown) == 24


def test_committed_models_store_no_more_than_there_is() -> None:
    rows = json.loads(RESULT.read_text())["rows"]
    assert len(rows) >= 2
    for row in rows:
        assert 0 < row["bits"] <= row["bits_there_are"]
        assert row["bits_per_parameter"] == pytest.approx(row["bits"] / row["n_parameters"])
