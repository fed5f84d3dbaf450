"""`capax scale limits`: what an imperfect check makes of more samples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from capax.cli.options import json_option
from capax.errors import ConfigError


@click.command("limits")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option("--weak", required=True, metavar="CHECKER", help="The check that answers must pass.")
@click.option(
    "--strong", required=True, metavar="CHECKER", help="The check that decides what is right."
)
@click.option(
    "--ratio", "ratios", default="0,1,2,4,8", show_default=True, metavar="R,R,...",
    help="What a wrong answer costs, where a right one earns 1 and none costs nothing.",
)  # fmt: skip
@json_option
def command(
    run: Path, tasks_file: Path, weak: str, strong: str, ratios: str, as_json: bool
) -> None:
    """Say what sampling until the WEAK check passes can reach, from the samples of RUN.

    Both checks judge the stored samples; no model is asked. Shows how often the weak check lets a
    wrong answer through, the accuracy that no number of attempts exceeds, how much more often late
    acceptances are wrong, and how many attempts pay.
    """
    from capax.scaling.limits import judged_twice, limits
    from capax.scaling.tasks import read_tasks

    costs = _numbers(ratios)
    found = limits(judged_twice(run, read_tasks(tasks_file), weak, strong), costs)
    click.echo(json.dumps(found, indent=2) if as_json else _text(found, weak, strong))


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--ratio is {text!r:.60} but must be numbers with commas") from None
    if not all(math.isfinite(value) and value >= 0 for value in found):
        raise ConfigError(f"--ratio is {text!r:.60} but no cost may be negative or infinite")
    return found


def _text(found: dict[str, Any], weak: str, strong: str) -> str:
    sound, top = found["soundness"], found["ceiling"]

    def shown(value: float | None) -> str:
        return "none" if value is None else f"{value:.3f}"

    lines = [
        f"{found['n_tasks']:,} tasks, {found['n_samples']:,} samples each, "
        f"{found['accuracy']:.1%} right by {strong}",
        f"soundness     {shown(sound['value'])} ({sound['low']:.3f} to {sound['high']:.3f}): "
        f"{weak} rejects {sound['n_hits']:,} of {sound['n_trials']:,} wrong answers",
        f"completeness  {shown(found['completeness']['value'])}",
        f"ceiling       {shown(top['value'])} ({top['lower']:.3f} to {top['upper']:.3f} with "
        f"{top['n_never_accepted']:,} tasks never accepted)",
        "",
        "accepted at attempt   wrong",
        *(f"{k:>19}   {rate:.3f}" for k, rate in found["false_positive_rate"].items()),
        "",
        "a wrong answer costs   attempts   reward",
    ]
    for row in found["plans"]:
        best = row["attempts"]
        times = (
            f"{best}" if best is not None else f"any ({row['attempts_for_99_percent']} for 99 %)"
        )
        lines.append(f"{row['ratio']:>20g}   {times:<8}   {row['reward']:+.3f}")
    return "\n".join(lines)
