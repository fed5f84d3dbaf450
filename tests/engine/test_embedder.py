"""What `Embedder` refuses, counts and holds."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from capax import LLM
from capax.engine.embedder import Embedder
from capax.errors import CapacityError, ConfigError, ContextLengthError, FileFormatError
from tests.models import bert_model, hf_model


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(bert_model("cls_token"), threads=2)


def test_a_text_a_list_and_token_ids_give_the_same(embedder: Embedder) -> None:
    ids = embedder.tokenizer.encode("then and there")
    alone = embedder.embed("then and there")
    assert alone.shape == (1, embedder.n_dimensions)
    assert alone.dtype == np.float32
    for same in (["then and there"], ids, [ids], np.array(ids)):
        assert np.array_equal(embedder.embed(same), alone)
    assert embedder.embed([]).shape == (0, embedder.n_dimensions)


def test_the_context_is_what_the_author_says_unless_asked(embedder: Embedder) -> None:
    assert embedder.context_len == 200
    assert Embedder(bert_model("cls_token"), ctx_size=600).context_len == 600
    with pytest.raises(ConfigError, match="601"):
        Embedder(bert_model("cls_token"), ctx_size=601)


def test_a_long_text_is_refused_with_both_counts_or_cut_when_asked(embedder: Embedder) -> None:
    text = "e " * 300
    with pytest.raises(ConfigError, match=r"text 1 has 302 tokens .* at most 200"):
        embedder.embed(["e", text])
    cut = embedder.embed(text, truncate=200)
    assert np.array_equal(cut, embedder.embed("e " * 198))  # the last token stays the last
    with pytest.raises(ConfigError, match="has 201 tokens"):
        embedder.embed(text, truncate=201)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[2], []], "text 1 is empty"),
        ([[2, 3], [2, 320, 3]], "text 1 has token id 320"),
        ([[2, -1, 3]], "token id -1"),
        ([[2, True, 3]], "contains True"),
        ([[2, "a", 3]], "contains 'a'"),
        (5, "the texts is 5"),
        ([None], "the texts|contains None"),
        ({"a": 1}, "must be a list"),
    ],
)
def test_what_is_no_text_is_refused(embedder: Embedder, texts: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embedder.embed(texts)  # type: ignore[arg-type]


def test_encoders_and_decoders_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="decoder"):
        Embedder(hf_model("llama"))
    with pytest.raises(ConfigError, match="Embedder"):
        LLM(bert_model())


def test_what_is_held_stays_within_the_plan(embedder: Embedder) -> None:
    embedder.embed([[2, *[5] * n, 3] for n in (1, 5, 190, 198, 60, 62, 64)] * 4)
    planned, measured = embedder.plan.footprint, embedder.measured_memory()
    assert 0 < measured["weights"] <= planned.weights
    assert 0 < measured["kv"] <= planned.kv
    assert 0 < measured["scratch"] <= planned.scratch
    assert embedder._pool.native.n_in_use == 0


def test_a_budget_that_cannot_hold_the_model_is_refused() -> None:
    with pytest.raises(CapacityError, match="needs at least"):
        Embedder(bert_model(), memory="1MiB")


def test_weights_streamed_from_the_file_give_the_same_bits() -> None:
    whole = Embedder(bert_model(vocab_size=20_000), threads=1)
    held = whole.plan.footprint
    tight = held.total - held.weights // 4 - held.kv  # also with the KV cache of one text
    streaming = Embedder(bert_model(vocab_size=20_000), threads=1, memory=tight, kv="f32")
    assert streaming.plan.streamed
    texts = [[2, 19_999, 3], [2, *range(4, 90), 3]]
    assert np.array_equal(streaming.embed(texts), whole.embed(texts))


def test_threads_take_turns(embedder: Embedder) -> None:
    texts = [[2, *range(4, 4 + n), 3] for n in range(1, 30)]
    expected = embedder.embed(texts)
    wrong: list[int] = []

    def work(first: int) -> None:
        for i in range(first, len(texts), 4):
            if not np.array_equal(embedder.embed(texts[i])[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_damaged_weights_are_an_error_of_their_texts(tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "poisoned"
    shutil.copytree(bert_model(), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7] = np.nan
    save_file(tensors, folder / "model.safetensors")
    embedder = Embedder(folder)
    clean = embedder.embed([[2, 8, 3]])
    with pytest.raises(FileFormatError, match="text 1 gives numbers that are not finite"):
        embedder.embed([[2, 8, 3], [2, 7, 3]])
    assert np.array_equal(embedder.embed([[2, 8, 3]]), clean)


def test_a_decoder_embeds_by_the_mean_of_its_hidden_states() -> None:
    import torch

    from tests.models import hf_oracle

    llm = LLM(hf_model("llama"), kv="f32", prefill_chunk=16)
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, 320, n).tolist() for n in (1, 7, 40)]
    embeddings = llm.embed(texts)
    model = hf_oracle(hf_model("llama")).model
    for ids, ours in zip(texts, embeddings, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        assert np.abs(ours - mean / np.linalg.norm(mean)).max() < 1e-5
    one_chunk = LLM(hf_model("llama"), kv="f32", threads=2).embed(texts)
    assert np.array_equal(one_chunk, embeddings)
    llm.engine.check_integrity()


def test_a_decoder_refuses_what_it_cannot_embed() -> None:
    llm = LLM(hf_model("llama"), ctx_size=64)
    with pytest.raises(ConfigError, match="text 1 is empty"):
        llm.embed(["a", ""])
    with pytest.raises(ContextLengthError, match=r"text 0 has 65 tokens .* at most 64"):
        llm.embed([[5] * 65])
    assert np.array_equal(llm.embed([[5] * 65], truncate=64), llm.embed([[5] * 64]))
