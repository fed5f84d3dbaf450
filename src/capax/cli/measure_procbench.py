"""`capax measure procbench`: how many steps of a given procedure a model follows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.asked import identity
from capax.cli.compress import progress
from capax.cli.console import console
from capax.cli.options import json_option, machine_options, model_argument
from capax.cli.recording import (
    data_of,
    engine_facts,
    host_facts,
    keep,
    record_folder,
    record_option,
)
from capax.cli.run_facts import run_facts
from capax.errors import ConfigError
from capax.files.run_folder import new_run_path

if TYPE_CHECKING:
    from capax.measuring.measured_run import MeasuredRun
    from capax.measuring.procbench.evaluate import Settings
    from capax.measuring.procbench.problem import Problem
    from capax.measuring.procbench.record import Record
    from capax.measuring.procbench.report import Report
    from capax.measuring.records import Record as Measurement

    Evaluate = Callable[..., Coroutine[Any, Any, list[Record]]]  # (endpoint, count_tokens=...)

CONTEXT_BEYOND_ANSWER = 3072  # tokens: our longest prompts have some 1,200
MAX_AT_ONCE = 64  # answers that the engine makes together


class StepsType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Numbers of steps, typed as 2-6 or 2,5,10."""

    name = "steps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        steps: list[int] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,3})(?:\s*-\s*(\d{1,3}))?\s*", part)
            if match is None:
                self.fail(f"{value!r:.40} are no steps; write 2-6 or 2,5,10", param, ctx)
            steps += range(int(match[1]), int(match[2] or match[1]) + 1)
        return tuple(dict.fromkeys(steps))


@click.command("procbench")
@model_argument
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR|FILE.jsonl",
    help="Run directory, or a file for the answers alone; one that exists is continued. Default: a "
    "new directory in runs/.",
)  # fmt: skip
@click.option(
    "--base-url", metavar="URL", help="Ask MODEL at an OpenAI-compatible server, http://.../v1."
)
@click.option("--api-key", envvar="OPENAI_API_KEY", metavar="KEY", help="Sent as bearer token.")
@click.option("--tasks", metavar="NAMES", help="Some of the 23 tasks, with commas. Default: all.")
@click.option("--steps", type=StepsType(), default="2-6", show_default=True, help="From 2 to 25.")
@click.option(
    "--per-cell", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N",
    help="Problems for each task and number of steps.",
)  # fmt: skip
@click.option("--seed", type=int, default=12, show_default=True, help="Of the problems.")
@click.option(
    "--problems", type=click.Path(path_type=Path), metavar="FILE",
    help="Published problems as JSON lines, instead of new ones.",
)  # fmt: skip
@click.option(
    "--templates", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Published instructions, for problems that come without.",
)  # fmt: skip
@click.option(
    "--mode", type=click.Choice(["free", "json"]), default="free", show_default=True,
    help="Read any answer by rule, or let the model write nothing but the form.",
)  # fmt: skip
@click.option(
    "--ask", type=click.Choice(["instructions", "question"]), default="instructions",
    show_default=True,
    help="The whole prompt as a chat, or the question alone, for a model that learnt the task.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N",
    help="Answers to a problem; of several the states are voted.",
)  # fmt: skip
@click.option(
    "--vote", type=click.Choice(["answers", "states"]), default="answers", show_default=True,
    help="On whole answers, or each state before the next (with --mode json --ask question).",
)  # fmt: skip
@click.option(
    "--temp", "temperature", type=click.FloatRange(0.0, 2.0, min_open=True), default=0.7,
    show_default=True, metavar="T", help="Temperature of several answers; one is greedy.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1, 32_768), default=512, show_default=True, metavar="N",
    help="Of each answer.",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=8, show_default=True, metavar="N",
    help="Problems at a time.",
)  # fmt: skip
@machine_options
@record_option
@json_option
def command(
    model: str,
    out: Path | None,
    base_url: str | None,
    api_key: str | None,
    tasks: str | None,
    steps: tuple[int, ...],
    per_cell: int,
    seed: int,
    problems: Path | None,
    templates: Path | None,
    mode: Any,
    ask: Any,
    samples: int,
    vote: Any,
    temperature: float,
    max_tokens: int,
    concurrency: int,
    threads: int | None,
    memory: int | None,
    record: str | None,
    as_json: bool,
) -> None:
    """Measure how many steps of a given procedure MODEL follows (ProcBench).

    Each of 23 tasks states a procedure in full; the model must return every state on the way.
    PA is the share of leading states that are right, SM the share of answers right throughout, FM
    that of right final states. Greedy, or voted over --samples; problems are made new by seed,
    with exact truth.
    """
    from capax.measuring.measured_run import MeasuredRun
    from capax.measuring.procbench.evaluate import Settings, evaluate, run_settings
    from capax.measuring.procbench.report import facts as facts_of
    from capax.measuring.procbench.report import markdown, summarize, tables

    folder = record_folder(record)
    chosen = _problems(tasks, steps, per_cell, seed, problems, templates)
    settings = Settings(mode, max_tokens, ask, samples, temperature, vote)
    answer = partial(evaluate, problems=chosen, settings=settings, concurrency=concurrency)

    def measure(answer: Evaluate) -> tuple[Report, Measurement]:
        if base_url is not None:
            asked = _ask_server(base_url, api_key, model, answer, concurrency)
        else:
            asked = _ask_engine(model, answer, settings, concurrency, threads, memory)
        records, facts = asyncio.run(asked)
        report = summarize(records, max_tokens)
        return report, _measurement(
            report, chosen, settings, seed if problems is None else None, facts
        )

    if out is not None and (out.is_file() or out.suffix == ".jsonl"):
        report, made = measure(
            partial(answer, path=out, on_record=progress("answered", "problems"))
        )
    else:
        asked_for = {"model": identity(model, base_url), **run_settings(chosen, settings)}
        path = out or new_run_path(Path("runs"), "procbench", asked_for)
        limits = {"memory_bytes": memory, "threads": threads, "max_tokens": max_tokens}
        about = {
            **run_facts(
                model, base_url, seeds={"problems": None if problems else seed}, limits=limits
            ),
            "n_problems": len(chosen),
        }
        with MeasuredRun(path, "procbench", asked_for, about) as run:
            report, made = measure(
                partial(answer, path=run.samples, has_header=False, on_record=_logged(run))
            )
            run.finish(
                [made], f"{'. '.join(facts_of(report))}.", tables(report),
                draw=_drawing(report), alt="shares of right states by number of steps",
            )  # fmt: skip
        console().note(f"{path / 'report.html'}")
    keep(folder, made)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else markdown(report))


def _measurement(
    report: Report,
    problems: list[Problem],
    settings: Settings,
    seed: int | None,
    facts: dict[str, Any],
) -> Measurement:
    from capax.measuring.figures import procbench_figures
    from capax.measuring.records import Record as Measurement
    from capax.measuring.records import now

    asked = json.dumps([[p.task.name, p.digest] for p in problems]).encode()
    return Measurement(
        kind="procbench",
        time=now(),
        data=data_of("procbench", asked, len(problems)),
        settings={
            "mode": settings.mode, "ask": settings.ask, "max_tokens": settings.max_new_tokens,
            "temperature": 0.0 if settings.samples == 1 else settings.temperature,
            **({"samples": settings.samples} if settings.samples > 1 else {}),
            **({"vote": settings.vote} if settings.vote != "answers" else {}),
        },
        seed=seed,
        figures=procbench_figures(report),
        **facts,
    )  # fmt: skip


def _logged(run: MeasuredRun) -> Callable[[int, int], None]:
    """Return what writes how many are done to a run's log, and to a terminal."""
    show = progress("answered", "problems")

    def log(done: int, total: int) -> None:
        run.log_progress(done, total)
        if show:
            show(done, total)

    return log


def _drawing(report: Report) -> Callable[[Path], None] | None:
    """Return what draws the curve, None without matplotlib."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        console().note("no picture in the report; it needs: pip install 'capax[plots]'")
        return None
    from capax.measuring.procbench.picture import draw

    return partial(draw, report)


def _problems(
    tasks: str | None,
    steps: tuple[int, ...],
    per_cell: int,
    seed: int,
    path: Path | None,
    templates: Path | None,
) -> list[Problem]:
    """Return the problems of the chosen tasks and steps, made or loaded."""
    from capax.measuring.procbench import TASKS, generate
    from capax.measuring.procbench.public import load_public

    names = [name.strip() for name in tasks.split(",")] if tasks else list(TASKS)
    if path is None:
        if templates is not None:
            raise ConfigError("--templates goes with --problems; new problems have their own")
        return list(generate(names, steps, per_cell, seed))
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"there is no task {name!r:.40}; there are {', '.join(TASKS)}")
    found: list[Problem] = []
    n_in_cell: dict[tuple[str, int], int] = {}
    for problem in load_public(path, templates):
        cell = (problem.task.name, problem.steps)
        if cell[0] in names and cell[1] in steps and n_in_cell.get(cell, 0) < per_cell:
            n_in_cell[cell] = n_in_cell.get(cell, 0) + 1
            found.append(problem)
    if not found:
        raise ConfigError(f"{path} has no problem of these tasks and steps; choose others")
    return found


async def _ask_engine(
    model: str,
    answer: Evaluate,
    settings: Settings,
    concurrency: int,
    threads: int | None,
    memory: int | None,
) -> tuple[list[Record], dict[str, Any]]:
    from capax import LLM
    from capax.endpoints.local import LocalEndpoint

    ctx_size = (
        None if settings.ask == "question" else settings.max_new_tokens + CONTEXT_BEYOND_ANSWER
    )
    n_at_once = min(max(concurrency, settings.samples), MAX_AT_ONCE)
    llm = LLM(
        model, threads=threads, memory=memory, ctx_size=ctx_size,
        n_sequences=n_at_once, parallel=n_at_once,
    )  # fmt: skip

    def count(text: str) -> int:
        return len(llm.tokenizer.encode(text))

    async with LocalEndpoint(llm) as endpoint:
        records = await answer(endpoint, count_tokens=count)
    return records, engine_facts(llm, memory, ctx_size)


async def _ask_server(
    base_url: str, api_key: str | None, model: str, answer: Evaluate, concurrency: int
) -> tuple[list[Record], dict[str, Any]]:
    from capax.endpoints.http import HTTPEndpoint, HTTPSettings
    from capax.measuring.records import Model, versions

    limits = HTTPSettings(max_concurrency=concurrency)
    async with HTTPEndpoint(base_url, model, api_key=api_key, settings=limits) as endpoint:
        records = await answer(endpoint)
    return records, {
        "model": Model(name=model), "machine": host_facts(), "versions": versions(),
    }  # fmt: skip
