"""Tokenizers of Hugging Face directories give transformers' ids and refuse damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from capax.errors import FileFormatError
from capax.files.gguf_vocabulary import merges_from_scores
from capax.files.tokenizer import Tokenizer

from .vocabularies import CONTROL, TEXTS, train_byte_level, train_sentencepiece


def save(backend: Backend, path: Path, **roles: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    fast.save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


def byte_level(path: Path) -> Any:
    backend = Backend.from_str(train_byte_level("llama-bpe").reference.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    return save(
        backend, path, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token=CONTROL[0]
    )


def llama_2(path: Path, style: str) -> Any:
    """The two ways Llama-2 tokenizers were converted."""
    metadata, _ = train_sentencepiece()
    texts, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    kinds = metadata["tokenizer.ggml.token_type"]
    ids = {text: i for i, text in enumerate(texts)}
    merges = merges_from_scores({t: i for t, i in ids.items() if kinds[i] == 1}, scores)
    backend = Backend(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "legacy":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken("<mask>", special=True, lstrip=True, rstrip=True)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return save(backend, path, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "byte-level": byte_level,
    "llama-2 legacy": lambda path: llama_2(path, "legacy"),
    "llama-2": lambda path: llama_2(path, "new"),
}
MORE_TEXTS = ["a <mask> b", "<s>x</s> y", "<s><s>", "x <mask>"]


@pytest.mark.parametrize("kind", BUILDERS)
def test_ids_and_texts_equal_transformers(kind: str, tmp_path: Path) -> None:
    fast = BUILDERS[kind](tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    for text in [*TEXTS, *MORE_TEXTS]:
        for add_special in (False, True):
            for parse_special in (False, True):
                expected = fast(
                    text, add_special_tokens=add_special, split_special_tokens=not parse_special
                )["input_ids"]
                assert tokenizer.encode(text, add_special, parse_special) == expected, text
            decoded = fast.decode(expected, skip_special_tokens=True)
            assert tokenizer.decode(expected, skip_special=True) == decoded, text


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_splitter_agrees_with_the_library(kind: str, tmp_path: Path) -> None:
    """`split_control` and fragments are how chat prompts with masked text are encoded."""
    BUILDERS[kind](tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    for text in ["<|im_start|>a<|im_end|> b", "<s>a</s>", "<mask>", "x  <mask>  y", "no control"]:
        ids = [part for part in tokenizer.split_control(text) if isinstance(part, int)]
        special = tokenizer.encode(text, add_special=False, parse_special=True)
        assert ids == [i for i in special if i in tokenizer.special_ids]


def test_roles_are_read(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (tmp_path / "chat_template.jinja").write_text("from the file")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.eos_ids == {0, 2, 5}
    assert tokenizer.add_bos
    assert tokenizer.add_eos
    assert tokenizer.chat_template == "from the file"
    assert tokenizer.kind == "tokenizer.json/BPE"


def test_named_templates_are_read(tmp_path: Path) -> None:
    byte_level(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]
    path.write_text(json.dumps(config))
    templates = Tokenizer.from_directory(tmp_path).chat_templates
    assert templates == {"default": "plain", "tool_use": "with tools"}


DAMAGE: dict[str, tuple[str, bytes, str]] = {
    "no json": ("tokenizer.json", b"{", "is not a tokenizer"),
    "empty": ("tokenizer.json", b"", "is not a tokenizer"),
    "no tokens": (
        "tokenizer.json",
        b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}',
        "0 tokens",
    ),
    "id far away": (
        "tokenizer.json",
        b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":4000000000},'
        b'"merges":[]}}',
        "4,000,000,000",
    ),
    "config a list": ("tokenizer_config.json", b"[]", "tokenizer_config.json"),
    "config not json": ("tokenizer_config.json", b"\xff", "tokenizer_config.json"),
    "config deep": ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json"),
    "eos outside": ("generation_config.json", b'{"eos_token_id": 99999999}', "99999999"),
    "template not UTF-8": ("chat_template.jinja", b"\xff\xfe", "not UTF-8"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_clear_error(case: str, tmp_path: Path) -> None:
    byte_level(tmp_path)
    file, data, message = DAMAGE[case]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as caught:
        Tokenizer.from_directory(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_directory_without_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="save_pretrained"):
        Tokenizer.from_directory(tmp_path)


def test_files_have_a_bounded_size(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(FileFormatError, match="67,108,865 bytes"):
        Tokenizer.from_directory(tmp_path)
