"""Write the page of all commands from the commands themselves.

python tools/cli_reference.py docs/cli.md            # write it
python tools/cli_reference.py --check docs/cli.md    # exit 1 when it is out of date
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

HEAD = """# Commands

This page is written by `tools/cli_reference.py` from the commands themselves; `make lint` fails
when it is out of date. Results go to standard output, everything else to standard error.
"""


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and everything below it with their full names, groups first."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in sorted(command.list_commands(context)):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands(below, f"{path} {name}")


def reference(root: click.Command, name: str) -> str:
    """Return the Markdown page of a command line: for each command what its `--help` prints."""
    sections = [HEAD]
    help_names = root.context_settings.get("help_option_names", ["--help"])
    for path, command in commands(root, name):
        context = click.Context(
            command, info_name=path, terminal_width=96, color=False, help_option_names=help_names
        )
        lines = [line.rstrip() for line in click.unstyle(command.get_help(context)).splitlines()]
        sections.append(f"## {path}\n\n```text\n" + "\n".join(lines).strip() + "\n```\n")
    return "\n".join(sections)


def main() -> int:
    """Write the page, or compare it with the commands."""
    parser = argparse.ArgumentParser(description="write the page of all commands")
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--root", default="capax.cli.main:cli", help="module:attribute")
    options = parser.parse_args()
    module, _, attribute = options.root.partition(":")
    root = getattr(importlib.import_module(module), attribute)
    if not isinstance(root, click.Command):
        parser.error(f"{options.root} is a {type(root).__name__}, not a click command")
    text = reference(root, "capax")
    if not options.check:
        options.page.write_text(text, encoding="utf-8")
    elif not options.page.exists() or options.page.read_text(encoding="utf-8") != text:
        print(f"{options.page} is out of date: run 'make docs/cli.md'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
