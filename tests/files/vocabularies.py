"""Small vocabularies trained in the test process, as GGUF metadata and as a reference.

Each style is written down twice on purpose: here as the Hugging Face model authors ship it
(a `tokenizers` pipeline given to transformers), in capax as derived from GGUF keys.
"""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

CORPUS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "data" / "tokenizer_corpus.json").read_text()
)
TEXTS = [text for texts in CORPUS.values() for text in texts]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Trained(NamedTuple):
    """GGUF metadata and the reference tokenizer that must give the same ids."""

    metadata: dict[str, Any]
    reference: Backend


def byte_level_cuts(pre: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel
    if pre == "gpt-2":
        return byte_level(add_prefix_space=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False)])
    words = Regex(LLAMA3_WORDS if pre == "llama-bpe" else QWEN2_WORDS)
    split = pre_tokenizers.Split(words, behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])


@cache
def train_byte_level(pre: str, vocab_size: int = 700) -> Trained:
    """Train a byte-level BPE with the cuts of one model family."""
    backend = Backend(models.BPE(ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = byte_level_cuts(pre)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    model = json.loads(backend.to_str())["model"]
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)
    user_defined = "\n\n\n "
    backend.add_tokens([AddedToken(user_defined, normalized=False, special=False)])
    texts.append(user_defined)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(texts) - 4) + [4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    return Trained(metadata, backend)


@cache
def train_sentencepiece(add_space_prefix: bool = True) -> tuple[dict[str, Any], Any]:
    """Train a SentencePiece BPE model as Llama-2's was; return metadata and the processor."""
    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n") if line]),
        model_writer=stream,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        add_dummy_prefix=add_space_prefix,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    ids = range(processor.get_piece_size())
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [
            2 if processor.is_unknown(i) else 3 if processor.is_control(i) else
            6 if processor.is_byte(i) else 1 for i in ids
        ],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }  # fmt: skip
    return metadata, processor
