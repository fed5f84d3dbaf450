"""KL and perplexity of KV methods against float64 on whole logits, and bytes against allocation."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax as scipy_log_softmax

from capax import LLM
from capax.errors import CapacityError, ConfigError, ContextLengthError
from capax.measuring.kv_quality import (
    ChunkQuality,
    Expected,
    bootstrap,
    bytes_per_token,
    check_methods,
    evaluate,
    log_sum_exp,
    measure_chunk,
    summarize,
)
from tests.models import gguf_model

N = 128
CHUNKS = [[(5 + i * (7 + c)) % 300 for i in range(N)] for c in range(3)]
CODED = "kivi:bits=2,block=64"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(gguf_model("llama", encoding="Q8_0"), kv="f32", threads=1, ctx_size=256)


def logits_under(kv: str, chunk: list[int]) -> np.ndarray:
    with LLM(gguf_model("llama", encoding="Q8_0"), kv=kv, threads=1, ctx_size=256) as llm:
        return scipy_log_softmax(llm.logits(chunk).astype(np.float64), axis=1)


@pytest.mark.parametrize("method", ["int8", CODED])
def test_figures_are_those_of_whole_logits_in_float64(llm: LLM, method: str) -> None:
    reference, row = evaluate(llm, CHUNKS[:1], [method])
    p, q = logits_under("f32", CHUNKS[0]), logits_under(method, CHUNKS[0])
    kl = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    targets = np.array(CHUNKS[0][1:])
    nll = [-x[np.arange(N - 1), targets].mean() for x in (p, q)]
    assert row.kl == pytest.approx(kl, rel=1e-9, abs=1e-12)
    assert row.kl > 0
    assert reference.perplexity == pytest.approx(math.exp(nll[0]), rel=1e-12)
    assert row.perplexity == pytest.approx(math.exp(nll[1]), rel=1e-12)
    assert row.top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean()


def test_the_reference_differs_from_itself_by_nothing(llm: LLM) -> None:
    (row,) = evaluate(llm, CHUNKS, ["f32", "full:type=f32"])
    assert (row.method, row.top1, row.perplexity_ratio) == ("f32", 1.0, 1.0)
    assert row.kl < 1e-13
    assert row.n_tokens == 3 * N


@pytest.mark.parametrize("step", [1, 50, N])
def test_steps_change_no_figure(llm: LLM, step: int) -> None:
    methods = ["f32", CODED, "stream:memory=32"]
    whole = measure_chunk(llm, CHUNKS[0], methods)
    for method, quality in measure_chunk(llm, CHUNKS[0], methods, step=step).items():
        assert quality.kl == pytest.approx(whole[method].kl, rel=1e-12, abs=1e-12)
        assert quality.nll == pytest.approx(whole[method].nll, rel=1e-12)
    assert whole["stream:memory=32"].kl > 0  # tokens were dropped within the chunk


@pytest.mark.parametrize("method", ["f32", "f16", "int8", CODED, f"{CODED},exact_window=false"])
def test_predicted_bytes_are_those_allocated(llm: LLM, method: str) -> None:
    row = evaluate(llm, CHUNKS[:1], [method])[-1]
    assert row.prediction_error < 0.01
    c = llm.config
    if method.startswith("kivi"):
        assert row.bytes_per_token["codes"] == 2 * c.n_layers * c.d_kv * 2 / 8
        assert ("window" in row.bytes_per_token) == ("exact_window" not in method)
    else:
        assert set(row.bytes_per_token) == {"pages"}


def test_a_wrong_prediction_shows() -> None:
    with LLM(gguf_model("llama", encoding="Q8_0"), kv="f32", threads=1) as llm:
        chunk = ChunkQuality(10, 9, 0.1, 20.0, 9, 1000)
        row = summarize(llm.config, "f16", 64, [chunk], [chunk])
        assert row.prediction_error > 0.01


def test_lower_bits_lose_more_and_intervals_hold_the_mean(llm: LLM) -> None:
    rows = evaluate(llm, CHUNKS, [f"kivi:bits={bits},block=64" for bits in (8, 4, 2)])
    assert rows[1].kl < rows[2].kl < rows[3].kl
    for row in rows:
        assert row.kl_interval.low <= row.kl <= row.kl_interval.high


def test_divergence_of_known_distributions() -> None:
    p, q = np.log([[0.6, 0.4], [0.9, 0.1]]), np.log([[0.2, 0.8], [0.9, 0.1]])
    expected = Expected(3, 2)
    expected.fill(slice(1, 3), p + np.array([[7.0], [-3.0]]))  # logits may be shifted
    x = q + np.array([[40.0], [0.0]])
    assert expected.kl(slice(1, 3), x, log_sum_exp(x)) == pytest.approx(
        0.6 * math.log(3) + 0.4 * math.log(0.5)
    )
    assert expected.n_top1(slice(1, 3), x) == 1


def test_tiny_differences_are_not_lost_among_large_logits() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0, 12, (4, 5000))
    y = x + rng.normal(0, 1e-4, x.shape)
    p, q = (scipy_log_softmax(z, axis=1) for z in (x, y))
    expected = Expected(4, 5000)
    expected.fill(slice(0, 4), x)
    exact = float((np.exp(p) * (p - q)).sum())
    assert exact < 1e-7
    assert expected.kl(slice(0, 4), y, log_sum_exp(y)) == pytest.approx(exact, rel=1e-4)


def test_the_interval_of_one_chunk_is_a_point_and_of_many_is_normal() -> None:
    assert bootstrap([2.0]) == (2.0, 2.0)
    low, high = bootstrap(list(np.random.default_rng(0).normal(0, 1, 400)), draws=4000)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_what_cannot_be_compared_is_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="of one length"):
        evaluate(llm, [[1, 2, 3], [1, 2]], ["int8"])
    with pytest.raises(ContextLengthError, match="300 tokens are wanted but the context holds 256"):
        measure_chunk(llm, [1] * 300, ["f32"])
    with pytest.raises(ConfigError, match="unknown"):
        evaluate(llm, CHUNKS, ["no-such-method"])
    with pytest.raises(ConfigError, match=r"KV method kivi:group=7: kivi does not fit"):
        check_methods(llm, ["f32", "kivi:group=7"], N)


def test_methods_that_do_not_fit_the_budget_together_are_refused() -> None:
    path = gguf_model("llama", encoding="Q8_0")
    with LLM(path, kv="f32", threads=1, ctx_size=256) as llm:
        total = llm.plan.total_nbytes
    with (
        LLM(path, kv="f32", threads=1, ctx_size=256, memory=total + 4096) as llm,
        pytest.raises(CapacityError, match="contexts of 256 tokens by 2 KV methods take"),
    ):
        measure_chunk(llm, [1] * 256, ["f32", "f16"])


def test_bytes_fall_with_length_where_something_is_kept_besides(llm: LLM) -> None:
    short, long = (sum(bytes_per_token(llm.config, CODED, n).values()) for n in (64, 256))
    assert long < short
