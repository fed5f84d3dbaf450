"""`capax measure runtime profile`: time a grid of queries on a model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from capax.cli.bench import NumbersType
from capax.cli.compress import progress
from capax.cli.options import DurationType, chosen_kv, machine_options, model_argument
from capax.cli.recording import engine_facts, keep, record_folder, record_option


@click.command("profile")
@model_argument
@click.option(
    "-o", "--output", "output", required=True, type=click.Path(path_type=Path), metavar="OUT",
    help="Samples file to write.",
)  # fmt: skip
@click.option(
    "-p", "--n-prompt", type=NumbersType(), default="1,16,64,128,256,384,512,768,1024",
    show_default=True, help="Prompt lengths.",
)  # fmt: skip
@click.option(
    "-n", "--n-gen", type=NumbersType(), default="1,2,8,16,32,64", show_default=True,
    help="Output lengths; 1 must be among them.",
)  # fmt: skip
@click.option(
    "-r", "--repetitions", type=click.IntRange(1, 1000), default=7, show_default=True,
    help="Measurements of each cell in a round.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(2, 100), default=2, show_default=True,
    help="Rounds over the grid; 'fit' refuses rounds that disagree.",
)  # fmt: skip
@click.option(
    "--pause", type=DurationType(), default="0s", show_default=True, metavar="TIME",
    help="Time between rounds, e.g. 10m.",
)  # fmt: skip
@machine_options
@click.option("--kv", metavar="TYPE", help="KV cache: f32, f16, bf16 or int8. Default: f16.")
@record_option
def command(
    model: str,
    output: Path,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    repetitions: int,
    rounds: int,
    pause: float,
    threads: int | None,
    memory: int | None,
    kv: str | None,
    record: str | None,
) -> None:
    """Time queries of MODEL: a grid of prompt and output lengths, in a random order.

    Tokenising is not part of the time, sampling is. Let nothing else run meanwhile;
    'capax measure runtime fit' turns the samples into a profile.
    """
    from capax import LLM
    from capax.cli.bench import machine_json
    from capax.cli.json_files import write_json
    from capax.measuring.figures import timing_figures
    from capax.measuring.records import Record, now
    from capax.measuring.runtime_profile import profile, samples_document

    folder = record_folder(record)
    ctx_size = max(n_prompt, default=0) + max(n_gen, default=0) or None
    llm = LLM(
        model,
        memory=memory,
        ctx_size=ctx_size,
        threads=threads,
        kv=chosen_kv(kv, None, None) or "f16",
    )
    facts = engine_facts(llm, memory, ctx_size)
    about = {
        **machine_json(llm),
        "digest": facts["model"].digest,
        "load_average": os.getloadavg()[0],
        "warm_ups": 2,
    }
    samples = profile(
        llm, n_prompt, n_gen,
        n_repeats=repetitions, n_rounds=rounds, pause_s=pause,
        progress=progress("timed", "queries"),
    )  # fmt: skip
    write_json(output, samples_document(samples, llm.plan.model, about))
    keep(
        folder,
        Record(
            kind="runtime samples",
            time=now(),
            settings={"repeats": repetitions, "rounds": rounds},
            seed=0,
            figures=timing_figures(samples),
            **facts,
        ),
    )
    spent = sum(s.seconds for s in samples)
    click.echo(f"{output}: {len(samples):,} queries of {llm.plan.model} in {spent:.1f} s")
