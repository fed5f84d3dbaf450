"""Knowledge capacity (arXiv 2404.05405): the committed results keep the statements made of them.

Bands are those of models below 1 million parameters. What the page says does not hold is not
asserted here: the tag that should protect from junk, and 0.5 % for Q8_0 on overfull models.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
N_ATTRIBUTES = 6


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / "knowledge.json").read_text())
    return loaded


def test_no_model_knows_more_than_there_is(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        for name, known in row["encodings"].items():
            where = f"{row['key']} {name}"
            assert known["bits_per_parameter"] <= known["r_max"] + 1e-6, where
            assert known["p1"] >= math.log(known["n_people"]) - 1e-6, where
            assert known["bits_per_parameter"] <= 2.6, where


def test_every_wrong_value_costs_a_bit(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        for name, known in row["encodings"].items():
            wrong = N_ATTRIBUTES * (1 - known["recall"])
            assert wrong <= known["p2_first"] / math.log(2) + 1e-9, f"{row['key']} {name}"


def test_more_exposures_store_more(result: dict[str, Any]) -> None:
    peaks = result["summary"]["peak_bits_per_parameter"]
    assert 0.25 <= peaks["100"] <= 1.4
    assert peaks["300"] >= 1.3 * peaks["100"]
    assert 1.2 <= peaks["1000"] <= 2.6
    assert peaks["1000"] >= 1.4 * peaks["100"]


def test_a_full_model_loses_more_in_four_bits_than_a_half_full_one(result: dict[str, Any]) -> None:
    light, loaded = (result["summary"]["loss_of_bits"][n] for n in ("800", "1600"))
    assert len(light["Q4_0"]) == len(loaded["Q4_0"]) == 3  # seeds
    for of_light, of_loaded in zip(light["Q4_0"], loaded["Q4_0"], strict=True):
        assert of_loaded >= 2 * of_light
        assert of_loaded >= 0.30
    assert max(light["Q8_0"] + loaded["Q8_0"]) <= 0.005


def test_the_light_models_are_saturated(result: dict[str, Any]) -> None:
    light = [r for r in result["rows"] if r["key"].startswith("800x300-2x64-none")]
    assert len(light) == 3
    for row in light:
        assert row["encodings"]["F32"]["share_known"] >= 0.95


def test_fresh_junk_costs_knowledge_and_repeated_junk_none(result: dict[str, Any]) -> None:
    useful = result["summary"]["useful_bits_over_clean"]
    assert useful["fresh"] <= 0.5
    assert useful["repeated"] >= 0.9
