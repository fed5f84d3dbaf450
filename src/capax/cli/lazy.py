"""Groups of commands that import a command's module when it is run, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from capax.cli.config_file import flag_name
from capax.cli.console import Console
from capax.settings import flag_variable


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


def common_options() -> list[click.Option]:
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


def accept_model_flag(command: click.Command) -> None:
    """Let the command's MODEL be given as `-m MODEL` too, wherever it stands."""
    option = click.Option(
        ["-m", "--model", "model_flag"], metavar="MODEL", expose_value=False,
        help="The model, instead of the first argument.",
    )  # fmt: skip
    command.params.insert(sum(isinstance(p, click.Argument) for p in command.params), option)
    parse_args = command.parse_args

    def parse_with_flag(ctx: click.Context, args: list[str]) -> list[str]:
        if any(arg.startswith(("-m", "--model")) for arg in args):
            given = command.make_parser(ctx).parse_args(list(args))[0].get("model_flag")
            if isinstance(given, str):
                if given.startswith("-"):
                    raise click.BadOptionUsage("-m", f"-m is {given!r} but names no model", ctx)
                args = [given, *args]
        return parse_args(ctx, args)

    setattr(command, "parse_args", parse_with_flag)  # noqa: B010  # mypy: a method


class LazyGroup(click.Group):
    """`table`: name -> (module under capax.cli, one line), in the order of the help."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module = importlib.import_module(f"capax.cli.{self._table[cmd_name][0]}")
        command: click.Command = module.command
        if not getattr(command, "is_dressed", False):
            if any(_is_model(parameter) for parameter in command.params):
                accept_model_flag(command)
            command.params.extend(common_options())
            for parameter in command.params:
                _name_variable(parameter)
            setattr(command, "is_dressed", True)  # noqa: B010  # not an attribute mypy knows
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if " ".join(args[:2]) in self._table:  # a name of two words, beside one of the first
            args = [" ".join(args[:2]), *args[2:]]
        if args and args[0] not in self._table and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self._table, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"'{ctx.command_path} --help' lists them"
            )
            ctx.fail(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


def _is_model(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument) and parameter.name == "model"


def _name_variable(parameter: click.Parameter) -> None:
    """Every flag has CAPAX_<FLAG>, and the model has CAPAX_MODEL."""
    is_flag = isinstance(parameter, click.Option) and not parameter.is_eager
    if parameter.name == "model_flag":
        return  # CAPAX_MODEL is the argument's
    if parameter.envvar is None and (is_flag or parameter.name == "model"):
        parameter.envvar = flag_variable(flag_name(parameter))
