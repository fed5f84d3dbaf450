"""Turn chat messages into a prompt by the template that came with the model.

Where a template runs. Templates whose digest is in `trusted_digests` (SmolLM2's, and those
that capax ships) have been read by us and render in this process, which saves starting a
helper before the first token. Every other template is an untrusted program and renders in
the helper process of `template_helper`.

Messages stay data. A prompt that spells `<|im_end|>` must not end the turn, but a template
writes the same characters and means it. `encode_chat` tells them apart: before rendering,
every control token spelled inside the messages, tools or documents is replaced by one
private-use character; after rendering, control tokens are recognised, and only then do the
replaced characters become the original text again, as ordinary text. Pieces of a control
token at either end of a string are replaced as well, so that two strings, or a string and
the template around it, cannot join to form one. Everything else reaches the template
unchanged, so `trim`, `split` and comparisons work on what the user wrote; only lengths
that a template computes over such a spelling differ. A template that puts a whole string
between the halves of a control token (`'<|' + role + '|>'`) is meant to form one: that is
why roles are restricted to plain words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from capax.errors import ConfigError, FileFormatError, SandboxError
from capax.files.bundled_templates import BUNDLED_TEMPLATES
from capax.files.sha256 import sha256
from capax.files.tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 1 << 20
MAX_INPUT_CHARS = 16 << 20
MAX_MESSAGES = 100_000

Messages = Sequence[Mapping[str, Any]]  # role, content, and what else the template knows

# What a request may hand to a template besides the messages. vLLM unpacked everything and
# so let a request switch on blocking work (CVE-2025-62426).
ALLOWED_OPTIONS = frozenset(
    {
        "builtin_tools",
        "custom_tools",
        "date_string",
        "enable_thinking",
        "keep_past_thinking",
        "preserve_thinking",
        "reasoning_effort",
        "thinking",
        "thinking_budget",
        "tools_in_user_message",
    }
)

_SMOLLM2_DIGEST = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_PRIVATE_USE = range(0x100000, 0x10FFFE)


def _digest(template: str) -> str:
    return sha256(template.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=1)
def trusted_digests() -> frozenset[str]:
    """Return the SHA-256 of every template that renders in this process."""
    return frozenset({_SMOLLM2_DIGEST, *map(_digest, BUNDLED_TEMPLATES.values())})


@lru_cache(maxsize=8)
def is_trusted(template: str) -> bool:
    """Whether a template renders in this process, as we have read it."""
    return _digest(template) in trusted_digests()


def render_chat(
    template: str,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    bos_token: str | None = None,
    eos_token: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Return the prompt text of `messages`, as transformers' `apply_chat_template` would.

    `options` are further variables for the template; only ALLOWED_OPTIONS are accepted.
    Raises ConfigError for messages or options that are not acceptable, FileFormatError for
    a broken template, SandboxError for one that had to be stopped.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise FileFormatError(
            f"the chat template has {len(template):,} characters, more than {MAX_TEMPLATE_CHARS:,}"
        )
    _check_messages(messages)
    context: dict[str, Any] = {
        **_checked_options(options or {}),
        "messages": messages,
        "tools": tools,
        "documents": documents,
        "add_generation_prompt": add_generation_prompt,
    }
    # A token the model does not have stays undefined: None would be written as 'None'.
    if bos_token is not None:
        context["bos_token"] = bos_token
    if eos_token is not None:
        context["eos_token"] = eos_token
    context = _as_json_values(context)
    if is_trusted(template):
        return _render_here(template, context)
    from capax.files.template_helper import HELPER

    return HELPER.render(template, context)


def prepare_renderer(template: str) -> None:
    """Start the helper in the background if `template` will need it."""
    if not is_trusted(template):
        from capax.files.template_helper import HELPER

        HELPER.start()


def encode_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    check_text: Callable[[str], None] | None = None,
) -> list[int]:
    """Return the prompt's token ids; control tokens come from the template only.

    `template` defaults to the tokenizer's own (the one for tools where it has one and
    `tools` are given). BOS is added where the model wants it and the template has not
    written it. `check_text` sees the text before it is tokenised, and may raise. Raises as
    `render_chat`, and ConfigError if there is no template.
    """
    template = template if template is not None else template_of(tokenizer, tools)
    _check_messages(messages)
    spellings = _spellings(tuple(tokenizer.control_texts))
    mask = ControlMask(spellings, [template, messages, tools, documents])
    text = render_chat(
        template,
        mask.hide(messages),
        add_generation_prompt=add_generation_prompt,
        bos_token=_text_of(tokenizer, tokenizer.bos_id),
        eos_token=_text_of(tokenizer, tokenizer.eos_id),
        tools=mask.hide(tools),
        documents=mask.hide(documents),
        options=options,
    )
    if check_text is not None:
        check_text(text)
    if mask.used:
        ids = tokenizer.encode_fragments(mask.reveal(tokenizer.split_control(text)))
    else:
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
    bos_id = tokenizer.bos_id
    if tokenizer.add_bos and bos_id is not None and ids[:1] != [bos_id]:
        return [bos_id, *ids]
    return ids


class ControlSpellings(NamedTuple):
    """How the control tokens of a tokenizer are spelled, whole and in part."""

    whole: re.Pattern[str] | None
    heads: frozenset[str]
    tails: frozenset[str]
    longest: int


@lru_cache(maxsize=8)
def _spellings(texts: tuple[str, ...]) -> ControlSpellings:
    ordered = sorted(texts, key=len, reverse=True)
    return ControlSpellings(
        whole=re.compile("|".join(map(re.escape, ordered))) if ordered else None,
        heads=frozenset(text[:n] for text in texts for n in range(1, len(text))),
        tails=frozenset(text[n:] for text in texts for n in range(1, len(text))),
        longest=max(map(len, texts), default=0),
    )


class ControlMask:
    """Replaces control tokens spelled in data by single characters, and back.

    The characters are private-use code points that occur nowhere in `sources`.
    """

    def __init__(self, spellings: ControlSpellings, sources: Iterable[Any]) -> None:
        self._spellings = spellings
        self._taken: frozenset[str] | None = None
        self._sources = sources
        self._original: dict[str, str] = {}
        self._stand_in: dict[str, str] = {}

    @property
    def used(self) -> bool:
        """Whether anything had to be replaced."""
        return bool(self._original)

    def hide(self, value: Any) -> Any:
        """Return `value` with control tokens replaced in all strings of it, at any depth."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, Mapping):
            return {
                self.hide(key): item if key == "role" else self.hide(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, fragments: Iterable[str | int]) -> Iterable[str | int]:
        """Yield the fragments of a rendered prompt with the original text put back."""
        back = {ord(char): text for char, text in self._original.items()}
        for fragment in fragments:
            yield fragment.translate(back) if isinstance(fragment, str) else fragment

    def _hide_text(self, text: str) -> str:
        whole, heads, tails, longest = self._spellings
        if whole is None:
            return text
        text = whole.sub(lambda match: self._char_for(match.group()), text)
        for n in range(min(longest, len(text)), 0, -1):
            if text[-n:] in heads:
                text = text[:-n] + self._char_for(text[-n:])
                break
        for n in range(min(longest, len(text)), 0, -1):
            if text[:n] in tails:
                text = self._char_for(text[:n]) + text[n:]
                break
        return text

    def _char_for(self, text: str) -> str:
        char = self._stand_in.get(text)
        if char is None:
            if self._taken is None:
                self._taken = frozenset(_private_characters(self._sources))
            char = next(
                (c for c in map(chr, _PRIVATE_USE) if c not in self._taken | self._original.keys()),
                None,
            )
            if char is None:
                raise ConfigError("the messages use every private-use character of plane 16")
            self._stand_in[text] = char
            self._original[char] = text
        return char


def _private_characters(sources: Iterable[Any]) -> Iterable[str]:
    text = json.dumps(list(sources), ensure_ascii=False, default=str)
    return {char for char in text if ord(char) in _PRIVATE_USE}


def _check_messages(messages: Any) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not 0 < len(messages) <= MAX_MESSAGES:
        raise ConfigError(f"messages must be a list of 1 to {MAX_MESSAGES:,} messages")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise ConfigError(
                f"messages[{i}] has the role {str(role)[:40]!r}: use a plain word such as 'user', "
                "'assistant', 'system' or 'tool'"
            )


def _checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in options:
        if name not in ALLOWED_OPTIONS:
            allowed = ", ".join(sorted(ALLOWED_OPTIONS))
            raise ConfigError(f"chat template option {str(name)[:40]!r} is not one of {allowed}")
    return options


def _as_json_values(context: dict[str, Any]) -> dict[str, Any]:
    """Return plain values, the same whether the template runs here or in the helper."""
    try:
        text = json.dumps(context)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"messages, tools and documents must be JSON values: {error}") from None
    if len(text) > MAX_INPUT_CHARS:
        raise ConfigError(
            f"the messages have {len(text):,} characters as JSON, more than {MAX_INPUT_CHARS:,}"
        )
    plain: dict[str, Any] = json.loads(text)
    return plain


def _render_here(template: str, context: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    from capax.files import template_engine

    try:
        return template_engine.render(template, context)
    except template_engine.RefusedMessages as error:
        raise ConfigError(f"the chat template does not accept the messages: {error}") from None
    except template_engine.OutputTooLong:
        raise SandboxError("the chat template was stopped: it writes too much") from None
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise FileFormatError(f"the chat template cannot be rendered: {error}") from None


def template_of(tokenizer: Tokenizer, tools: object = None) -> str:
    """Return the model's own template, for tools where there are some and it has one.

    Raises ConfigError if the model has none.
    """
    template = tokenizer.chat_templates.get("tool_use") if tools else None
    template = template or tokenizer.chat_template
    if template is None:
        raise ConfigError(
            "the model has no chat template: choose one with --chat-template "
            f"({', '.join(sorted(BUNDLED_TEMPLATES))})"
        )
    return template


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.token_text(token_id)
