"""`capax scale plan`: from a pilot, how many samples or rounds are worth buying."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.options import json_option
from capax.errors import ConfigError
from capax.files.picture import has_matplotlib, require_matplotlib, save_picture, svg_of

if TYPE_CHECKING:
    from capax.scaling.coverage import Counts
    from capax.scaling.rethinking import Chains
    from capax.scaling.run_costs import UnitCost
    from capax.scaling.saturation_plan import Chosen, Plan


@click.command("plan")
@click.argument("pilot", type=click.Path(path_type=Path))
@click.option(
    "--mode", type=click.Choice(["parallel", "sequential"]), default="parallel", show_default=True,
    help="Samples, or rounds of rethinking.",
)  # fmt: skip
@click.option(
    "--model", type=click.Choice(["single", "mixture", "empirical"]), default="mixture",
    show_default=True, help="How chances of success spread over problems.",
)  # fmt: skip
@click.option("--eps", type=float, metavar="E", help="Least gain of one more unit.  [0.01]")
@click.option("--price", type=float, metavar="P", help="Instead: accuracy a token must bring.")
@click.option(
    "--rule", type=click.Choice(["gain", "tail"]), default="gain", show_default=True,
    help="Compare with eps what the next unit adds, or all that is left.",
)  # fmt: skip
@click.option(
    "--selector", default="oracle", show_default=True, metavar="NAME",
    help="What chooses the answer: oracle or verifier.",
)  # fmt: skip
@click.option(
    "--unit-tokens", type=float, metavar="N",
    help="Tokens of a sample or round. Default: the mean of the run.",
)  # fmt: skip
@click.option(
    "--compare", "chains_file", type=click.Path(path_type=Path), metavar="CHAINS",
    help="Say at which budgets rounds, of this run or JSONL file, beat samples.",
)  # fmt: skip
@click.option(
    "--round-tokens", type=float, metavar="N",
    help="Tokens of a round of --compare. Default: the mean of the run.",
)  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curve.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write the plan as a page.",
)  # fmt: skip
@json_option
def command(
    pilot: Path,
    mode: Any,
    model: Any,
    eps: float | None,
    price: float | None,
    rule: Any,
    selector: str,
    unit_tokens: float | None,
    chains_file: Path | None,
    round_tokens: float | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Say how many units PILOT makes worth buying.

    PILOT is a run of 'capax scale sample' or 'rounds', whose kept times give the cost in seconds,
    or JSONL with {"id", "outcomes": [true, false]} per problem (or per chain of rounds). A problem
    counts as solved if any unit is right: a vote would not follow these curves, and is refused.
    """
    from capax.scaling.coverage import Counts
    from capax.scaling.saturation_plan import plan as plan_of
    from capax.scaling.saturation_plan import threshold_of

    data, cost = _read(pilot, mode)
    tokens = unit_tokens if unit_tokens is not None else _tokens(cost)
    threshold = threshold_of(0.01 if eps is None and price is None else eps, price, tokens)
    made = plan_of(
        data, threshold, model=model, rule=rule, selector=selector, unit_tokens=tokens, cost=cost
    )
    report = made.to_dict()
    rows: list[Chosen] = []
    if chains_file is not None:
        chains, of_round = _read(chains_file, "sequential")
        per_round = round_tokens if round_tokens is not None else _tokens(of_round)
        if not isinstance(data, Counts) or tokens is None or per_round is None:
            raise ConfigError(
                "--compare needs a pilot of samples, --unit-tokens and --round-tokens; runs have "
                "their own tokens"
            )
        rows = _compare(data, chains, model, (tokens, per_round))
        report["compare"] = [row._asdict() for row in rows]
    if plot is not None:
        _draw(plot, data, made)
    if html is not None:
        _write_page(html, pilot, data, made, rows)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    _print(made, rows)


def _read(pilot: Path, mode: Any) -> tuple[Counts | Chains, UnitCost | None]:
    """Return the outcomes and, of a run, what a unit took."""
    from capax.scaling.rounds import load_chains
    from capax.scaling.run_costs import unit_cost
    from capax.scaling.sampling import load
    from capax.scaling.saturation_plan import read_outcomes

    if not pilot.is_dir():
        return read_outcomes(pilot, mode), None
    data = load(pilot).counts if mode == "parallel" else load_chains(pilot)
    return data, unit_cost(pilot)


def _tokens(cost: UnitCost | None) -> float | None:
    return None if cost is None else cost.tokens


def _compare(
    counts: Counts, chains: Counts | Chains, model: Any, costs: tuple[float, float]
) -> list[Chosen]:
    import numpy as np

    from capax.scaling.rethinking import Chains
    from capax.scaling.saturation import fit
    from capax.scaling.saturation_plan import compare, rounds_at_risk

    assert isinstance(chains, Chains)  # what the mode asks for
    budgets = np.geomspace(min(costs), 32 * max(costs), 12).tolist()
    return compare(fit(counts, model), fit(rounds_at_risk(chains), model), costs, budgets)


def _print(made: Plan, rows: list[Chosen]) -> None:
    unit = "samples" if made.mode == "parallel" else "rounds"
    low, high = made.n_star_interval
    click.echo(f"N* = {made.n_star:,} {unit} (5-95 %: {low:,}-{high:,}), {made.model} model")
    of = made.n_star_per_problem
    click.echo(
        f"per problem: 10 % {of['p10']:g}, median {of['median']:g}, 90 % {of['p90']:g}; "
        f"eps {made.eps:g}, rule {made.rule}"
    )
    tokens = "" if made.expected_tokens is None else f", {made.expected_tokens:,.0f} tokens each"
    seconds = "" if made.expected_seconds is None else f", {made.expected_seconds:,.3g} s each"
    click.echo(
        f"expected {made.expected_accuracy:.4f} by selector {made.selector}{tokens}{seconds}"
    )
    if made.rounds is not None:
        two = made.rounds["two_state"]
        click.echo(
            f"rounds: corrected {two['q01']:.3f}, broken {two['q10']:.3f}; after the last, ever "
            f"right {made.rounds['ever_right'][-1]:.4f}, last answer right "
            f"{made.rounds['last_right'][-1]:.4f}"
        )
        for number, took in enumerate(made.rounds["cost"] or [], 1):
            click.echo(
                f"round {number}: {took['seconds']:.3g} s, {took['prefilled_tokens']:,.0f} tokens "
                f"read, {took['new_tokens']:,.0f} new"
            )
    for row in rows:
        click.echo(
            f"{row.tokens:>10,.0f} tokens: samples {row.parallel:.4f}, rounds "
            f"{row.sequential:.4f}: {row.mode}"
        )
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)


def _write_page(
    path: Path, pilot: Path, data: Counts | Chains, made: Plan, rows: list[Chosen]
) -> None:
    from capax.files.registry import write_atomically
    from capax.scaling.saturation_report import plan_page

    svg = svg_of(_figure(data, made)) if has_matplotlib() else None
    write_atomically(path, plan_page(pilot.name, data, made, rows, svg).encode(), 0o644)


def _draw(path: Path, data: Counts | Chains, made: Plan) -> None:
    """Write a picture of measured and fitted curves. Raises ConfigError without matplotlib."""
    require_matplotlib()
    save_picture(path, _figure(data, made))


def _figure(data: Counts | Chains, made: Plan) -> Any:
    """Return the picture. Raises ImportError without matplotlib."""
    import numpy as np
    from matplotlib.figure import Figure

    from capax.scaling.coverage import Counts, coverage
    from capax.scaling.saturation import MODELS, fit
    from capax.scaling.saturation_plan import rounds_at_risk

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if isinstance(data, Counts):
        counts, n_seen = data, data.n_min
        seen = coverage(counts, range(1, n_seen + 1))
    else:
        counts, n_seen, seen = rounds_at_risk(data), data.n_rounds, data.ever_right()
        axes.plot(range(1, n_seen + 1), data.last_right(), "s--", label="last answer right")
    axes.plot(range(1, n_seen + 1), seen, "o", markersize=3, label="measured, oracle")
    ns = np.unique(np.rint(np.geomspace(1, max(2 * n_seen, made.n_star + 1), 60)).astype(int))
    for model in MODELS:
        axes.plot(ns, fit(counts, model).at(ns), "-", linewidth=1, label=model)
    axes.axvline(max(made.n_star, 1), color="gray", linestyle=":", label=f"N* = {made.n_star}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("samples" if isinstance(data, Counts) else "rounds")
    axes.set_ylabel("share of problems solved")
    axes.legend(fontsize=8)
    return figure
