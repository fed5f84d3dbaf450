"""Randomly damaged tokenizers either work or are refused in one sentence; nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from capax.errors import CapaxError
from capax.files.tokenizer import Tokenizer
from tests.files.vocabularies import train_byte_level, train_sentencepiece

TEXT = "Hello wörld 1234 <|im_end|></s>\n\n x 日本 😀"
STRANGE: list[Any] = [
    None, True, -1, 0, 1, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 0.5, 1e300, float("nan"),
    float("inf"), "", "x", "▁", "Ġ", "a b", "<0x00>", "é" * 3000, "\ud800", "(a+)+$", "(", "[",
    [], {}, [[]], b"x",
]  # fmt: skip


def use(tokenizer: Tokenizer) -> None:
    for parse_special in (False, True):
        tokenizer.decode(tokenizer.encode(TEXT, parse_special=parse_special))
    for token_id in range(tokenizer.vocab_size):
        tokenizer.token_bytes(token_id)


def damaged_list(rng: random.Random, values: list[Any]) -> list[Any]:
    values = list(values)
    for _ in range(rng.choice([1, 1, 5])):
        if not values:
            break
        i = rng.randrange(len(values))
        match rng.randrange(4):
            case 0:
                del values[i]
            case 1:
                values.insert(i, rng.choice(values))
            case 2:
                values[i] = rng.choice(values)
            case _:
                values[i] = rng.choice(STRANGE)
    return values


def damaged_metadata(rng: random.Random, metadata: dict[str, Any]) -> dict[str, Any]:
    metadata = dict(metadata)
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(list(metadata))
        if isinstance(metadata[key], list) and rng.random() < 0.9:
            metadata[key] = damaged_list(rng, metadata[key])
        elif rng.random() < 0.3:
            del metadata[key]
        else:
            metadata[key] = rng.choice(STRANGE)
    return metadata


@pytest.mark.parametrize("n_cases", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_gguf_vocabularies(n_cases: int) -> None:
    rng = random.Random(20261122)
    sources = [train_byte_level(pre).metadata for pre in ("smollm", "llama-bpe", "qwen2")]
    sources.append(train_sentencepiece()[0])
    outcomes = {"used": 0, "refused": 0}
    for _ in range(n_cases):
        metadata = damaged_metadata(rng, rng.choice(sources))
        try:
            use(Tokenizer.from_gguf(metadata))
        except CapaxError:
            outcomes["refused"] += 1
        else:
            outcomes["used"] += 1
    assert min(outcomes.values()) > n_cases / 50, outcomes  # both paths were met


def damage_json(rng: random.Random, value: Any) -> None:
    """Change or delete one value somewhere below, the vocabulary less often than the rest."""
    top = rng.choice([key for key in value if key != "model" or rng.random() < 0.3])
    holder, key = value, top
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice([v for v in STRANGE if not isinstance(v, bytes)])


@pytest.mark.parametrize("n_cases", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_damaged_tokenizer_json(n_cases: int, tmp_path: Path) -> None:
    rng = random.Random(20261122)
    good = train_byte_level("llama-bpe", vocab_size=320).reference.to_str()
    outcomes = {"used": 0, "refused": 0}
    for _ in range(n_cases):
        value = json.loads(good)
        damage_json(rng, value)
        (tmp_path / "tokenizer.json").write_text(json.dumps(value))
        try:
            use(Tokenizer.from_directory(tmp_path))
        except CapaxError:
            outcomes["refused"] += 1
        else:
            outcomes["used"] += 1
    assert min(outcomes.values()) > n_cases / 50, outcomes
