"""`capax doctor`: is this machine ready, and what will capax use of it?"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from capax.cli.console import console
from capax.cli.options import json_option

State = Literal["ok", "warning", "broken"]
LOW_MEMORY_NBYTES = 512 << 20
LOW_DISK_NBYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    text: str
    state: State = "ok"


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check the instruction set path, cores, memory, disk and models of this machine.

    Exits with 1 if something is broken. The disk curve is measured by 'capax probe'.
    """
    findings = [*cpu(), memory(), disk(), models(), sandbox(), *settings(), versions()]
    is_broken = any(f.state == "broken" for f in findings)
    if as_json:
        document = {"ok": not is_broken, "findings": [asdict(f) for f in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        colors = {"ok": "green", "warning": "yellow", "broken": "red"}
        for f in findings:
            state = console().colored(f.state, colors[f.state], sys.stdout)
            click.echo(f"{f.name:<9} {f.text:<66} {state}")
    if is_broken:
        raise click.exceptions.Exit(1)


def cpu() -> list[Finding]:
    """The instruction set in use and why, and the threads that will be used and why."""
    from capax.errors import CapaxError
    from capax.planning.machine import read_machine, usable_threads
    from capax.settings import ISA, apply_isa

    found = []
    try:
        isa = apply_isa()
        from capax._native import supported_isas

        supported = supported_isas()
        needs = dict(supported)[isa]
        names = ", ".join(name for name, _ in supported)
        why = f"{ISA} is set" if os.environ.get(ISA) else "the widest this CPU has"
        found.append(Finding("isa", f"{isa} path ({needs}): {why} of {names}"))
    except ImportError as e:
        found.append(Finding("isa", f"the native extension does not load: {e}", "broken"))
    except CapaxError as e:
        found.append(Finding("isa", str(e), "broken"))
    try:
        machine = read_machine()
    except CapaxError as e:
        return [*found, Finding("cpu", str(e), "broken")]
    choice = usable_threads(machine)
    quota = "no quota" if machine.cpu_quota is None else f"quota {machine.cpu_quota:.3g}"
    text = (
        f"{machine.cpu_model}, {choice.n} cores usable ({choice.reason}; affinity "
        f"{len(machine.affinity)}, {machine.physical_cores} physical, {quota})"
    )
    return [Finding("cpu", text), *found]


def memory() -> Finding:
    """Total and available memory, with the limit of the cgroup."""
    from capax.errors import CapaxError
    from capax.planning.machine import read_machine
    from capax.planning.sizes import format_size

    try:
        machine = read_machine()
    except CapaxError as e:
        return Finding("memory", str(e), "broken")
    total, usable = format_size(machine.memory_total), format_size(machine.memory_available)
    limit = "none" if machine.memory_limit is None else format_size(machine.memory_limit)
    state: State = "ok" if machine.memory_available >= LOW_MEMORY_NBYTES else "warning"
    return Finding("memory", f"{total} total, {usable} usable (cgroup: {limit})", state)


def disk() -> Finding:
    """Free space where models go, and the disk curve if this machine was probed."""
    from capax.errors import CapaxError
    from capax.files.xdg import private_dir, xdg_dir
    from capax.planning.sizes import format_size

    directory = xdg_dir("CACHE")
    try:
        private_dir(directory)
        free = shutil.disk_usage(directory).free
    except (CapaxError, OSError) as e:
        return Finding("disk", str(e), "broken")
    state: State = "ok" if free >= LOW_DISK_NBYTES else "warning"
    return Finding("disk", f"{_disk_rate()}, {format_size(free)} free in {directory}", state)


def _disk_rate() -> str:
    from capax.errors import CapaxError
    from capax.planning.machine import read_machine, usable_threads
    from capax.planning.probe import cached_probe
    from capax.settings import apply_isa

    try:
        machine = read_machine()
        probe = cached_probe(machine, apply_isa(), usable_threads(machine).n)
    except (CapaxError, ImportError):
        probe = None
    if probe is None:
        return "read speed not measured ('capax probe')"
    return (
        f"read {probe.disk_rate('sequential') / 1e9:.2f} GB/s cold, "
        f"{probe.disk_rate('random') / 1e9:.2f} at random"
    )


def models() -> Finding:
    """The registered models, and those whose file is gone."""
    from capax.errors import CapaxError
    from capax.files.registry import Registry

    registry = Registry()
    try:
        records = registry.list()
        gone = [r.name for r in records if not Path(registry.path_of(r)).exists()]
    except CapaxError as e:
        return Finding("models", str(e), "broken")
    if gone:
        return Finding(
            "models",
            f"{gone[0]} is registered but its file is gone: 'capax pull {gone[0]}'",
            "broken",
        )
    if not records:
        return Finding("models", "none yet: 'capax pull smollm2-135m'", "warning")
    names = ", ".join(r.name for r in records[:5]) + (", ..." if len(records) > 5 else "")
    return Finding("models", f"{len(records)} found: {names}")


def sandbox() -> Finding:
    """Whether generated code could be run: in full isolation, or not at all."""
    from capax.errors import SandboxError
    from capax.scaling.sandbox import check_isolation

    try:
        return Finding("sandbox", f"generated code runs isolated: {check_isolation()}")
    except SandboxError as e:
        return Finding("sandbox", str(e), "warning")


def settings() -> list[Finding]:
    """Configuration file and environment variables in effect; misspelt ones are pointed out."""
    from capax.cli.config_file import config_path, flag_name
    from capax.cli.main import COMMANDS
    from capax.settings import PREFIX, flag_variable, unknown_variables

    found = []
    path = config_path()
    if path.exists():
        found.append(Finding("config", str(path)))
    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)
    context = click.get_current_context()
    known = {"CAPAX_TEST_MODEL"}
    for name in COMMANDS:
        subcommand = group.get_command(context, name)
        known |= {flag_variable(flag_name(p)) for p in subcommand.params} if subcommand else set()
    unknown = unknown_variables(sorted(known))
    if unknown:
        found.append(
            Finding("environ", f"{', '.join(unknown)}: no flag of this name, not used", "warning")
        )
    used = sorted(n for n in os.environ if n.startswith(PREFIX) and n not in unknown)
    if used:
        found.append(Finding("environ", ", ".join(f"{n}={os.environ[n]:.40}" for n in used)))
    return found


def versions() -> Finding:
    """The versions of capax and of what it stands on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import capax

    parts = [f"capax {capax.__version__}", f"Python {platform.python_version()}"]
    state: State = "ok"
    for package in ("numpy", "tokenizers", "jinja2", "click"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} missing")
            state = "broken"
    return Finding("versions", ", ".join(parts), state)
