"""Rows and embeddings of encoders against transformers, and their bits against the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capax.engine.embedder import Embedder
from tests.models import VOCAB_SIZE, bert_model, bert_oracle

# Largest |difference| of normalised embeddings of a random model. Measured: 2.3e-7.
TOLERANCE = 1e-5


def some_texts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[2, *rng.integers(4, VOCAB_SIZE, n - 2).tolist(), 3] for n in lengths]


def oracle(folder: Path, texts: list[list[int]], pool: Callable[..., object]) -> np.ndarray:
    import torch

    model = bert_oracle(folder)
    with torch.no_grad():
        return np.array([pool(model(torch.tensor([ids])).last_hidden_state[0]) for ids in texts])


def mean_of_length_one(rows: np.ndarray) -> np.ndarray:
    mean = np.asarray(rows).mean(axis=0)
    return mean / np.linalg.norm(mean)


# 1 to 4 tokens take the way of single tokens through attention; 64 fill a page, 513 a span.
LENGTHS = [2, 3, 4, 5, 17, 63, 64, 65, 200, 512, 513, 600]


def test_embeddings_equal_transformers() -> None:
    texts = some_texts(LENGTHS)
    with_defaults = Embedder(bert_model(), threads=2).embed(texts)
    reference = oracle(bert_model(), texts, mean_of_length_one)
    assert np.abs(with_defaults - reference).max() < TOLERANCE
    assert np.allclose(np.linalg.norm(with_defaults, axis=1), 1, atol=1e-6)


def test_pooling_files_are_followed() -> None:
    folder = bert_model("cls_token")
    texts = some_texts([2, 30, 200])
    first_rows = Embedder(folder).embed(texts)
    reference = oracle(folder, texts, lambda rows: np.asarray(rows)[0])
    assert np.abs(first_rows - reference).max() < TOLERANCE * np.abs(reference).max()
    assert np.linalg.norm(first_rows, axis=1).min() > 1.5  # not normalised


@pytest.mark.parametrize("name", ["token_type_embeddings", "position_embeddings"])
def test_every_part_of_the_sum_counts(name: str, tmp_path: Path) -> None:
    """The comparison above would notice a missing summand."""
    import torch

    model = bert_oracle(bert_model())
    ids = some_texts([20])
    with torch.no_grad():
        getattr(model.embeddings, name).weight.zero_()
        without = mean_of_length_one(model(torch.tensor(ids)).last_hidden_state[0])
    assert np.abs(Embedder(bert_model()).embed(ids)[0] - without).max() > 100 * TOLERANCE


def test_bits_do_not_depend_on_the_other_texts_or_the_threads() -> None:
    texts = some_texts([*LENGTHS, *range(2, 40)], seed=1)
    alone = [Embedder(bert_model(), threads=1).embed([ids])[0] for ids in texts[:2]]
    one, two = Embedder(bert_model(), threads=1), Embedder(bert_model(), threads=2)
    together = two.embed(texts)
    assert np.array_equal(np.array(alone), together[:2])
    assert np.array_equal(np.array([one.embed(ids)[0] for ids in texts]), together)
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.array_equal(two.embed([texts[i] for i in order]), together[order])


def test_bits_do_not_depend_on_the_instruction_set() -> None:
    from capax import _native

    embedder = Embedder(bert_model())
    texts = some_texts([3, 70, 130])
    before, results = _native.isa(), {}
    for name, _ in _native.supported_isas():
        assert _native.select_isa(name)
        results[name] = embedder.embed(texts).tobytes()
    _native.select_isa(before)
    assert set(results.values()) == {results["scalar"]}


def test_a_text_reads_no_keys_of_others() -> None:
    """Changing one text leaves the other's row in the same step as it was, and only that one."""
    a, b, c = some_texts([30, 40, 40])
    embedder = Embedder(bert_model())
    first, second = embedder.embed([a, b]), embedder.embed([a, c])
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])


def test_the_real_model_equals_its_float32_reference(minilm: Path) -> None:
    import torch

    texts = ["Hello, world", "Der Fluß fließt 東京 🙂", "A man is eating food. " * 30, "x", ""]
    embedder = Embedder(minilm, threads=2)
    model = bert_oracle(minilm)
    for text, ours in zip(texts, embedder.embed(texts), strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([embedder.tokenizer.encode(text)])).last_hidden_state[0]
        assert float(ours @ mean_of_length_one(rows)) > 1 - 1e-6


def test_the_real_model_knows_what_is_alike(minilm: Path) -> None:
    embed = Embedder(minilm).embed
    query, near, far = embed(
        ["How do I cook rice?", "Instructions for boiling rice", "The train was late again"]
    )
    assert float(query @ near) > 0.7 > 0.3 > float(query @ far)
