"""`capax probe`: measure this machine, or show what was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from capax.cli.console import console
from capax.cli.options import json_option

if TYPE_CHECKING:
    from capax.planning.probe import Probe


@click.command("probe")
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads.")
@click.option("--refresh", is_flag=True, help="Measure again even if a probe is kept.")
@json_option
def command(threads: int | None, refresh: bool, as_json: bool) -> None:
    """Measure read bandwidth by footprint, int8 and float32 arithmetic, and the disk.

    Takes about five seconds; the result is kept for each CPU model, instruction set and
    number of threads, and 'capax plan' predicts from it.
    """
    from capax import _native
    from capax.planning.machine import read_machine, usable_threads
    from capax.planning.probe import cached_probe, keep_probe, measure
    from capax.settings import apply_isa

    machine = read_machine()
    isa = apply_isa()
    n = threads or usable_threads(machine).n
    probe = None if refresh else cached_probe(machine, isa, n)
    if probe is None:
        probe = measure(machine, n, _native, on_progress=lambda what: console().note(f"{what} ..."))
        console().detail(f"kept in {keep_probe(probe)}")
    if as_json:
        click.echo(json.dumps(probe.to_json(), indent=2))
        return
    for line in probe_lines(probe):
        click.echo(line)


def probe_lines(probe: Probe) -> list[str]:
    """Return the probe as a person reads it."""
    from capax.planning.sizes import format_size

    lines = [
        f"machine  {probe.cpu_model}, {probe.isa} path, {probe.threads} threads",
        f"measured {probe.created}",
    ]
    lines += [
        f"read     {format_size(nbytes):>9}  {rate:8.1f} GB/s"
        for nbytes, rate in sorted(probe.read_gbps.items())
    ]
    for name, rates, unit in (
        ("int8", probe.int8_gmacs, "GMAC/s"),
        ("float32", probe.f32_gflops, "GFLOP/s"),
    ):
        lines += [
            f"{name:<8} {n:>2} thread{'s' if n > 1 else ' '}  {rate:7.1f} {unit}"
            for n, rate in sorted(rates.items())
        ]
    lines += [
        f"disk     {point.pattern} by {format_size(point.block_nbytes)}: {point.gbps:.2f} GB/s"
        for point in probe.disk
    ]
    return lines
