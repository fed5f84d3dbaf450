"""What every command shares: how much to say, in which colour, and on which stream.

Results go to stdout and nothing else does; `Console.note` writes to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

import click


@dataclass
class Console:
    """The flags that all commands take."""

    debug: bool = False
    verbosity: int = 0  # -1 quiet, 0 usual, 1 and more: details
    color: bool = True
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def is_quiet(self) -> bool:
        return self.verbosity < 0

    @property
    def is_verbose(self) -> bool:
        return self.verbosity > 0

    def note(self, text: str) -> None:
        """Say something that is not the result; silent with -q."""
        if not self.is_quiet:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        """Say something that only -v shows."""
        if self.is_verbose:
            click.echo(text, err=True)

    def colored(self, text: str, color: str, stream: IO[str] | None = None) -> str:
        """Return `text` in a colour if the stream (stderr by default) shows colours."""
        stream = sys.stderr if stream is None else stream
        return click.style(text, fg=color) if self.shows_color(stream) else text

    def shows_color(self, stream: IO[str]) -> bool:
        """Follow --no-color, NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE, TERM and the terminal."""
        if not self.color or self.environ.get("NO_COLOR"):
            return False
        if any(self.environ.get(name, "0") != "0" for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
            return True
        return stream.isatty() and self.environ.get("TERM") != "dumb"

    def shows_progress(self) -> bool:
        """Progress that overwrites itself is for a terminal, and for nobody with -q."""
        disabled = self.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "0").lower()
        return not self.is_quiet and sys.stderr.isatty() and disabled in ("", "0", "false")


def console() -> Console:
    """Return the console of the running command."""
    found = click.get_current_context().find_object(Console)
    return found if found is not None else Console()
