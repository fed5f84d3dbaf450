"""`config.toml`: values for flags that are not given and have no environment variable.

    threads = 2                 # for every command that has --threads
    [run]
    temp = 0.2                  # for 'capax run' alone
    [measure.compress]
    window = 512                # for 'capax measure compress' alone

Keys are the flags' long names. A key that no command knows is an error: a misspelt limit
must not be silently absent.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from capax.errors import ConfigError
from capax.files.xdg import xdg_dir

Name = tuple[str, ...]  # the words of a command: ("run",), ("measure", "compress")

MAX_CONFIG_NBYTES = 1 << 20


def config_path() -> Path:
    """Return where the configuration file is looked for."""
    return xdg_dir("CONFIG") / "config.toml"


def read_config(path: Path) -> dict[str, Any]:
    """Return the file's tables, {} if there is no file. Raises ConfigError with line and file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_NBYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    if len(raw) > MAX_CONFIG_NBYTES:
        raise ConfigError(f"{path} has more than {MAX_CONFIG_NBYTES:,} bytes: it is no capax file")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None


def default_map(config: Mapping[str, Any], group: click.Group, path: Path) -> dict[str, Any]:
    """Return click's default map: command -> parameter -> value, nested as the groups are.

    Raises ConfigError for a key that is no flag of any command, or of the table's command.
    """
    commands = _commands(group)
    flags = {name: _flags(command) for name, command in commands.items()}
    result: dict[str, Any] = {}
    tables = dict(_tables(config, group))
    for key, value in config.items():
        if isinstance(value, dict):
            continue
        takers = [name for name in commands if _normal(key) in flags[name]]
        if not takers:
            raise _unknown(path, key, {flag for names in flags.values() for flag in names})
        for name in takers:
            _put(result, name, flags[name][_normal(key)], value)
    for name, table in tables.items():
        if name not in commands:
            raise _unknown(path, f"[{'.'.join(name)}]", [".".join(known) for known in commands])
        for key, value in table.items():
            parameter = flags[name].get(_normal(key))
            if parameter is None:
                raise _unknown(path, f"{'.'.join(name)}.{key}", flags[name])
            _put(result, name, parameter, value)
    return result


def _commands(group: click.Group, above: Name = ()) -> dict[Name, click.Command]:
    """Return every command that is no group, by its words."""
    context = click.Context(group)
    found: dict[Name, click.Command] = {}
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if isinstance(command, click.Group):
            found |= _commands(command, (*above, word))
        elif command is not None:
            found[*above, word] = command
    return found


def _tables(
    config: Mapping[str, Any], group: click.Group, above: Name = ()
) -> Iterator[tuple[Name, Mapping[str, Any]]]:
    """Yield the tables of commands: [run], or [measure.compress] for one within a group."""
    context = click.Context(group)
    for word, table in config.items():
        if not isinstance(table, dict):
            continue
        below = group.get_command(context, word)
        if isinstance(below, click.Group):
            flat = {key: value for key, value in table.items() if not isinstance(value, dict)}
            if flat:
                yield (*above, word), flat
            yield from _tables(table, below, (*above, word))
        else:
            yield (*above, word), table


def _put(result: dict[str, Any], name: Name, parameter: str, value: Any) -> None:
    for word in name:
        result = result.setdefault(word, {})
    result[parameter] = value


def flag_name(option: click.Parameter) -> str:
    """Return an option's long name without dashes, or an argument's name: 'ctx-size', 'model'."""
    longs = [o for o in option.opts if o.startswith("--")]
    return longs[0].removeprefix("--") if longs else (option.name or "").lower()


def _flags(command: click.Command) -> dict[str, str]:
    return {
        _normal(flag_name(p)): str(p.name)
        for p in command.params
        if isinstance(p, click.Option) and not p.is_eager
    }


def _normal(key: str) -> str:
    return key.replace("_", "-")


def _unknown(path: Path, key: str, known: Iterable[str]) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(_normal(key).split(".")[-1].strip("[]"), list(known), 1)
    hint = f"did you mean {near[0]!r}?" if near else "'capax COMMAND --help' lists the flags"
    return ConfigError(f"{path} has the unknown key {key!r:.60}; {hint}")
