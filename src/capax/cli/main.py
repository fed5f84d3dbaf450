"""The `capax` command: finds the command to run, and turns errors into exit codes.

0 ok; 1 failed; 2 misuse; 3 does not fit the budget; 130 interrupted; 141 the reader of our
output went away. Flags come from the command line, else `CAPAX_<FLAG>`, else `config.toml`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from capax.cli.config_file import config_path, default_map, flag_name, read_config
from capax.cli.console import Console
from capax.errors import CapacityError, CapaxError
from capax.settings import flag_variable

FAILED, MISUSE, DOES_NOT_FIT, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141

# Name -> (module, one line), in the order somebody new needs them. The line stands here so
# that 'capax --help' imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Answer a prompt."),
    "chat": ("chat", "Talk to a model in the terminal."),
    "plan": ("plan", "Say what a model would hold and how fast it would be, before loading it."),
    "pull": ("pull", "Fetch a model."),
    "list": ("list_models", "List the models on this machine."),
    "inspect": ("inspect", "Show what is in a model file."),
    "rm": ("remove", "Remove a model."),
    "quantize": ("quantize", "Write a model in a smaller encoding."),
    "bench": ("bench", "Measure prefill and decode speed."),
    "perplexity": ("perplexity", "Measure how well a model predicts a text."),
    "doctor": ("doctor", "Check this machine: cores, memory, disk, models."),
    "probe": ("probe", "Measure this machine: bandwidth, arithmetic, disk."),
    "methods": ("methods", "List the methods and their options."),
    "completion": ("completion", "Print a shell completion script."),
}


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Console).debug = True


def _set_verbose(context: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        context.ensure_object(Console).verbosity = value


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Console).verbosity = -1


def _set_no_color(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Console).color = False


def _common_options() -> list[click.Option]:
    """The flags that stand before or after the command's name."""
    return [
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=_set_verbose,
            help="Say more.",
        ),
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set_quiet,
            help="Say nothing but results and errors.",
        ),
        click.Option(
            ["--no-color"], is_flag=True, expose_value=False, callback=_set_no_color,
            help="Print without colours.",
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_set_debug,
            help="Show where an error came from.",
        ),
    ]  # fmt: skip


class LazyGroup(click.Group):
    """Imports a command's module when it is run, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"capax.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        if not getattr(command, "is_dressed", False):
            command.params.extend(_common_options())
            for parameter in command.params:
                _name_variable(parameter)
            setattr(command, "is_dressed", True)  # noqa: B010  # not an attribute mypy knows
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else "'capax --help' lists them"
            ctx.fail(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        path = config_path()
        config = read_config(path)
        if config:
            commands = {name: self.get_command(ctx, name) for name in COMMANDS}
            ctx.default_map = default_map(
                config, {name: c for name, c in commands.items() if c is not None}, path
            )
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whatever is still buffered goes nowhere instead of failing again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(BROKEN_PIPE)


def _name_variable(parameter: click.Parameter) -> None:
    """Every flag has CAPAX_<FLAG>, and the model has CAPAX_MODEL."""
    is_flag = isinstance(parameter, click.Option) and not parameter.is_eager
    if parameter.envvar is None and (is_flag or parameter.name == "model"):
        parameter.envvar = flag_variable(flag_name(parameter))


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        import capax

        click.echo(f"capax {capax.__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    params=_common_options(),
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
