"""`capax methods`: what can be chosen, and how it is spelled."""

from __future__ import annotations

import json
import typing
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import click

from capax.cli.options import json_option

if TYPE_CHECKING:
    from capax.methods import Kind, Method


@click.command("methods")
@click.argument(
    "kind", required=False, type=click.Choice(["kv", "weights", "decoding", "strategy"])
)
@json_option
def command(kind: Kind | None, as_json: bool) -> None:
    """List the methods of each KIND, with paper and options.

    A method is chosen as name or name:option=value,..., on the command line and in Python.
    """
    from capax.methods import registered

    found = registered(kind)
    if as_json:
        click.echo(json.dumps({"methods": [method_json(m) for m in found]}, indent=2))
        return
    for method in found:
        click.echo(f"{method.kind + '=' + method.name:<20} {method.summary}")
        if method.paper:
            click.echo(f"{'':<20} {method.paper}")
        for option in method_json(method)["options"]:
            default = (
                "needed" if option["default"] is None and option["is_needed"] else option["default"]
            )
            click.echo(f"{'':<22} {option['name']}={option['type']}  [{default}]")


def method_json(method: Method) -> dict[str, Any]:
    """Return one method with its options, types and defaults."""
    from capax.methods import option_type_name

    hints = typing.get_type_hints(method.options)
    return {
        "name": method.name,
        "kind": method.kind,
        "paper": method.paper,
        "summary": method.summary,
        "options": [
            {
                "name": f.name,
                "type": option_type_name(hints[f.name]),
                "is_needed": f.default is MISSING and f.default_factory is MISSING,
                "default": None if f.default is MISSING else f.default,
            }
            for f in fields(method.options)
        ],
    }
