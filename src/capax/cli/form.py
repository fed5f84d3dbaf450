"""The flags that say what form an answer must have; the names are llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from capax.decoding.structured import StructuredOutputs

F = TypeVar("F", bound=Callable[..., Any])


def form_options(function: F) -> F:
    """Add --json-schema, --grammar and the two that read them from files."""
    for option in reversed(
        (
            click.option(
                "-j", "--json-schema", metavar="SCHEMA",
                help="Answer with JSON of this schema; '{}' for any JSON.",
            ),
            click.option(
                "-jf", "--json-schema-file", metavar="FILE", help="The same, from a file."
            ),
            click.option(
                "--grammar", metavar="GRAMMAR", help="Answer by this grammar, in GBNF or Lark."
            ),
            click.option("--grammar-file", metavar="FILE", help="The same, from a file."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def form_of(
    grammar: str | None,
    grammar_file: str | None,
    json_schema: str | None,
    json_schema_file: str | None,
) -> StructuredOutputs | None:
    """Return the form that the flags ask for; at most one of them may.

    Raises ConfigError for a file that cannot be read, and for what is no schema or grammar.
    """
    given = [x for x in (grammar, grammar_file, json_schema, json_schema_file) if x is not None]
    if not given:
        return None
    if len(given) > 1:
        raise click.UsageError("give one of --json-schema, --grammar and their files")
    from capax.decoding.structured import StructuredOutputs

    if json_schema_file is not None:
        json_schema = _text_of(json_schema_file)
    if grammar_file is not None:
        grammar = _text_of(grammar_file)
    return StructuredOutputs(json=json_schema, grammar=grammar)


def _text_of(name: str) -> str:
    from capax.decoding.structured import MAX_FORM_NBYTES
    from capax.errors import ConfigError

    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_FORM_NBYTES + 1)
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {name!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name!r} is not UTF-8 at byte {error.start}") from None
