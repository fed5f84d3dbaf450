"""`capax measure runtime bill`: what a server's requests would have taken alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from capax.cli.options import json_option


@click.command("bill")
@click.argument("log", metavar="LOG", type=click.Path(path_type=Path))
@click.option("--profile", "profile_file", required=True, type=click.Path(path_type=Path),
              metavar="PROFILE", help="A file of 'fit' or a table of HELM.")  # fmt: skip
@click.option("--name", metavar="MODEL", help="Which profile of a table of several.")
@click.option("--model", "served", metavar="MODEL",
              help="Requests of this model only, where LOG has several.")  # fmt: skip
@click.option("--devices", type=click.IntRange(1, 10**9), default=1, metavar="N",
              help="Devices that a query occupies.")  # fmt: skip
@click.option("--price", type=click.FloatRange(0), metavar="X", help="Price of a device's hour.")
@click.option("--watts", type=click.FloatRange(0), metavar="W", help="Power of a device.")
@json_option
def command(
    log: Path,
    profile_file: Path,
    name: str | None,
    served: str | None,
    devices: int,
    price: float | None,
    watts: float | None,
    as_json: bool,
) -> None:
    """Price LOG of 'capax serve --request-log' by a profile: idealized over measured seconds.

    The ratio is near 1 on a quiet server that answers one request at a time; waiting, other
    requests and other processes make it smaller.
    """
    from capax.cli.json_files import read_json
    from capax.measuring.runtime_profile import read_profile
    from capax.measuring.served_log import bill, read_log

    chosen, model = read_profile(read_json(profile_file), name)
    found = bill(read_log(log), model, served)
    device_s = found.idealized_s * devices
    result: dict[str, Any] = {
        "profile": chosen,
        "requests": len(found.priced),
        "left_out": dict(found.left_out),
        "cached": found.n_cached,
        "overlapping": found.n_overlapping,
        "beyond_the_profile": found.n_beyond,
        "idealized_s": found.idealized_s,
        "measured_s": found.measured_s,
        "ratio": found.ratio,
        "median_error": found.median_error,
        "waited_s": found.waited_s,
        "fixed_s": found.fixed_s,
        "device_seconds": device_s,
    }
    if price is not None:
        result["cost"] = device_s * price / 3600
    if watts is not None:
        result["joules"] = device_s * watts
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    n = len(found.priced)
    rows = [
        ("profile", chosen),
        ("requests", f"{n:,} priced, {sum(found.left_out.values()):,} left out"),
        *((f"  {reason}", f"{count:,}") for reason, count in found.left_out.items()),
        ("cached", f"{found.n_cached:,} priced by the part of the prompt that was computed"),
        ("overlapping", f"{found.n_overlapping:,} ran while another request did"),
        ("beyond", f"{found.n_beyond:,} with longer prompts than the profile has"),
        ("idealized", f"{found.idealized_s:.3f} s"),
        ("measured", f"{found.measured_s:.3f} s, of them {found.waited_s:.3f} s waiting"),
        ("ratio", f"{found.ratio:.3f} idealized over measured"),
        ("each", f"median error {found.median_error:.1%}"),
        ("fixed", f"{found.fixed_s * 1e3:.2f} ms per request outside the engine"),
    ]
    rows += [(k, f"{result[k]:.6f}") for k in ("device_seconds", "cost", "joules") if k in result]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        click.echo(f"{label:<{width}} {value}")
