"""`capax bench`: prefill and decode speed, in llama-bench's words."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from capax.cli.console import console
from capax.cli.options import SizeType, chosen_kv, json_option, model_argument
from capax.cli.recording import engine_facts, keep, optional_record_option, record_folder

if TYPE_CHECKING:
    from capax import LLM

MAX_VALUES = 256


class NumbersType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A list of numbers and ranges, as llama-bench reads them: 0,4096 or 64-512*2 or 1-9+2."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers: list[int] = []
        for part in str(value).split(","):
            try:
                numbers.extend(_range(part.strip()))
            except ValueError:
                self.fail(f"{part!r:.40} is no number or range such as 64-512*2", param, ctx)
            if len(numbers) > MAX_VALUES:
                self.fail(f"{value!r:.40} has more than {MAX_VALUES} values", param, ctx)
        return tuple(numbers)


def _range(text: str) -> Iterator[int]:
    first, dash, rest = text.partition("-")
    if not dash:
        yield _count(first)
        return
    operator = "*" if "*" in rest else "+"
    last, _, step = rest.partition(operator)
    number, end, by = _count(first), _count(last), _count(step or "1")
    if by < (2 if operator == "*" else 1) or (operator == "*" and number == 0):
        raise ValueError(text)
    for _ in range(MAX_VALUES + 1):
        if number > end:
            return
        yield number
        number = number * by if operator == "*" else number + by


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(text)
    return int(text)


@dataclass(frozen=True)
class Result:
    """Tokens per second of each repetition of one test."""

    test: Literal["prefill", "decode"]
    n_tokens: int
    depth: int
    speeds: list[float]
    peak_rss: int

    @property
    def name(self) -> str:
        """The test as llama-bench calls it: pp512, tg128 @ d4096."""
        kind = "pp" if self.test == "prefill" else "tg"
        return f"{kind}{self.n_tokens}" + (f" @ d{self.depth}" if self.depth else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "test": self.test,
            "n_tokens": self.n_tokens,
            "depth": self.depth,
            "tokens_per_second": {
                "min": min(self.speeds),
                "median": statistics.median(self.speeds),
                "max": max(self.speeds),
            },
            "peak_rss_bytes": self.peak_rss,
        }


@click.command("bench")
@model_argument
@click.option(
    "-p", "--n-prompt", type=NumbersType(), default="512", show_default=True,
    help="Prompt lengths; 0: no prefill test.",
)  # fmt: skip
@click.option(
    "-n", "--n-gen", type=NumbersType(), default="128", show_default=True,
    help="Generation lengths; 0: no decode test.",
)  # fmt: skip
@click.option(
    "-d", "--n-depth", type=NumbersType(), default="0,4096", show_default=True,
    help="Tokens already in the cache.",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads.")
@click.option(
    "-r", "--repetitions", type=click.IntRange(1, 1000), default=5, show_default=True,
    help="Measurements of each test, after one warm-up.",
)  # fmt: skip
@click.option("--memory", type=SizeType(), metavar="SIZE", help="Hard limit on everything held.")
@click.option(
    "--kv", metavar="METHOD", help="KV cache: f32, f16, bf16, int8, or a method. Default: f16."
)
@optional_record_option
@json_option
def command(
    model: str,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    threads: int | None,
    repetitions: int,
    memory: int | None,
    kv: str | None,
    record: str | None,
    as_json: bool,
) -> None:
    """Measure how fast MODEL reads a prompt (pp) and generates (tg), at some depths of context.

    Lists and ranges are read as llama-bench does: -p 512 -n 128 -d 0,4096, -p 64-512*2.
    Tokenising and sampling are not part of the time, as in llama-bench.
    """
    from capax import LLM
    from capax.errors import ConfigError

    folder = record_folder(record)
    tests = [
        (kind, n, depth)
        for kind, lengths in (("prefill", n_prompt), ("decode", n_gen))
        for n in lengths
        for depth in n_depth
        if n > 0
    ]
    if not tests:
        raise ConfigError("there is nothing to measure: all of -p and -n are 0")
    needed = max(n + depth for _, n, depth in tests)
    llm = LLM(
        model,
        memory=memory,
        ctx_size=needed,
        threads=threads,
        kv=chosen_kv(kv, None, None) or "f16",
    )
    results = []
    if not as_json:
        for line in table_head(llm):
            click.echo(line)
    for kind, n, depth in tests:
        result = measure(llm, "prefill" if kind == "prefill" else "decode", n, depth, repetitions)
        results.append(result)
        if not as_json:
            click.echo(table_row(llm, result))
    if folder is not None:
        _keep(folder, llm, memory, needed, repetitions, results)
    if as_json:
        document = {
            "model": llm.plan.model,
            "machine": machine_json(llm),
            "results": [r.to_json() for r in results],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        console().note("tokenising and sampling are not part of these times")


def _keep(
    folder: Path, llm: LLM, memory: int | None, ctx_size: int, repetitions: int,
    results: Sequence[Result],
) -> None:  # fmt: skip
    from capax.measuring.figures import speed_figures
    from capax.measuring.records import Record, now

    keep(
        folder,
        Record(
            kind="bench",
            time=now(),
            settings={"repetitions": repetitions},
            figures=speed_figures({result.name: result.speeds for result in results}),
            **engine_facts(llm, memory, ctx_size),
        ),
    )


def measure(
    llm: LLM, test: Literal["prefill", "decode"], n_tokens: int, depth: int, repetitions: int
) -> Result:
    """Run one test once to warm up and then `repetitions` times."""
    from capax.planning.machine import process_memory, reset_peak_memory

    run = llm.bench_prefill if test == "prefill" else llm.bench_decode
    reset_peak_memory()
    run(min(n_tokens, 16) if test == "decode" else n_tokens, depth)
    speeds = []
    for i in range(repetitions):
        speeds.append(n_tokens / run(n_tokens, depth))
        console().detail(f"{test} {n_tokens} @ {depth}, {i + 1}: {speeds[-1]:.1f} t/s")
    return Result(test, n_tokens, depth, speeds, process_memory().peak)


def table_head(llm: LLM) -> list[str]:
    """Return the head of the table in llama-bench's columns."""
    return [
        f"| {'model':<28} | {'size':>10} | {'params':>10} | {'backend':<10} | {'threads':>7} | "
        f"{'test':>15} | {'t/s':>18} |",
        f"| {'-' * 28} | {'-' * 9}: | {'-' * 9}: | {'-' * 10} | {'-' * 6}: | {'-' * 14}: | "
        f"{'-' * 17}: |",
    ]


def table_row(llm: LLM, result: Result) -> str:
    """Return one row: mean and standard deviation of the repetitions."""
    from math import prod

    from capax.planning.sizes import format_size

    params = sum(prod(t.shape) for t in llm.file.tensors.values())
    shown = f"{params / 1e9:.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M"
    mean = statistics.mean(result.speeds)
    spread = statistics.stdev(result.speeds) if len(result.speeds) > 1 else 0.0
    return (
        f"| {llm.plan.model[:28]:<28} | {format_size(llm.file.nbytes):>10} | {shown:>10} | "
        f"{'CPU ' + llm.isa:<10} | {llm.plan.threads:>7} | {result.name:>15} | "
        f"{f'{mean:.2f} ± {spread:.2f}':>18} |"
    )


def machine_json(llm: LLM) -> dict[str, Any]:
    """Return what a number needs beside it: CPU, instruction set, threads, KV, version, time."""
    import time

    import capax
    from capax.planning.machine import read_machine

    machine = read_machine()
    return {
        "cpu": machine.cpu_model,
        "isa": llm.isa,
        "threads": llm.plan.threads,
        "physical_cores": machine.physical_cores,
        "memory_bytes": machine.memory_total,
        "kv": llm.plan.kv,
        "capax": capax.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
