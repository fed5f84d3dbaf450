"""`capax measure procbench`: how many steps of a given procedure a model follows."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.compress import progress
from capax.cli.options import json_option, machine_options, model_argument
from capax.cli.recording import (
    data_of,
    engine_facts,
    host_facts,
    keep,
    record_folder,
    record_option,
)
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.measuring.procbench.evaluate import Settings
    from capax.measuring.procbench.problem import Problem
    from capax.measuring.procbench.record import Record

CONTEXT_BEYOND_ANSWER = 3072  # tokens: our longest prompts have some 1,200


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
    "-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Answers as JSON lines; a run that was stopped goes on where it was.",
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
    out: Path,
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
    that of right final states. Greedy; problems are made new by seed, with exact truth.
    """
    from capax.measuring.figures import procbench_figures
    from capax.measuring.procbench.evaluate import Settings
    from capax.measuring.procbench.report import markdown, summarize
    from capax.measuring.records import Model, now, versions
    from capax.measuring.records import Record as Measurement

    folder = record_folder(record)
    chosen = _problems(tasks, steps, per_cell, seed, problems, templates)
    settings = Settings(mode, max_tokens, ask)
    if base_url is not None:
        facts: dict[str, Any] = {
            "model": Model(name=model),
            "machine": host_facts(),
            "versions": versions(),
        }
        records = asyncio.run(
            _ask_server(base_url, api_key, model, chosen, settings, out, concurrency)
        )
    else:
        records, facts = asyncio.run(
            _ask_engine(model, chosen, settings, out, concurrency, threads, memory)
        )
    report = summarize(records, max_tokens)
    asked = json.dumps([[p.task.name, p.digest] for p in chosen]).encode()
    if folder is not None:
        keep(
            folder,
            Measurement(
                kind="procbench",
                time=now(),
                data=data_of("procbench", asked, len(chosen)),
                settings={"mode": mode, "ask": ask, "max_tokens": max_tokens, "temperature": 0.0},
                seed=seed if problems is None else None,
                figures=procbench_figures(report),
                **facts,
            ),
        )
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else markdown(report))


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
    problems: list[Problem],
    settings: Settings,
    out: Path,
    concurrency: int,
    threads: int | None,
    memory: int | None,
) -> tuple[list[Record], dict[str, Any]]:
    from capax import LLM
    from capax.endpoints.local import LocalEndpoint
    from capax.measuring.procbench.evaluate import evaluate

    ctx_size = (
        None if settings.ask == "question" else settings.max_new_tokens + CONTEXT_BEYOND_ANSWER
    )
    llm = LLM(model, threads=threads, memory=memory, ctx_size=ctx_size)

    def count(text: str) -> int:
        return len(llm.tokenizer.encode(text))

    async with LocalEndpoint(llm) as endpoint:
        records = await evaluate(
            endpoint, problems, settings, out,
            concurrency=concurrency, count_tokens=count, on_record=progress("answered", "problems"),
        )  # fmt: skip
    return records, engine_facts(llm, memory, ctx_size)


async def _ask_server(
    base_url: str,
    api_key: str | None,
    model: str,
    problems: list[Problem],
    settings: Settings,
    out: Path,
    concurrency: int,
) -> list[Record]:
    from capax.endpoints.http import HTTPEndpoint, HTTPSettings
    from capax.measuring.procbench.evaluate import evaluate

    async with HTTPEndpoint(
        base_url, model, api_key=api_key,
        settings=HTTPSettings(max_concurrency=concurrency),
    ) as endpoint:  # fmt: skip
        return await evaluate(
            endpoint,
            problems,
            settings,
            out,
            concurrency=concurrency,
            on_record=progress("answered", "problems"),
        )
