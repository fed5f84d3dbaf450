"""The registry of methods, and the one spelling that chooses them.

A method is one way to do one of capax's jobs: keep a context (`kv`), hold weights
(`weights`), choose tokens (`decoding`), spend more on an answer (`strategy`). It registers
itself, at the end of its file, with a name, its paper, one line on what it does, and a dataclass
of typed options. Command line, Python and HTTP spell the choice alike:

    full        full:type=int8        million:subspaces=32,bits=8
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal

from capax.errors import ConfigError

Kind = Literal["kv", "weights", "decoding", "strategy"]
KINDS: tuple[Kind, ...] = ("kv", "weights", "decoding", "strategy")

# The modules whose import registers the methods of a room.
_ROOMS = {
    "kv": "capax.kv.all",
    "weights": "capax.weights",
    "decoding": "capax.decoding",
    "strategy": "capax.scaling.strategies.all",
}
_MAX_SPEC_LEN = 1024
SPELLED: Mapping[str, bool] = {"spelled": True}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Method:
    """One registered method. `options` is a frozen dataclass whose defaults are the paper's.

    Fields of `options` are int, float, bool, str, a Literal of strings, or one of these with
    None; its `__post_init__` raises ConfigError for a value out of range. One with `SPELLED` as its
    metadata is part of every spelling, default or not.
    """

    name: str
    kind: Kind
    paper: str
    summary: str
    options: type = NoOptions


@dataclass(frozen=True)
class Chosen:
    """A method and the options to use it with."""

    method: Method
    options: Any  # an instance of method.options

    def __str__(self) -> str:
        """Return the spelling that `parse_method` reads back to the same choice."""
        changed = [
            f"{f.name}={_spelled(getattr(self.options, f.name))}"
            for f in fields(self.options)
            if f.metadata.get("spelled")
            or _default(f) is MISSING
            or getattr(self.options, f.name) != _default(f)
        ]
        return self.method.name + (":" + ",".join(changed) if changed else "")


_registry: dict[tuple[Kind, str], Method] = {}


def register(method: Method) -> Method:
    """Add a method. Registering another one under the same kind and name is a mistake."""
    known = _registry.setdefault((method.kind, method.name), method)
    if known != method:
        raise ValueError(f"two {method.kind} methods are called {method.name!r}")
    return method


def registered(kind: Kind | None = None) -> list[Method]:
    """Return the methods of one kind, or of all, by kind and name."""
    for k in KINDS if kind is None else (kind,):
        importlib.import_module(_ROOMS[k])
    found = [m for m in _registry.values() if kind in (None, m.kind)]
    return sorted(found, key=lambda m: (KINDS.index(m.kind), m.name))


def parse_method(kind: Kind, spec: str) -> Chosen:
    """Return what `spec`, spelled 'name' or 'name:option=value,...', chooses.

    Raises ConfigError naming the method, option or value that is wrong and what is possible.
    """
    if len(spec) > _MAX_SPEC_LEN:
        raise ConfigError(
            f"{kind} has {len(spec):,} characters; at most {_MAX_SPEC_LEN:,} are read"
        )
    name, _, rest = spec.strip().partition(":")
    method = _registry.get((kind, name))
    if method is None:  # perhaps its module has not been imported yet
        known = {m.name: m for m in registered(kind)}
        method = known.get(name)
    if method is None:
        raise ConfigError(
            f"{kind} method {name!r:.60} is unknown; known are {', '.join(known) or 'none'} "
            "(see 'capax methods')"
        )
    return Chosen(method, _options(method, rest))


def _options(method: Method, text: str) -> Any:
    assert is_dataclass(method.options)
    known = {f.name: f for f in fields(method.options)}
    hints = typing.get_type_hints(method.options)
    values: dict[str, object] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"{method.kind} method {method.name!r} has no option {name!r:.60}; "
                f"it has {', '.join(known) or 'none'}"
            )
        if not equals:
            raise ConfigError(f"option {name!r} of {method.name!r} has no value; write {name}=...")
        if name in values:
            raise ConfigError(f"option {name!r} of {method.name!r} is given twice")
        values[name] = _converted(f"{method.name}:{name}", value.strip(), hints[name])
    missing = [n for n, f in known.items() if _default(f) is MISSING and n not in values]
    if missing:
        raise ConfigError(
            f"{method.kind} method {method.name!r} needs {missing[0]}=...; "
            f"write {method.name}:{missing[0]}=..."
        )
    return method.options(**values)


def _converted(what: str, text: str, hint: Any) -> object:
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if text == "none" and type(None) in options:
            return None
        return _converted(what, text, next(o for o in options if o is not type(None)))
    if origin is Literal:
        if text in options:
            return text
        raise ConfigError(f"{what} is {text!r:.60}; use one of {', '.join(options)}")
    if hint is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ConfigError(f"{what} is {text!r:.60}; use true or false")
    if hint is str:
        return text
    try:
        return hint(text)
    except ValueError:
        noun = "whole number" if hint is int else "number"
        raise ConfigError(f"{what} is {text!r:.60}; a {noun} is needed") from None


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _spelled(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def option_type_name(hint: Any) -> str:
    """Return how an option's type reads in a listing: 'int', 'f32|f16', 'float|none'."""
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(option_type_name(o) for o in typing.get_args(hint))
    return "none" if hint is type(None) else str(getattr(hint, "__name__", hint))
