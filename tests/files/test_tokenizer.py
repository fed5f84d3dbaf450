"""Ids equal the reference implementation's; hostile vocabularies are refused."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from capax import _native
from capax.errors import ConfigError, FileFormatError
from capax.files.tokenizer import Tokenizer, byte_of_char

from .vocabularies import CONTROL, TEXTS, train_byte_level, train_sentencepiece

BYTE_LEVEL = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def reference(backend: Backend, parse_special: bool) -> Callable[[str], list[int]]:
    """Return transformers' PreTrainedTokenizerFast as a function from text to ids."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=not parse_special)
    return lambda text: list(fast(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("parse_special", [False, True])
@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_ids_equal_transformers_on_trained_vocabularies(pre: str, parse_special: bool) -> None:
    trained = train_byte_level(pre)
    tokenizer = Tokenizer.from_gguf(trained.metadata)
    expected_ids = reference(trained.reference, parse_special)
    for text in TEXTS:
        assert tokenizer.encode(text, parse_special=parse_special) == expected_ids(text), text


def test_the_families_really_cut_differently() -> None:
    """Negative control of the test above: with the wrong cuts it would fail."""
    text = "1234 we'Re \n\n x"
    metadata = train_byte_level("gpt-2").metadata
    ids = {
        pre: tuple(Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre}).encode(text))
        for pre in BYTE_LEVEL
    }
    assert len(set(ids.values())) > 1
    assert ids["qwen2"] != ids["gpt-2"] != ids["smollm"]


@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentencepiece_ids_equal_sentencepiece(add_space_prefix: bool) -> None:
    metadata, processor = train_sentencepiece(add_space_prefix)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.add_bos
    for text in TEXTS:
        if "▁" in text or "\0" in text:
            continue  # SentencePiece's own marker is a space to it; NUL ends its C strings
        expected = processor.encode(text)
        assert tokenizer.encode(text, add_special=False) == expected, text
        assert tokenizer.decode(expected) == text


def test_sentencepiece_merges_equal_transformers_converter() -> None:
    from transformers.convert_slow_tokenizer import generate_merges

    from capax.files.gguf_vocabulary import merges_from_scores

    metadata, _ = train_sentencepiece()
    texts, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    kinds = metadata["tokenizer.ggml.token_type"]
    ids = {text: i for i, text in enumerate(texts) if kinds[i] == 1}
    expected = generate_merges(ids, {text: scores[i] for text, i in ids.items()})
    assert merges_from_scores(ids, scores) == expected


def test_sentencepiece_adds_the_space_after_each_control_token() -> None:
    metadata, _ = train_sentencepiece()
    tokenizer = Tokenizer.from_gguf(metadata)
    word = tokenizer.encode("The", add_special=False)
    ids = tokenizer.encode("</s>The</s>The", add_special=True, parse_special=True)
    assert ids == [tokenizer.bos_id, 2, *word, 2, *word]


def test_control_tokens_in_user_text_stay_text() -> None:
    tokenizer = Tokenizer.from_gguf(train_byte_level("smollm").metadata)
    for text in CONTROL:
        ids = tokenizer.encode(f"a{text}b")
        assert not set(ids) & tokenizer.special_ids
        assert tokenizer.decode(ids) == f"a{text}b"
        assert tokenizer.token_bytes(CONTROL.index(text)) == text.encode()


def test_a_whole_word_that_spells_a_control_token_stays_text() -> None:
    """Llama-3 takes whole words from the vocabulary, which must not give control tokens."""
    metadata = train_byte_level("llama-bpe").metadata
    tokens = ["STOP", *metadata["tokenizer.ggml.tokens"][1:]]
    tokenizer = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.tokens": tokens})
    assert 0 not in tokenizer.encode("STOP")
    assert tokenizer.encode("STOP", parse_special=True) == [0]


def test_roles_and_ends() -> None:
    tokenizer = Tokenizer.from_gguf(train_byte_level("smollm").metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.eos_ids == {0, 2}  # <|endoftext|> ends too though the file does not say so
    assert not tokenizer.add_bos
    assert tokenizer.encode("", add_special=True) == []


@pytest.mark.parametrize("pre", BYTE_LEVEL)
@given(data=st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_round_trip(pre: str, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    tokenizer = Tokenizer.from_gguf(train_byte_level(pre).metadata)
    if pre == "qwen2":  # normalizes to NFC, as the model was trained
        import unicodedata

        text = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def encoded(texts: list[str]) -> bytes:
    """Strings as a GGUF file holds them."""
    return b"".join(len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (encoded(["a b"]), "more strings than the bytes can hold"),
        (encoded(["a b", "c d"])[:-1], "beyond the bytes"),
        ((1 << 63).to_bytes(8, "little") + b"a b     ", "beyond the bytes"),
    ],
)
def test_pairs_that_lie_about_their_length_are_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        _native.decode_pairs(raw, 2)


@pytest.mark.parametrize("enabled", [True, False])
def test_splitting_merges_wakes_no_collector_and_leaves_it_as_it_was(enabled: bool) -> None:
    collections: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collections.append(info["generation"])

    texts = encoded([f"left{i} right{i}" for i in range(20_000)])
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    gc.callbacks.append(note)
    try:
        pairs = _native.decode_pairs(texts, 20_000)
        during = list(collections)
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match="entry 1 is not two pieces"):
            _native.decode_pairs(encoded(["a b", "ab"]), 2)
        assert gc.isenabled() is enabled
    finally:
        gc.callbacks.remove(note)
        (gc.enable if was_enabled else gc.disable)()
    assert pairs[7] == ("left7", "right7")
    assert not any(map(gc.is_tracked, pairs))
    assert len(during) <= 1  # the one that was due behind the call


def test_byte_alphabet_is_a_bijection() -> None:
    assert sorted(byte_of_char().values()) == list(range(256))


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.pop(f"tokenizer.ggml.{key}")


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.update({f"tokenizer.ggml.{key}": value})


def change(key: str, edit: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def mutate(metadata: dict[str, Any]) -> None:
        values = list(metadata[f"tokenizer.ggml.{key}"])
        metadata[f"tokenizer.ggml.{key}"] = edit(values)

    return mutate


BYTE_LEVEL_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no model": (drop("model"), "model is missing"),
    "unknown model": (put("model", "t5"), "'t5'"),
    "unknown pre": (put("pre", "tekken"), "'tekken'"),
    "no merges": (drop("merges"), "merges is missing"),
    "no tokens": (drop("tokens"), "tokens is missing"),
    "empty tokens": (put("tokens", []), "0 entries"),
    "tokens not a list": (put("tokens", "abc"), "tokens is missing or not a list"),
    "token not a string": (change("tokens", lambda v: [*v[:-1], 7]), "not a string"),
    "token twice": (change("tokens", lambda v: [*v[:-1], v[5]]), "twice"),
    "token of 5 KiB": (change("tokens", lambda v: [*v[:-1], "x" * 5000]), "5,000 bytes"),
    "token not UTF-8": (change("tokens", lambda v: [*v[:-1], "a\udcff"]), "not UTF-8"),
    "types too few": (change("token_type", lambda v: v[:-1]), "token_type has"),
    "type unknown": (change("token_type", lambda v: [99, *v[1:]]), "99"),
    "merge of three": (change("merges", lambda v: ["a b c", *v[1:]]), "entry 0"),
    "merge of one": (change("merges", lambda v: ["ab", *v[1:]]), "entry 0"),
    "merge of strangers": (change("merges", lambda v: ["☃ ☃", *v]), "does not fit the tokens"),
    "bos outside": (put("bos_token_id", 1 << 31), "bos_token_id"),
    "eos negative": (put("eos_token_id", -1), "eos_token_id"),
    "pad a string": (put("padding_token_id", "2"), "padding_token_id"),
    "flag a string": (put("add_bos_token", "yes"), "add_bos_token"),
}


@pytest.mark.parametrize("case", BYTE_LEVEL_DAMAGE)
def test_damaged_vocabulary_is_refused_by_name(case: str) -> None:
    mutate, message = BYTE_LEVEL_DAMAGE[case]
    metadata = dict(train_byte_level("smollm").metadata)
    mutate(metadata)
    with pytest.raises(FileFormatError) as caught:
        Tokenizer.from_gguf(metadata, source="model.gguf")
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.gguf: ")


SENTENCEPIECE_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no scores": (drop("scores"), "scores is missing"),
    "scores too few": (change("scores", lambda v: v[:-1]), "scores has"),
    "score not a number": (change("scores", lambda v: [*v[:-1], float("nan")]), "finite"),
    "byte misspelled": (change("tokens", lambda v: [*v[:3], "<0xZZ>", *v[4:]]), "<0xZZ>"),
}


@pytest.mark.parametrize("case", SENTENCEPIECE_DAMAGE)
def test_damaged_pieces_are_refused_by_name(case: str) -> None:
    mutate, message = SENTENCEPIECE_DAMAGE[case]
    metadata = dict(train_sentencepiece()[0])
    mutate(metadata)
    with pytest.raises(FileFormatError) as caught:
        Tokenizer.from_gguf(metadata)
    assert message in str(caught.value)


def test_too_much_text_is_refused_before_tokenizing() -> None:
    tokenizer = Tokenizer.from_gguf(train_byte_level("smollm").metadata)
    tokenizer.max_text_bytes = 10
    assert tokenizer.encode("é" * 5)
    with pytest.raises(ConfigError, match="11 bytes"):
        tokenizer.encode("é" * 5 + "a")


def test_lone_surrogates_are_refused() -> None:
    tokenizer = Tokenizer.from_gguf(train_byte_level("smollm").metadata)
    with pytest.raises(ConfigError, match="surrogate at character 1"):
        tokenizer.encode("a\ud800")


def test_ids_outside_the_vocabulary_are_refused() -> None:
    tokenizer = Tokenizer.from_gguf(train_byte_level("smollm").metadata)
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            tokenizer.decode([token_id])


DOUBLING = {
    "one letter": "a",
    "one long word": "abcdefghij",
    "combining marks": "\u0301\u0323",
    "emoji": "😀👩‍👧",
    "spaces": " ",
    "newlines": "\n",
    "brackets": "<|im_",
}


@pytest.mark.parametrize("unit", DOUBLING)
@pytest.mark.parametrize("style", ["smollm", "llama-bpe", "qwen2", "llama"])
@pytest.mark.parametrize("n_chars", [1 << 13, pytest.param(1 << 18, marks=pytest.mark.slow)])
def test_time_grows_linearly_with_text(n_chars: int, style: str, unit: str) -> None:
    """Doubling the text at most 3.2-folds the CPU time; quadratic work would 4-fold it.

    A word of n bytes costs n log n in the merge queue, and half a megabyte of it leaves the
    processor's caches: 2.8 was the largest ratio when this was written.
    """
    metadata = train_sentencepiece()[0] if style == "llama" else train_byte_level(style).metadata
    tokenizer = Tokenizer.from_gguf(metadata)

    def cpu_seconds(n_chars: int) -> float:
        text = (DOUBLING[unit] * n_chars)[:n_chars]
        times = []
        for _ in range(4):
            start = time.thread_time()
            tokenizer.encode(text, parse_special=True)
            times.append(time.thread_time() - start)
        return min(times)

    ratios = []
    for _ in range(4):  # a noisy neighbour disturbs one measurement, not four
        ratios.append(cpu_seconds(2 * n_chars) / cpu_seconds(n_chars))
        if ratios[-1] <= 3.2:
            return
    pytest.fail(f"time grows faster than the text: {ratios}")


def test_random_bytes_tokenize_like_the_reference() -> None:
    rng = random.Random(20261122)
    trained = train_byte_level("llama-bpe")
    tokenizer = Tokenizer.from_gguf(trained.metadata)
    text = rng.randbytes(1 << 14).decode("utf-8", "replace")
    assert tokenizer.encode(text) == reference(trained.reference, False)(text)


def real_metadata(path: Path) -> dict[str, Any]:
    import gguf

    reader = gguf.GGUFReader(path)
    return {
        key: field.contents()
        for key, field in reader.fields.items()
        if key.startswith("tokenizer.")
    }


def test_real_smollm2_ids_equal_transformers(smollm2: Path) -> None:
    from tokenizers import AddedToken, models

    from .vocabularies import byte_level_cuts

    metadata = real_metadata(smollm2)
    tokenizer = Tokenizer.from_gguf(metadata)
    texts = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Backend(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    backend.pre_tokenizer = byte_level_cuts("smollm")
    backend.add_special_tokens([AddedToken(texts[i], special=True) for i in range(17)])
    for parse_special in (False, True):
        expected_ids = reference(backend, parse_special)
        for text in TEXTS:
            assert tokenizer.encode(text, parse_special=parse_special) == expected_ids(text), text
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.eos_ids == {0, 2}


def test_real_smollm2_ids_equal_llama_cpp(smollm2: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the peer is an extra: capax[bench]")
    tokenizer = Tokenizer.from_gguf(real_metadata(smollm2))
    peer = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)
    for text in TEXTS:
        if "\0" in text:
            continue  # ends its C strings
        for parse_special in (False, True):
            expected = peer.tokenize(text.encode(), add_bos=False, special=parse_special)
            assert tokenizer.encode(text, parse_special=parse_special) == expected, text
