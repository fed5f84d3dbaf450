"""What the commands of `capax train` have in common: options, the need for PyTorch, and the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from capax.cli.console import console
from capax.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def run_options(
    *, steps: int, unit: str, seed: int = 0, threads: int = 2,
    folder: str = "Folder of the run; one that exists is continued.",
) -> Callable[[F], F]:  # fmt: skip
    """Add -o, --steps, --seed and --threads; `unit` says what a step is."""
    options = (
        click.option(
            "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
            help=folder,
        ),
        click.option(
            "--steps", type=click.IntRange(1), default=steps, show_default=True, metavar="N",
            help=unit,
        ),
        click.option(
            "--seed", type=int, default=seed, show_default=True, metavar="N", help="Seed."
        ),
        click.option(
            "-t", "--threads", type=click.IntRange(1, 1024), default=threads, show_default=True,
            metavar="N", help="Threads.",
        ),
    )  # fmt: skip

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def encoding_option(function: F) -> F:
    """Add --encoding."""
    return click.option(
        "--encoding", type=click.Choice(["F32", "F16", "Q8_0"]), default="Q8_0", show_default=True,
        help="Of the weights in the model file.",
    )(function)  # fmt: skip


@contextmanager
def needs_torch() -> Iterator[None]:
    """Turn a failing import inside into the advice to install the extra."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error


def reporter(steps: int, name: str = "") -> Callable[[Mapping[str, float]], None]:
    """Return what notes each line of a log of `steps` steps."""
    prefix = f"{name}: " if name else ""

    def say(line: Mapping[str, float]) -> None:
        console().note(f"{prefix}step {line['step']:,} of {steps:,}: loss {line['loss']:.3f}")

    return say
