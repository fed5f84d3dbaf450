"""The `capax` command: finds the command to run, and turns errors into exit codes.

0 ok; 1 failed; 2 misuse; 3 does not fit the budget; 130 interrupted; 141 the reader of our
output went away. Flags come from the command line, else `CAPAX_<FLAG>`, else `config.toml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from capax.cli.config_file import config_path, default_map, read_config
from capax.cli.console import Console
from capax.cli.lazy import LazyGroup, common_options
from capax.errors import CapacityError, CapaxError

FAILED, MISUSE, DOES_NOT_FIT, PARTLY, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 4, 130, 141

# Name -> (module, one line), in the order somebody new needs them. The line stands here so
# that 'capax --help' imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Answer a prompt."),
    "chat": ("chat", "Talk to a model in the terminal."),
    "ask": ("ask", "Ask about a text of any length, far beyond the context too."),
    "serve": ("serve", "Answer OpenAI and Anthropic clients over HTTP, with a page to chat."),
    "embed": ("embed", "Turn texts into vectors."),
    "plan": ("plan", "Say what a model would hold and how fast it would be, before loading it."),
    "pull": ("pull", "Fetch a model."),
    "list": ("list_models", "List the models on this machine."),
    "inspect": ("inspect", "Show what is in a model file."),
    "rm": ("remove", "Remove a model."),
    "quantize": ("quantize", "Write a model in a smaller encoding."),
    "bench": ("bench", "Measure prefill and decode speed."),
    "bench serve": ("bench_serve", "Put load on a running server and take its times."),
    "perplexity": ("perplexity", "Measure how well a model predicts a text."),
    "doctor": ("doctor", "Check this machine: cores, memory, disk, models."),
    "probe": ("probe", "Measure this machine: bandwidth, arithmetic, disk."),
    "measure": ("measure", "Measure what a model is worth: compression and more."),
    "scale": ("scale", "Spend tokens so that they buy correct answers."),
    "kv": ("kv", "Look at what KV methods bring along: gates, codebooks."),
    "train": ("train", "Train small parts that methods need."),
    "methods": ("methods", "List the methods and their options."),
    "completion": ("completion", "Print a shell completion script."),
}


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        import capax

        click.echo(f"capax {capax.__version__}")
        context.exit()


class Root(LazyGroup):
    """The command itself: reads the configuration, and ends quietly when nobody reads on."""

    def invoke(self, ctx: click.Context) -> Any:
        path = config_path()
        config = read_config(path)
        if config:
            ctx.default_map = default_map(config, self, path)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whatever is still buffered goes nowhere instead of failing again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(BROKEN_PIPE)


@click.group(
    cls=Root,
    table=COMMANDS,
    params=common_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="First steps: capax pull smollm2-135m, then capax run smollm2-135m 'Gravity is'",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version.",
)
def cli() -> None:
    """Run, scale and measure language models within a fixed inference capacity."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code."""
    _open_closed_streams()
    console = Console()
    try:
        code = cli.main(
            None if arguments is None else list(arguments),
            prog_name="capax",
            standalone_mode=False,
            obj=console,
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if console.debug:
            raise
        return _report(error, console)


def _open_closed_streams() -> None:
    """Give a process that was started with closed streams ('>&-') empty ones instead."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # open as long as we run
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _report(error: Exception, console: Console) -> int:
    """Say what happened in one sentence on stderr; return the exit code."""
    label = console.colored("capax:", "red")
    if isinstance(error, CapaxError):
        click.echo(f"{label} {error}", err=True)
        for n, way in enumerate(getattr(error, "alternatives", ()), 1):
            click.echo(f"  {n}. {way.summary}", err=True)
        return DOES_NOT_FIT if isinstance(error, CapacityError) else FAILED
    if isinstance(error, MemoryError):
        click.echo(f"{label} the system has no memory left; lower --memory or --ctx-size", err=True)
        return FAILED
    if isinstance(error, OSError):
        click.echo(f"{label} {error.filename or 'input/output'}: {error.strerror}", err=True)
        return FAILED
    click.echo(
        f"{label} internal error ({type(error).__name__}: {error}); "
        "run again with --debug and report what it shows",
        err=True,
    )
    return FAILED


def main() -> None:
    """Run `capax` with the arguments of this process."""
    sys.exit(run())
