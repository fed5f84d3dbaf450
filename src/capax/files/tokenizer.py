"""Text to token ids and back, for GGUF files and Hugging Face directories.

One `Tokenizer` class over the `tokenizers` library. The library does the merging; this
file decides what is text and what is control, and turns ids into bytes, so that encoding,
decoding and streaming agree whatever the model's file format.

Control tokens (`<|im_end|>`, `</s>`, ...) are recognised in text only with
`parse_special=True`. By default a prompt that spells one stays ordinary text, because
prompts are data. Tokens a model's author marked as *user defined* are always recognised,
as in transformers and llama.cpp.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from capax.errors import ConfigError, FileFormatError

if TYPE_CHECKING:
    import tokenizers

    from capax.files.model_file import ModelFile

MAX_TEXT_BYTES = 16 * 1024 * 1024  # of UTF-8 in one call of `encode`
MAX_TOKEN_BYTES = 4096

Style = Literal["byte-level", "sentencepiece", "wordpiece"]

# Texts that end a model's turn or document wherever they are control tokens, whatever the
# file's eos_token_id says: many files name only one of the two or three that are in use.
END_TEXTS = frozenset(
    {
        "</s>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",
    }
)


class TokenKind(IntEnum):
    """What a vocabulary entry is; values as in GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a role. `eos_ids` holds every id that ends generation."""

    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    pad_id: int | None = None
    unk_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Token texts as the file spells them, and what each is.

    `kinds` lists only the entries that are not NORMAL. `style` says how a text stands for
    bytes: GPT-2's byte alphabet, SentencePiece's `▁` and `<0x0A>`, or WordPiece's `##`.
    """

    texts: Sequence[str]
    kinds: Mapping[int, TokenKind]
    style: Style

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes a token adds to the output."""
        text = self.texts[token_id]
        kind = self.kinds.get(token_id, TokenKind.NORMAL)
        if kind in (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN):
            return text.encode()
        if self.style == "byte-level":
            alphabet = byte_of_char()
            try:
                return bytes([alphabet[char] for char in text])
            except KeyError:  # an entry outside the byte alphabet stands for itself
                return text.encode()
        if kind is TokenKind.BYTE:
            return bytes([int(text[3:5], 16)])
        if self.style == "wordpiece":
            return text[2:].encode() if text.startswith("##") else b" " + text.encode()
        return text.replace("▁", " ").encode()


@dataclass(frozen=True)
class ControlPattern:
    """Finds control tokens in text, longest first, as transformers does."""

    ids: Mapping[str, int]
    lstrip: frozenset[str] = frozenset()
    rstrip: frozenset[str] = frozenset()
    _regex: re.Pattern[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        alternatives = [
            (r"\s*" if text in self.lstrip else "")
            + "("
            + re.escape(text)
            + ")"
            + (r"\s*" if text in self.rstrip else "")
            for text in sorted(self.ids, key=len, reverse=True)
            if text
        ]
        regex = re.compile("|".join(alternatives)) if alternatives else None
        object.__setattr__(self, "_regex", regex)

    def split(self, text: str) -> Iterable[str | int]:
        """Yield ordinary text (never empty) and control token ids, in order."""
        start = 0
        if self._regex is not None:
            for match in self._regex.finditer(text):
                if match.start() > start:
                    yield text[start : match.start()]
                yield self.ids[match.group(match.lastindex or 0)]
                start = match.end()
        if start < len(text):
            yield text[start:]


class Tokenizer:
    """The tokenizer of one model; safe to use from several threads.

    Build one with `from_gguf` or `from_directory`. `chat_templates` maps a name (usually
    only "default") to the Jinja source that came with the model.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        vocabulary: Vocabulary,
        special: SpecialTokens,
        *,
        control: ControlPattern,
        backend_knows_control: bool,
        strips_first_space: bool,
        chat_templates: Mapping[str, str],
        kind: str,
    ) -> None:
        self._backend = backend
        self._vocabulary = vocabulary
        self._special = special
        self._control = control
        self._backend_knows_control = backend_knows_control
        self._bytes: dict[int, bytes] = {}
        # The library keeps "are control tokens text?" as a switch on the object; the lock
        # keeps it constant during one call.
        self._switch_lock = threading.Lock()
        self.strips_first_space = strips_first_space
        self.chat_templates = dict(chat_templates)
        self.kind = kind
        self.max_text_bytes = MAX_TEXT_BYTES
        if backend_knows_control:
            backend.encode_special_tokens = True

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, source: str = "GGUF metadata") -> Tokenizer:
        """Build the tokenizer described by a GGUF file's `tokenizer.ggml.*` keys.

        `source` names the file in errors. Raises FileFormatError for an unknown tokenizer
        model or pre-tokenizer, missing merges, and counts or ids that disagree.
        """
        from capax.files.gguf_vocabulary import tokenizer_from_gguf

        return tokenizer_from_gguf(metadata, source)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Build the tokenizer of a Hugging Face model directory from its tokenizer.json."""
        from capax.files.directory_vocabulary import tokenizer_from_directory

        return tokenizer_from_directory(Path(path))

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary.texts)

    @property
    def bos_id(self) -> int | None:
        return self._special.bos_id

    @property
    def eos_id(self) -> int | None:
        return self._special.eos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends generation: end of text, of turn, of message."""
        return self._special.eos_ids

    @property
    def pad_id(self) -> int | None:
        return self._special.pad_id

    @property
    def unk_id(self) -> int | None:
        return self._special.unk_id

    @property
    def add_bos(self) -> bool:
        return self._special.add_bos

    @property
    def add_eos(self) -> bool:
        return self._special.add_eos

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which `decode(skip_special=True)` leaves out."""
        return frozenset(
            token_id
            for token_id, kind in self._vocabulary.kinds.items()
            if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN)
        )

    @property
    def control_texts(self) -> Mapping[str, int]:
        """Spelling and id of every token that is special in a prompt."""
        return self._control.ids

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`.

        `add_special` adds BOS and EOS where the model's file asks for them;
        `parse_special` turns the spelling of a control token into that token.
        Raises ConfigError if the text is longer than `max_text_bytes` or is not Unicode.
        """
        self._check_text(text)
        if self._backend_knows_control:  # and what to add around the text
            return self._backend_ids(text, parse_special, add_special)
        if parse_special:
            ids = self.encode_fragments(self._control.split(text))
        else:
            ids = self._backend_ids(text) if text else []
        return self.with_bos_eos(ids) if add_special else ids

    def encode_fragments(self, fragments: Iterable[str | int]) -> list[int]:
        """Return ids where each `str` is ordinary text and each `int` a token id."""
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids.extend(self._backend_ids(fragment))
        return ids

    def split_control(self, text: str) -> Iterable[str | int]:
        """Yield the ordinary stretches of `text` and the ids of its control tokens."""
        self._check_text(text)
        return self._control.split(text)

    def with_bos_eos(self, ids: list[int]) -> list[int]:
        """Return `ids` with BOS and EOS where the model asks for them."""
        head = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        tail = [self.eos_id] if self.add_eos and self.eos_id is not None else []
        return [*head, *ids, *tail] if head or tail else ids

    def decode(self, ids: Iterable[int], skip_special: bool = False, at_start: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        `at_start` says that the ids begin a text: SentencePiece models mark the first word
        with a space that is not part of the text, and it is taken off.
        """
        special = self.special_ids if skip_special else frozenset()
        data = b"".join([self.token_bytes(i) for i in ids if i not in special])
        if at_start and self.strips_first_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes this token stands for (an id may be half a character)."""
        cached = self._bytes.get(token_id)
        if cached is None:
            self._check_id(token_id)
            cached = self._bytes[token_id] = self._vocabulary.bytes_of(token_id)
        return cached

    def token_text(self, token_id: int) -> str:
        """Return the token as the model's file spells it, for example `Ġthe` or `▁the`."""
        self._check_id(token_id)
        return self._vocabulary.texts[token_id]

    def _backend_ids(
        self, text: str, parse_special: bool = False, add_special: bool = False
    ) -> list[int]:
        with library_errors("the model's tokenizer cannot encode this text"):
            if not self._backend_knows_control:
                return self._backend.encode(text, add_special_tokens=False).ids
            with self._switch_lock:
                self._backend.encode_special_tokens = not parse_special
                return self._backend.encode(text, add_special_tokens=add_special).ids

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ConfigError(
                f"token id {token_id} is outside the vocabulary of {self.vocab_size:,} tokens"
            )

    def _check_text(self, text: str) -> None:
        try:
            nbytes = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text has a lone surrogate at character {error.start}, which is not "
                "Unicode text: replace it before tokenizing"
            ) from None
        if nbytes > self.max_text_bytes:
            raise ConfigError(
                f"the text has {nbytes:,} bytes but at most {self.max_text_bytes:,} are "
                "tokenized at once: split it"
            )


def load_tokenizer(model: ModelFile) -> Tokenizer:
    """Return the tokenizer that comes with an opened model."""
    if model.format == "gguf":
        return Tokenizer.from_gguf(model.metadata, source=str(model.path))
    return Tokenizer.from_directory(model.path)


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the `tokenizers` library raises on damaged data into FileFormatError.

    It raises plain Exception, and a panic of its Rust code arrives as a BaseException that
    cannot be imported, only recognised by its name.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see above
        raise FileFormatError(f"{what}: {error}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise FileFormatError(f"{what}: the tokenizers library panicked: {error}") from None


_BYTE_OF_CHAR: dict[str, int] = {}


def byte_of_char() -> Mapping[str, int]:
    """Return GPT-2's byte alphabet: printable bytes stand for themselves, others for U+0100 on."""
    if not _BYTE_OF_CHAR:
        printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
        others = [byte for byte in range(256) if byte not in printable]
        table = {chr(byte): byte for byte in printable}
        table.update({chr(0x100 + rank): byte for rank, byte in enumerate(others)})
        _BYTE_OF_CHAR.update(table)
    return _BYTE_OF_CHAR


def end_ids(candidates: Iterable[int | None], texts: Mapping[str, int]) -> frozenset[int]:
    """Join the ids a file names as ends with the control tokens known to be ends."""
    named = {token_id for token_id in candidates if token_id is not None}
    return frozenset(named | {i for text, i in texts.items() if text in END_TEXTS})


def check_token_texts(texts: Sequence[str], source: str) -> None:
    """Refuse a vocabulary with an entry that is not Unicode or has over MAX_TOKEN_BYTES."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        token_id = next(i for i, text in enumerate(texts) if not _is_unicode(text))
        raise FileFormatError(
            f"{source}: token {token_id} is {texts[token_id][:40]!r}, which is not UTF-8: the "
            "vocabulary is damaged"
        ) from None
    if max(map(len, texts), default=0) * 4 <= MAX_TOKEN_BYTES:
        return
    for token_id, text in enumerate(texts):
        if len(text.encode()) > MAX_TOKEN_BYTES:
            raise FileFormatError(
                f"{source}: token {token_id} has {len(text.encode()):,} bytes, more than the "
                f"{MAX_TOKEN_BYTES:,} a token may have: the vocabulary is damaged"
            )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
