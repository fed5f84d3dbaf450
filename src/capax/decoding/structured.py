"""What form an answer must have: JSON, a schema, a regular expression, a grammar, or a choice.

`StructuredOutputs` has vLLM's names and takes exactly one form. It is checked here as far as
that is possible without a tokenizer; `constraint.py` compiles it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from capax.decoding.params import show
from capax.errors import ConfigError

MAX_FORM_NBYTES = 64 << 10  # of a schema, a pattern, a grammar, or all choices together
MAX_FORM_DEPTH = 64  # of nested brackets
MAX_CHOICES = 4096


class Form(NamedTuple):
    """One form as text: what the compiler is given, and what its results are kept under."""

    kind: str  # 'json', 'regex', 'grammar', 'choice', or 'lark' for a grammar of our own
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """The form of an answer, exactly one of the fields. Raises ConfigError otherwise.

    `json`: a JSON schema as a mapping or as JSON text. `json_object`: any JSON object.
    `regex`: a pattern the whole answer matches, in Rust's syntax: no look-around, no back
    references. `grammar`: Lark, or llama.cpp's GBNF (told apart by `::=`). `choice`: the answer
    is one of these strings.
    """

    json: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool):
            raise ConfigError(f"json_object is {show(self.json_object)} but must be true or false")
        given = [f.name for f in dataclasses.fields(self) if self._is_given(f.name)]
        if len(given) != 1:
            names = ", ".join(f.name for f in dataclasses.fields(self))
            raise ConfigError(
                f"structured_outputs has {' and '.join(given) or 'nothing'} but must have exactly "
                f"one of {names}"
            )
        self.form()

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and (name != "json_object" or value)

    def form(self) -> Form:
        """Return the form as text. Raises ConfigError if it is no such thing, or too large."""
        if self.json_object:
            return Form("json", '{"type":"object"}')
        if self.json is not None:
            return Form("json", schema_text(self.json))
        if self.regex is not None:
            return Form("regex", checked_text("regex", self.regex))
        if self.grammar is not None:
            return Form("grammar", checked_text("grammar", self.grammar))
        return Form("choice", _choice_text(self.choice))


def schema_text(schema: Any) -> str:
    """Return a JSON schema as JSON text. Raises ConfigError if it is none, or too large."""
    try:
        if isinstance(schema, str):
            checked_text("json", schema)
            schema = json.loads(schema)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is not JSON: {error!s:.200}") from None
    if not isinstance(schema, Mapping):
        raise ConfigError(f"the JSON schema is {show(schema)} but must be an object")
    return checked_text("json", text)


def checked_text(name: str, text: Any) -> str:
    """Return `text` if it is Unicode of acceptable size and depth. Raises ConfigError."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} is {show(text)} but must be text")
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{name} has half a surrogate pair, which is no character") from None
    if nbytes > MAX_FORM_NBYTES:
        raise ConfigError(
            f"{name} has {nbytes:,} bytes but at most {MAX_FORM_NBYTES:,} are compiled; shorten it"
        )
    if not text.strip():
        raise ConfigError(f"{name} is empty; leave it out to allow any text")
    depth = _depth(text)
    if depth > MAX_FORM_DEPTH:
        raise ConfigError(
            f"{name} nests {depth} brackets but at most {MAX_FORM_DEPTH} are compiled; flatten it"
        )
    return text


def _depth(text: str) -> int:
    """The deepest nesting of brackets; those inside strings count, which errs to the safe side."""
    deepest = depth = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}" and depth:
            depth -= 1
    return deepest


def _choice_text(choices: Any) -> str:
    if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Sequence):
        raise ConfigError(f"choice is {show(choices)} but must be a list of strings")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise ConfigError(f"choice has {len(choices)} strings but must have 1 to {MAX_CHOICES}")
    for text in choices:
        if not isinstance(text, str) or not text:
            raise ConfigError(f"choice contains {show(text)} but must hold non-empty strings")
    joined = json.dumps(list(choices), ensure_ascii=False)
    if len(joined.encode("utf-8", "surrogatepass")) > MAX_FORM_NBYTES:
        raise ConfigError(
            f"choice has more than {MAX_FORM_NBYTES:,} bytes in all; leave some strings out"
        )
    try:
        joined.encode()
    except UnicodeEncodeError:
        raise ConfigError("choice has half a surrogate pair, which is no character") from None
    return joined
