"""`capax measure runtime compare`: two profiles side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from capax.cli.options import json_option


@click.command("compare")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--name", metavar="MODEL", help="Which profile of FIRST, and of SECOND too.")
@click.option("--second-name", metavar="MODEL", help="Which profile of SECOND.")
@json_option
def command(
    first: Path, second: Path, name: str | None, second_name: str | None, as_json: bool
) -> None:
    """Show the times of profile SECOND as multiples of those of FIRST.

    The same model twice shows what machine, software or service is worth; two models on one
    machine show what the model costs.
    """
    from capax.cli.json_files import read_json
    from capax.measuring.runtime_profile import read_profile

    a_name, a = read_profile(read_json(first), name)
    b_name, b = read_profile(read_json(second), second_name or name)
    rows = [("beta", a.beta, b.beta)]
    rows += [(f"g({p})", a.g[p], b.g[p]) for p in a.g if p in b.g]
    rows += [
        (f"T({p}, {o})", a.seconds(p, o), b.seconds(p, o)) for p, o in ((128, 128), (1024, 32))
    ]
    if as_json:
        ratios = {label: y / x if x else None for label, x, y in rows}
        click.echo(json.dumps({"first": a_name, "second": b_name, "ratios": ratios}, indent=2))
        return
    click.echo(f"{'':<14} {a_name[:20]:>20} {b_name[:20]:>20} {'ratio':>8}")
    for label, x, y in rows:
        ratio = f"{y / x:.2f}" if x else "-"
        click.echo(f"{label:<14} {x * 1e3:>17.3f} ms {y * 1e3:>17.3f} ms {ratio:>8}")
