"""What the benchmark of text families computes from scores, on scores that are known."""

import dataclasses
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from benchmarks import text_family as families  # noqa: E402
from capax.files.config_hf import config_from_hf  # noqa: E402
from capax.measuring.flops import exact_flops  # noqa: E402
from capax.measuring.information_capacity import TextScore, capacity  # noqa: E402
from capax.training.llama import Llama  # noqa: E402
from capax.training.mixture import with_experts  # noqa: E402
from capax.training.text_family import Member, train_tokenizer  # noqa: E402


def row(text_size: float, nll: float, flops: float) -> dict[str, Any]:
    score = TextScore(1000, round(text_size * 125), 1000 * nll)
    return {"encodings": {"F32": dataclasses.asdict(capacity([score], flops))}}


def family(bias: float, ic: float = 0.4) -> dict[str, Any]:
    """Four sizes whose IC is the same with this bias."""
    flops = [1e6, 3e6, 1e7, 3e7]
    names = [f"bpe4k-{width}" for width, _ in families.SIZES]
    return {
        name: row(28.0, 28.0 - (ic * math.log2(f) - bias), f)
        for name, f in zip(names, flops, strict=True)
    }


def test_a_family_that_keeps_the_law_is_flat_and_predicted() -> None:
    found = families.family_figures(family(bias=-2.0))
    assert found["bias"] == pytest.approx(-2.0, abs=1e-3)
    assert found["spread"] == pytest.approx(0, abs=1e-4)
    assert found["spread_without_bias"] > 0.02
    for left_out in found["left_out"]:
        assert abs(left_out["law_error"]) < 1e-4 < abs(left_out["neighbour_error"])


def test_the_bias_is_fitted_without_the_size_that_is_left_out() -> None:
    rows = family(bias=-2.0)
    rows["bpe4k-128"]["encodings"]["F32"]["nll"] += 1.0
    last = families.family_figures(rows)["left_out"][-1]
    assert last["bias"] == pytest.approx(-2.0, abs=1e-3)
    assert last["law_error"] == pytest.approx(-1.0 / last["nll"], abs=1e-3)


def test_parts_of_a_tokenizer_sum_to_the_difference() -> None:
    rows = {"bytes-32": row(8.0, 3.0, 1e6), "bpe4k-32": row(28.0, 9.0, 2e6)}
    found = families.tokenizer_figures(rows)
    a, b = found["ic"]
    assert sum(found["parts"].values()) == pytest.approx(b - a, abs=1e-9)
    assert found["text_size_ratio"] == pytest.approx(3.5)
    assert found["flops_per_byte"] == pytest.approx([1e6, 8 * 2e6 / 28])


def test_operations_in_torch_are_those_of_the_engine_and_a_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"The {i}th text says that {i} and {i} are {2 * i}." for i in range(200)]
    tokenizer = train_tokenizer(texts, 300)
    dense = families.recipe(32, 2, n_vocab=300, window=16)
    sparse = dataclasses.replace(dense, n_experts=4)
    monkeypatch.setitem(families.MEMBERS, "dense", dense)
    monkeypatch.setitem(families.MEMBERS, "sparse", sparse)
    model = Llama(dense.shape)
    found = families.torch_report("dense", Member(model, []), tokenizer, texts[:5])
    config = config_from_hf(dense.shape.hf_config())
    assert found["flops_per_token"] == exact_flops(config, 16) / 16
    model = Llama(sparse.shape)
    routed = Member(model, with_experts(model, 4))
    with_router = families.torch_report("sparse", routed, tokenizer, texts[:5])
    assert with_router["flops_per_token"] - found["flops_per_token"] == 2 * 2 * 32 * 4
    assert [sum(shares) for shares in with_router["expert_shares"]] == pytest.approx([1, 1])
