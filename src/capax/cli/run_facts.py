"""What the manifest of every run says besides its config: by what, of what and where it was made.

Run directories are published: no key, no password and no place of this machine gets in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECRET_OPTIONS = ("--api-key",)
_PATH = re.compile(r"(?<![^=:,;\s])(?:/|~)[^=:,;\s]*")  # inside of a spelling like draft=/models/a


def run_facts(
    model: str,
    base_url: str | None = None,
    *,
    seeds: Mapping[str, int | None],
    limits: Mapping[str, int | None],
) -> dict[str, Any]:
    """Return command, versions, git, hardware, model, seeds and limits of a run.

    `limits`: what it may take; None says that nothing was set. Raises what opening `model` does.
    """
    import sys

    from capax.measuring.records import versions

    return {
        "command": publishable(sys.argv),
        "versions": versions(),
        "git": git_facts(),
        "hardware": hardware(),
        "model": served_model(model, base_url) if base_url else local_model(model),
        "seeds": dict(seeds),
        "limits": dict(limits),
    }


def git_facts() -> dict[str, Any]:
    """Return the states of the working trees that the command ran in and that capax lies in."""
    import capax
    from capax.files.git_state import git_state

    return {
        "working_directory": git_state(Path.cwd()),
        "capax": git_state(Path(capax.__file__).parent, tracked="__init__.py"),
    }


def hardware() -> dict[str, Any]:
    """Return what a time needs beside it."""
    import platform

    from capax.planning.machine import read_machine, usable_threads
    from capax.settings import apply_isa

    machine = read_machine()
    return {
        "cpu": machine.cpu_model,
        "isa": apply_isa(),
        "physical_cores": machine.physical_cores,
        "cpu_quota": machine.cpu_quota,
        "usable_threads": usable_threads(machine).n,
        "memory_bytes": machine.memory_total,
        "memory_limit_bytes": machine.memory_limit,
        "platform": platform.platform(),
    }


def served_model(model: str, base_url: str) -> dict[str, Any]:
    """Return what is known of a model behind a server."""
    return {"name": placeless(model), "base_url": without_password(base_url)}


def local_model(model: str) -> dict[str, Any]:
    """Return a model's name, sizes, and the SHA-256 of its files and of its chat template."""
    import hashlib

    import msgspec

    from capax.cli.recording import main_encoding, model_facts
    from capax.files.digest import file_digests
    from capax.files.model_file import open_model
    from capax.files.registry import resolve

    file = open_model(resolve(model))
    template = file.chat_template
    facts: dict[str, Any] = msgspec.to_builtins(model_facts(file, model))
    return {
        **facts,
        "encoding": main_encoding(file),
        "files": file_digests(file),
        "template_sha256": template and hashlib.sha256(template.encode()).hexdigest(),
    }


def publishable(arguments: Sequence[str]) -> list[str]:
    """Return a command line without keys, passwords in URLs and places of this machine."""
    shown = ["capax"]
    is_secret = False
    for argument in arguments[1:]:
        name, equals, value = argument.partition("=")
        if is_secret:
            shown.append("***")
        elif name in SECRET_OPTIONS and equals:
            shown.append(f"{name}=***")
        elif name.startswith("-") and equals:
            shown.append(f"{name}={placeless(value)}")
        else:
            shown.append(placeless(argument))
        is_secret = argument in SECRET_OPTIONS
    return shown


def without_password(url: str) -> str:
    """Return a URL without user, password and query."""
    scheme, slashes, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def placeless(value: str) -> str:
    """Return a value with each path of this machine as its last part."""
    if "://" in value:
        return without_password(value)
    if Path(value).is_absolute() or value.startswith("~"):
        return Path(value).name
    return _PATH.sub(lambda found: Path(found[0]).name, value)
