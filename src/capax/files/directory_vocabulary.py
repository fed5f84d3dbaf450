"""Build a `Tokenizer` from a Hugging Face directory.

`tokenizer.json` is the tokenizer itself and goes to the `tokenizers` library unchanged.
`tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json` say which
tokens have a role; `chat_template.jinja` or the configuration holds the chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capax.errors import FileFormatError
from capax.files.json_file import read_json_object
from capax.files.tokenizer import (
    ControlPattern,
    SpecialTokens,
    Style,
    Tokenizer,
    TokenKind,
    Vocabulary,
    check_token_texts,
    end_ids,
    library_errors,
)

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_CONFIG_BYTES = 8 * 1024 * 1024
MAX_TEMPLATE_BYTES = 1024 * 1024


def tokenizer_from_directory(path: Path) -> Tokenizer:
    """See `Tokenizer.from_directory`."""
    from tokenizers import Tokenizer as Backend

    source = path / "tokenizer.json"
    data = _read(source, MAX_TOKENIZER_BYTES)
    if data is None:
        raise FileFormatError(
            f"{path} has no tokenizer.json: export one with transformers' save_pretrained"
        )
    with library_errors(f"{source} is not a tokenizer"):
        backend = Backend.from_buffer(data)
        backend.no_padding()
        backend.no_truncation()
        head, tail = _added_by_post_processor(backend)
    vocabulary = _vocabulary(backend, source)
    added = backend.get_added_tokens_decoder()
    control = {token.content: i for i, token in added.items() if token.special and token.content}
    config = _json(path / "tokenizer_config.json")
    roles = {**_json(path / "special_tokens_map.json"), **config}
    ids = {text: i for i, text in enumerate(vocabulary.texts)}
    bos_id, eos_id = _role(roles, "bos_token", ids), _role(roles, "eos_token", ids)
    return Tokenizer(
        backend,
        vocabulary,
        SpecialTokens(
            bos_id=bos_id if bos_id is not None else head,
            eos_id=eos_id if eos_id is not None else tail,
            eos_ids=end_ids([eos_id, *_generation_ends(path, len(vocabulary.texts))], control),
            pad_id=_role(roles, "pad_token", ids),
            unk_id=_role(roles, "unk_token", ids),
            add_bos=head is not None,
            add_eos=tail is not None,
        ),
        control=ControlPattern(
            control,
            lstrip=frozenset(t.content for t in added.values() if t.lstrip),
            rstrip=frozenset(t.content for t in added.values() if t.rstrip),
        ),
        backend_knows_control=True,
        strips_first_space=_strips_first_space(backend, vocabulary.style),
        chat_templates=_chat_templates(path, config),
        kind=f"tokenizer.json/{type(backend.model).__name__}",
    )


def _read(path: Path, limit: int) -> bytes | None:
    if not path.is_file():
        return None
    if path.stat().st_size > limit:
        raise FileFormatError(f"{path} has {path.stat().st_size:,} bytes, more than {limit:,}")
    return path.read_bytes()


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, MAX_CONFIG_BYTES) if path.is_file() else {}


def _vocabulary(backend: Any, source: Path) -> Vocabulary:
    by_text: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    size = max(by_text.values(), default=-1) + 1
    if not 0 < size <= 2 * len(by_text):
        raise FileFormatError(
            f"{source} has {len(by_text):,} tokens but ids up to {size - 1:,}: the ids are wrong"
        )
    texts = [""] * size
    for text, token_id in by_text.items():
        texts[token_id] = text
    check_token_texts(texts, str(source))
    style = _style(backend)
    kinds = {
        token_id: TokenKind.CONTROL if token.special else TokenKind.USER_DEFINED
        for token_id, token in backend.get_added_tokens_decoder().items()
    }
    if style == "sentencepiece":
        for text, token_id in by_text.items():
            if text.startswith("<0x") and re.fullmatch("<0x[0-9A-F]{2}>", text):
                kinds.setdefault(token_id, TokenKind.BYTE)
    return Vocabulary(texts, kinds, style)


def _style(backend: Any) -> Style:
    decoder = str(backend.decoder)
    if "ByteLevel" in decoder:
        return "byte-level"
    if "WordPiece" in decoder:
        return "wordpiece"
    return "sentencepiece"


def _strips_first_space(backend: Any, style: Style) -> bool:
    if style == "wordpiece":
        return True
    decoder = str(backend.decoder)
    metaspace = "Metaspace" in decoder and 'prepend_scheme="never"' not in decoder.replace("'", '"')
    return style == "sentencepiece" and ("Strip(" in decoder or metaspace)


def _role(roles: Mapping[str, Any], name: str, ids: Mapping[str, int]) -> int | None:
    value = roles.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    return ids.get(value) if isinstance(value, str) else None


def _added_by_post_processor(backend: Any) -> tuple[int | None, int | None]:
    """Return the ids the post-processor puts before and after a text, if any."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    n_added = len(full) - len(plain)
    if n_added == 0:
        return None, None
    start = next((i for i in range(n_added + 1) if full[i : i + len(plain)] == plain), 0)
    head = full[0] if start else None
    tail = full[-1] if n_added - start else None
    return head, tail


def _generation_ends(path: Path, vocab_size: int) -> list[int]:
    value = _json(path / "generation_config.json").get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    ids = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise FileFormatError(
                f"{path}/generation_config.json: eos_token_id {token_id} is outside the "
                f"vocabulary of {vocab_size:,} tokens"
            )
    return ids


def _chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                templates[str(entry.get("name", "default"))] = entry["template"]
    data = _read(path / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    if data is not None:
        try:
            templates["default"] = data.decode()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{path}/chat_template.jinja is not UTF-8: {error}") from None
    return templates
