"""Build a `Tokenizer` from the `tokenizer.ggml.*` keys of a GGUF file.

Two tokenizer models are known: `gpt2` (byte-level BPE; the file names its pre-tokenizer
and lists its merges) and `llama` (SentencePiece BPE; the file has a score for each piece
and the merges follow from the scores).

The model is built from vocabulary and merges directly. A cached tokenizer.json would be
slower: for 49,152 tokens the library needs about 60 ms to build from lists and 70 to 100 ms
to parse the same thing as JSON (measured 2026-11-22), so there is no cache to go wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from capax import _native
from capax.errors import FileFormatError
from capax.files.gguf_format import GGUFArray, PackedStrings, ValueType
from capax.files.tokenizer import (
    ControlPattern,
    SpecialTokens,
    Tokenizer,
    TokenKind,
    Vocabulary,
    check_token_texts,
    end_ids,
    library_errors,
)

if TYPE_CHECKING:
    import tokenizers

MAX_VOCAB_SIZE = 1 << 20
MAX_MERGES = 1 << 22
MAX_CONTROL_TOKENS = 1 << 14


class PreTokenizer(NamedTuple):
    """How text is cut into words before merging."""

    regex: str | None  # None: GPT-2's own pattern, built into the library
    digits_apart: bool = False
    normalize_nfc: bool = False
    whole_words_first: bool = False  # a word that is in the vocabulary is never split
    add_bos: bool = False


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = PreTokenizer(None)
_SMOLLM = PreTokenizer(None, digits_apart=True)
_LLAMA3 = PreTokenizer(_WORDS.format(digits=r"\p{N}{1,3}"), whole_words_first=True, add_bos=True)
_QWEN2 = PreTokenizer(_WORDS.format(digits=r"\p{N}"), normalize_nfc=True)

# names as llama.cpp's converter writes them
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "gpt2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-3": _LLAMA3,
    "qwen2": _QWEN2,
}


def tokenizer_from_gguf(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """See `Tokenizer.from_gguf`."""
    fields = _Fields(metadata, source)
    model = fields.text("model")
    texts = fields.strings("tokens", MAX_VOCAB_SIZE)
    kinds = _kinds(fields, texts)
    check_token_texts(texts, source)
    control = {
        texts[i]: i
        for i, kind in kinds.items()
        if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN) and texts[i]
    }
    if len(control) > MAX_CONTROL_TOKENS:
        raise FileFormatError(
            f"{source}: tokenizer.ggml.token_type marks {len(control):,} control tokens, more "
            f"than the {MAX_CONTROL_TOKENS:,} supported"
        )
    if model == "gpt2":
        pre = _pre_tokenizer(fields)
        backend = _byte_level(fields, texts, kinds, pre)
        vocabulary = Vocabulary(fields.kept_strings("tokens", texts), kinds, "byte-level")
        add_bos, strips = pre.add_bos, False
    elif model == "llama":
        prefix = fields.flag("add_space_prefix", True)
        backend = _sentencepiece(fields, texts, kinds, prefix)
        vocabulary = Vocabulary(fields.kept_strings("tokens", texts), kinds, "sentencepiece")
        add_bos, strips = True, prefix
    else:
        raise FileFormatError(
            f"{source}: tokenizer.ggml.model is {model!r}, and capax knows 'gpt2' and 'llama'"
        )
    _register_user_defined(backend, texts, kinds)
    return Tokenizer(
        backend,
        vocabulary,
        _special_tokens(fields, control, add_bos, len(texts)),
        control=ControlPattern(control),
        backend_knows_control=False,
        strips_first_space=strips,
        chat_templates=_chat_templates(metadata),
        kind=model if model == "llama" else f"gpt2/{fields.text('pre', 'gpt-2')}",
    )


class _Fields:
    """Typed reads of `tokenizer.ggml.NAME`, each with an error that names the key."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self._metadata = metadata
        self.source = source

    def error(self, name: str, problem: str) -> FileFormatError:
        return FileFormatError(f"{self.source}: tokenizer.ggml.{name} {problem}")

    def has(self, name: str) -> bool:
        return f"tokenizer.ggml.{name}" in self._metadata

    def text(self, name: str, default: str | None = None) -> str:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, str):
            raise self.error(name, "is missing or not a string: the file has no usable tokenizer")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if value not in (True, False):
            raise self.error(name, f"is {value!r}, not true or false")
        return bool(value)

    def token_id(self, name: str, vocab_size: int) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < vocab_size:
            raise self.error(name, f"is {value!r:.60}, outside the vocabulary of {vocab_size:,}")
        return value

    def array(self, name: str, count: int | None = None) -> list[Any]:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise self.error(name, "is missing or not a list: the file has no usable tokenizer")
        if count is not None and len(value) != count:
            raise self.error(name, f"has {len(value):,} entries for {count:,} tokens")
        items: list[Any] = value.tolist() if hasattr(value, "tolist") else list(value)
        return items

    def strings(self, name: str, limit: int) -> list[str]:
        items = self.array(name)
        if not 0 < len(items) <= limit:
            raise self.error(name, f"has {len(items):,} entries, outside 1 to {limit:,}")
        if set(map(type, items)) != {str}:
            raise self.error(name, "has an entry that is not a string")
        return items

    def kept_strings(self, name: str, strings: list[str]) -> Sequence[str]:
        """Return what `strings` read in the form that is worth keeping."""
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        return PackedStrings(value) if isinstance(value, GGUFArray) else strings

    def pairs(self, name: str, limit: int) -> list[tuple[str, str]]:
        """Read strings of two pieces each, straight from a file's bytes where there are some.

        There may be none: then every token is a byte or a control token.
        """
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(value, GGUFArray) and value.item_type is ValueType.STRING:
            n, raw = len(value), value.raw()
            if n > limit:
                raise self.error(name, f"has {n:,} entries, more than {limit:,}")
        else:
            texts = [text.encode("utf-8", "surrogatepass") for text in self.strings(name, limit)]
            n, raw = len(texts), b"".join(len(t).to_bytes(8, "little") + t for t in texts)
        return _native.decode_pairs(raw, n)


def _kinds(fields: _Fields, texts: Sequence[str]) -> dict[int, TokenKind]:
    """Return the kind of every token that is not NORMAL."""
    if not fields.has("token_type"):
        return {}
    types = fields.array("token_type", len(texts))
    known = {int(kind) for kind in TokenKind}
    if set(map(type, types)) - {int} or not set(types) <= known:
        strange = next(t for t in types if type(t) is not int or t not in known)
        raise fields.error("token_type", f"has the unknown value {strange!r:.60}")
    normal = int(TokenKind.NORMAL)  # comparing with the enumeration itself is slow
    return {int(i): TokenKind(types[i]) for i in np.flatnonzero(np.array(types) != normal)}


def _pre_tokenizer(fields: _Fields) -> PreTokenizer:
    name = fields.text("pre", "gpt-2")
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise fields.error(
            "pre",
            f"is {name!r}, and capax knows {known}; a wrong guess would cut words wrongly, so "
            "use the model's Hugging Face directory with its tokenizer.json instead",
        ) from None


def _vocabulary_ids(fields: _Fields, texts: Sequence[str]) -> dict[str, int]:
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) != len(texts):
        repeated = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise fields.error("tokens", f"lists {repeated!r} twice")
    return ids


def _byte_level(
    fields: _Fields, texts: Sequence[str], kinds: Mapping[int, TokenKind], pre: PreTokenizer
) -> tokenizers.Tokenizer:
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    if not fields.has("merges"):
        raise fields.error("merges", "is missing, and a 'gpt2' tokenizer cannot work without")
    try:
        merges = fields.pairs("merges", MAX_MERGES)
    except ValueError as error:
        raise fields.error("merges", str(error)) from error
    ids = _vocabulary_ids(fields, texts)
    if pre.whole_words_first:  # else a user's word that spells a control token would be one
        for token_id, kind in kinds.items():
            if kind is TokenKind.CONTROL:
                del ids[texts[token_id]]
    backend = Backend(_bpe(fields, models.BPE, ids, merges, ignore_merges=pre.whole_words_first))
    if pre.normalize_nfc:
        backend.normalizer = normalizers.NFC()
    cuts: list[Any] = []
    if pre.digits_apart:
        cuts.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.regex is not None:
        cuts.append(pre_tokenizers.Split(Regex(pre.regex), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.regex is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return backend


def _sentencepiece(
    fields: _Fields, texts: Sequence[str], kinds: Mapping[int, TokenKind], prefix: bool
) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers

    scores = fields.array("scores", len(texts))
    if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        raise fields.error("scores", "has an entry that is not a finite number")
    for token_id, kind in kinds.items():
        if kind is TokenKind.BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", texts[token_id]):
            raise fields.error(
                "tokens", f"entry {token_id} is {texts[token_id]!r}, not a byte such as <0x0A>"
            )
    ids = _vocabulary_ids(fields, texts)
    mergeable = {texts[i]: i for i in range(len(texts)) if i not in kinds}
    merges = merges_from_scores(mergeable, scores)
    unknown = next((texts[i] for i, k in kinds.items() if k is TokenKind.UNKNOWN), None)
    backend = Backend(
        _bpe(
            fields,
            models.BPE,
            ids,
            merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(kind is TokenKind.BYTE for kind in kinds.values()),
        )
    )
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    return backend


def merges_from_scores(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return BPE merges, first to apply first, of a SentencePiece vocabulary.

    Every way to put a piece together from two others is a merge, ordered by the score of
    the piece; among equal scores the longer left part goes first, as in the converter of
    transformers. Only normal pieces take part: text never merges into a control token.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, token_id in ids.items():
        splits = [
            (ids[left], ids[right], left, right)
            for cut in range(1, len(piece))
            if (left := piece[:cut]) in ids and (right := piece[cut:]) in ids
        ]
        splits.sort()
        score = scores[token_id]
        ranked.extend((score, len(left), len(right), left, right) for _, _, left, right in splits)
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    return [(left, right) for _, _, _, left, right in ranked]


def _bpe(
    fields: _Fields, bpe: Any, ids: Mapping[str, int], merges: Sequence[Any], **options: Any
) -> Any:
    with library_errors(f"{fields.source}: tokenizer.ggml.merges does not fit the tokens"):
        return bpe(ids, merges, **options)


def _register_user_defined(
    backend: tokenizers.Tokenizer, texts: Sequence[str], kinds: Mapping[int, TokenKind]
) -> None:
    from tokenizers import AddedToken

    added = [
        AddedToken(texts[i], normalized=False, special=False)
        for i, kind in kinds.items()
        if kind is TokenKind.USER_DEFINED and texts[i]
    ]
    if added:
        backend.add_tokens(added)


def _special_tokens(
    fields: _Fields, control: Mapping[str, int], add_bos: bool, vocab_size: int
) -> SpecialTokens:
    eos_id = fields.token_id("eos_token_id", vocab_size)
    others = [fields.token_id(f"{name}_token_id", vocab_size) for name in ("eot", "eom")]
    return SpecialTokens(
        bos_id=fields.token_id("bos_token_id", vocab_size),
        eos_id=eos_id,
        eos_ids=end_ids([eos_id, *others], control),
        pad_id=fields.token_id("padding_token_id", vocab_size),
        unk_id=fields.token_id("unknown_token_id", vocab_size),
        add_bos=fields.flag("add_bos_token", add_bos),
        add_eos=fields.flag("add_eos_token", False),
    )


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    return {
        key[len(prefix) + 1 :] or "default": value
        for key, value in metadata.items()
        if isinstance(value, str) and (key == prefix or key.startswith(prefix + "."))
    }
