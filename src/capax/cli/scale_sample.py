"""`capax scale sample`: many answers to each task of a file, into a run directory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from capax.cli.asked import Where, progress_of, where_options
from capax.cli.console import console
from capax.cli.main import PARTLY
from capax.cli.options import json_option, model_argument
from capax.cli.run_reports import report_what_is_there

MAX_PARALLEL = 64  # answers in one step; more gain nothing on a CPU


@click.command("sample")
@model_argument
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "-N", "--samples", "n", type=click.IntRange(1), default=16, show_default=True, metavar="N",
    help="Samples per task.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Run directory; one that exists is continued. Default: a new one in runs/.",
)  # fmt: skip
@click.option("--checker", metavar="NAME", help="Checker of tasks that name none.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N tasks.")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
    help="Tokens per sample.",
)  # fmt: skip
@click.option(
    "--temp", "--temperature", "temperature", type=float, default=0.6, show_default=True,
    metavar="T", help="Temperature.",
)  # fmt: skip
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, metavar="P",
    help="Keep the fewest tokens of this probability.",
)  # fmt: skip
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this. May be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end token.")
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the run."
)  # fmt: skip
@click.option(
    "--choices", type=click.IntRange(1, 128), default=16, show_default=True, metavar="N",
    help="Samples per call; they share its prompt.",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=4, show_default=True, metavar="N",
    help="Calls at a time.",
)  # fmt: skip
@click.option(
    "--max-total-tokens", type=click.IntRange(0), metavar="N",
    help="Stop before more tokens than this are taken, prompts included.",
)  # fmt: skip
@where_options
@json_option
def command(
    model: str,
    tasks_file: Path,
    n: int,
    out: Path | None,
    checker: str | None,
    limit: int | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    ignore_eos: bool,
    seed: int,
    choices: int,
    concurrency: int,
    max_total_tokens: int | None,
    where: Where,
    as_json: bool,
) -> None:
    """Draw samples of each task in TASKS from MODEL.

    TASKS is JSONL: {"id", "prompt" or "messages", "reference", "checker"}; checkers are exact,
    numeric, choice, symbolic, and unit_tests for lines of HumanEval, run in a sandbox. The same
    command with the same --out goes on where it was stopped, in whatever way; a higher --samples
    extends a finished run. Exit code 4: --max-total-tokens was reached first.
    """
    from capax import SamplingParams
    from capax.endpoints import Ledger
    from capax.files.run_folder import new_run_path
    from capax.scaling.run_directory import RunDirectory
    from capax.scaling.sampling import SamplePlan, sample
    from capax.scaling.tasks import read_tasks

    tasks = read_tasks(tasks_file, checker, limit)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    plan = SamplePlan(n, params, seed, choices, concurrency)
    settings = plan.settings(tasks, where.identity(model))
    path = out or new_run_path(Path("runs"), tasks_file.stem, settings)
    ledger = Ledger(max_tokens=max_total_tokens)
    parallel = max(choices, min(choices * concurrency, MAX_PARALLEL))

    async def draw() -> str:
        opened = where.open(model, parallel=parallel, ledger=ledger)
        async with opened as endpoint:
            return await sample(endpoint, tasks, run, plan, progress_of("samples"))

    with RunDirectory(path, settings, where.facts(model, seed, max_total_tokens)) as run:
        status = asyncio.run(draw())
        n_samples = len(run.samples)
        report_what_is_there(path)
    if as_json:
        report = {"run": str(path), "status": status, "n_samples": n_samples}
        click.echo(json.dumps({**report, "ledger": ledger.to_dict()}, indent=2))
    else:
        totals = ledger.totals
        click.echo(f"{path}: {n_samples:,} samples of {len(tasks):,} tasks, {status}")
        console().note(
            f"{totals.prompt_tokens:,} prompt tokens, {totals.completion_tokens:,} new; "
            f"next: capax scale coverage {path}"
        )
    if status == "limited":
        click.get_current_context().exit(PARTLY)
