"""`capax scale select`: what votes over the samples of a run get right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from capax.cli.options import json_option
from capax.errors import ConfigError


@click.command("select")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--k", "ks", metavar="N,N,...", help="Samples per problem. Default: powers of two.")
@json_option
def command(run: Path, ks: str | None, as_json: bool) -> None:
    """Vote over the samples of RUN, at no further token.

    vote: plain majority, exact over all choices of k samples. short: only the shortest half votes.
    inverse: a vote weighs 1 / length. saved: the share of tokens not taken if all k run at once and
    the first half to finish votes as 'short' does.
    """
    from capax.scaling.selecting import read_pools, select

    pools = read_pools(run)
    n_min = min(pool.n_tokens.size for pool in pools)
    found = select(pools, _ks(ks, n_min))
    if as_json:
        report = {"problems": len(pools), "selected": [asdict(row) for row in found]}
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"{len(pools):,} problems")
    click.echo(f"{'k':>6} {'vote':>7} {'short':>7} {'inverse':>8} {'saved':>7}")
    for row in found:
        click.echo(
            f"{row.k:>6,} {row.vote:>7.4f} {row.short:>7.4f} {row.inverse:>8.4f} "
            f"{row.first_saves:>7.1%}"
        )


def _ks(text: str | None, n_min: int) -> list[int]:
    if text is None:
        return [1 << i for i in range(n_min.bit_length())]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--k is {text!r:.60}; write numbers with commas, 1,4,16") from None
