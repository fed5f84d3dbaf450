"""The published table of information capacity (2025, arXiv 2511.08066), and its identities."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from capax import LLM
from capax.errors import CapaxError, ConfigError
from capax.measuring.flops import DecoderShape, published_flops
from capax.measuring.information_capacity import (
    CapacityReport,
    Member,
    TextScore,
    capacity,
    decompose,
    fit_bias,
    information_capacity,
    predict_nll,
    score_texts,
)
from tests.models import gguf_model, hf_model, hf_oracle

# Model, shape, TS and NLL in bits per token, TFLOP of 1,024 tokens, IC at b = 0 and b = -24: from
# the table of the data set TeleAI-AI-Flow/InformationCapacity.
PUBLISHED = [
    (
        "DeepSeek-V2",
        DecoderShape(60, 5120, 128, 128, 1536, 102_400, "latent", 2 + 6, 512),
        (32.12, 2.251732349395752, 37.7957122048, 0.8508680957071698, 0.16717145364366684),
    ),
    (
        "DeepSeek-V3.1-Base",
        DecoderShape(61, 7168, 128, 128, 2048, 129_280, "latent", 1 + 8, 512),
        (34.94, 2.2772045135498047, 78.006806642688, 0.9035685069448164, 0.2396435781777227),
    ),
    (
        "GLM-4-32B",
        DecoderShape(61, 6144, 48, 2, 23_040, 151_552),
        (34.82, 2.760892629623413, 65.5704981504, 0.8930583115634292, 0.22449947647473625),
    ),
    (
        "GLM-4.5-Air",
        DecoderShape(46, 4096, 96, 8, 10_944, 151_552),
        (34.82, 2.5816900730133057, 17.749377810432, 0.9478278177014319, 0.2422118075460074),
    ),
    (
        "GLM-4.5",
        DecoderShape(92, 5120, 96, 8, 12_288, 151_552),
        (34.82, 2.2813751697540283, 48.828659, 0.9172839724996397, 0.2407091186192849),
    ),
    (
        "Hunyuan-0.5B",
        DecoderShape(24, 1024, 16, 8, 3584, 120_818),
        (34.95, 3.9885313510894775, 1.000647688192, 1.0367464096541894, 0.23310514464022852),
    ),
    (
        "Hunyuan-1.8B",
        DecoderShape(32, 2048, 16, 4, 6144, 120_818),
        (34.95, 3.584585189819336, 3.805148086272, 0.9866102441707987, 0.23168173442848555),
    ),
]


@pytest.mark.parametrize(("name", "shape", "row"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_rows(name: str, shape: DecoderShape, row: tuple[float, ...]) -> None:
    text_size, nll, tflops, unbiased, biased = row
    flops = published_flops(shape, 1024)
    assert flops == pytest.approx(tflops * 1e12, rel=1e-8 if name == "GLM-4.5" else 1e-12)
    assert information_capacity(text_size, nll, flops / 1024) == pytest.approx(unbiased, abs=1e-6)
    value = information_capacity(text_size, nll, flops / 1024, bias=-24)
    assert value == pytest.approx(biased, abs=1e-6)


class LetterTokenizer:
    """One token per character of an alphabet of 26."""

    add_bos = False
    bos_id = None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return [ord(c) - ord("a") for c in text]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id + ord("a")])


class Uniform:
    """Every letter is as likely as any other."""

    def score(self, texts: list[int], /) -> SimpleNamespace:
        return SimpleNamespace(logprobs=[None] + [-math.log(26)] * (len(texts) - 1))


def test_a_worked_example_of_three_tokens() -> None:
    # "abc": two scored tokens of one byte each, p = 1/2 and 1/8: 4 bits for 16.
    scorer = SimpleNamespace(
        score=lambda ids: SimpleNamespace(logprobs=[None, math.log(1 / 2), math.log(1 / 8)])
    )
    (score,) = score_texts(scorer, LetterTokenizer(), ["abc"], 100)
    assert score is not None
    assert (score.n_tokens, score.n_bytes) == (2, 2)
    assert score.nll == pytest.approx(4)
    report = capacity([score], 2.0**20)
    assert (report.text_size, report.nll) == (8, pytest.approx(2))
    assert report.ic == pytest.approx((8 - 2) / 20)
    assert report.bits_per_byte == pytest.approx(2)


def test_a_uniform_model_pays_the_logarithm_of_the_alphabet() -> None:
    texts = ["hello", "x", "abcdefgh" * 30]
    scores = list(score_texts(Uniform(), LetterTokenizer(), texts, 100))
    report = capacity(scores, 1e6)
    assert report.nll == pytest.approx(math.log2(26), abs=1e-12)
    assert report.n_skipped == 1
    assert report.n_tokens == 4 + 99


def reports(scores: list[TextScore | None]) -> list[CapacityReport]:
    return [capacity(scores, 3e8, mode=mode) for mode in ("exact", "paper")]


def test_order_and_repetition_of_texts_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores: list[TextScore | None] = [
        TextScore(int(n), int(3 * n + i), float(2.5 * n))
        for i, n in enumerate(rng.integers(2, 90, 40))
    ]
    for once, shuffled, twice in zip(
        reports(scores), reports(scores[::-1]), reports(scores * 2), strict=True
    ):
        for other in (shuffled, twice):
            assert other.text_size == pytest.approx(once.text_size, abs=1e-9)
            assert other.nll == pytest.approx(once.nll, abs=1e-9)
            assert other.ic == pytest.approx(once.ic, abs=1e-9)


def test_the_modes_weigh_texts_differently() -> None:
    # 20 bytes in 2 tokens and 30 bytes in 10: the mean of ratios is 52 bits, the pooled one 33.3.
    scores = [TextScore(2, 20, 1.0), TextScore(10, 30, 1.0)]
    exact, paper = reports(scores)
    assert paper.text_size == 52
    assert exact.text_size == pytest.approx(8 * 50 / 12)


def test_no_value_where_nothing_is_saved() -> None:
    report = capacity([TextScore(10, 10, 50.0)], 1e6, bias=-4.0)
    assert (report.ic, report.status) == (None, "no gain")
    with pytest.raises(ConfigError, match="longer texts"):
        capacity([None], 1e6)


def test_nan_ends_the_measurement() -> None:
    scorer = SimpleNamespace(score=lambda ids: SimpleNamespace(logprobs=[None, math.nan]))
    with pytest.raises(CapaxError, match="text 1 has a token without finite"):
        list(score_texts(scorer, LetterTokenizer(), ["ab"], 9))


# A family that follows the law exactly: gain = 0.3 * log2 N + 11, so b = -11 makes it flat.
FAMILY = [Member(0.3 * math.log2(n) + 11, n) for n in (1e6, 4e6, 2e7, 9e7)]


def test_the_bias_makes_a_family_flat() -> None:
    bias = fit_bias([FAMILY, FAMILY[:2]])
    assert bias == pytest.approx(-11, abs=1e-3)
    flat = [(m.gain + bias) / math.log2(m.flops_per_token) for m in FAMILY]
    assert max(flat) - min(flat) < 1e-4
    with pytest.raises(ConfigError, match="three sizes"):
        fit_bias([FAMILY[:2]])


def test_one_size_predicts_another() -> None:
    text_size = 30.0
    nll = predict_nll(FAMILY[0], text_size, FAMILY[3].flops_per_token, bias=-11)
    assert nll == pytest.approx(text_size - FAMILY[3].gain, rel=1e-9)


def test_the_parts_of_a_difference_sum_to_it() -> None:
    a = capacity([TextScore(10, 40, 30.0)], 3e8)
    b = capacity([TextScore(12, 36, 20.0)], 7e7)
    parts = decompose(a, b)
    assert a.ic is not None
    assert b.ic is not None
    assert sum(parts.values()) == pytest.approx(b.ic - a.ic, abs=1e-9)
    assert decompose(a, a) == pytest.approx(dict.fromkeys(parts, 0.0))


def test_nll_agrees_with_transformers() -> None:
    # Float32 weights and cache, so what differs is the order of additions.
    text = "the rain in the hills and the sound of it on the roof"
    with LLM(gguf_model("llama"), ctx_size=64, kv="f32") as llm:
        (score,) = score_texts(llm, llm.tokenizer, [text], 64)
        ids = llm.tokenizer.encode(text)[:64]
    assert score is not None
    import torch

    with torch.no_grad():
        logits = hf_oracle(hf_model("llama"))(torch.tensor([ids])).logits[0, :-1].double()
    expected = -torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]].mean() / math.log(2)
    assert score.nll / score.n_tokens == pytest.approx(float(expected), abs=1e-4)


def test_the_real_model_saves_most_of_the_text(smollm2: Path) -> None:
    # The real model on our own prose: bits per byte of a useful model, far below 8.
    prose = (Path(__file__).parents[2] / "docs/architecture.md").read_text()
    with LLM(smollm2, ctx_size=512) as llm:
        scores = list(score_texts(llm, llm.tokenizer, prose.split("\n\n")[:12], 512))
    report = capacity(scores, 304_383_744)
    assert report.bits_per_byte < 3
    assert report.ic is not None
