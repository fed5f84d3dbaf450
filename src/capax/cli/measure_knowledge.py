"""`capax measure knowledge`: the bits of facts that a trained model holds."""

from __future__ import annotations

import json

import click

from capax.cli.console import console
from capax.cli.options import json_option, machine_options, model_argument
from capax.cli.recording import data_of, engine_facts, keep, record_folder, record_option


@click.command("knowledge")
@model_argument
@click.option(
    "--people", type=click.IntRange(1), required=True, metavar="N",
    help="How many people it was trained on.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Their seed.")
@click.option("--tagged", is_flag=True, help="Their documents stood behind a tag.")
@machine_options
@record_option
@json_option
def command(
    model: str,
    people: int,
    seed: int,
    tagged: bool,
    threads: int | None,
    memory: int | None,
    record: str | None,
    as_json: bool,
) -> None:
    """Measure how many bits of knowledge MODEL holds, and for how many parameters and bytes.

    MODEL was trained by 'capax train knowledge' on synthetic people, whose information content is
    known; the figure is a lower bound from its losses on names and values (arXiv 2404.05405).
    """
    from capax import LLM
    from capax.measuring.figures import knowledge_figures
    from capax.measuring.knowledge.biographies import Biographies
    from capax.measuring.knowledge.bits import EMPIRICAL_LIMIT
    from capax.measuring.knowledge.measure import measure
    from capax.measuring.records import Record, now

    folder = record_folder(record)
    shows = console().shows_progress()

    def progress(done: int, total: int) -> None:
        if shows and (done % 50 == 0 or done == total):
            end = "\n" if done == total else ""
            click.echo(f"\r{done:,} of {total:,} people{end}", nl=False, err=True)

    with LLM(model, threads=threads, memory=memory) as llm:
        bits = measure(llm, Biographies(people, seed), tagged=tagged, progress=progress)
        facts = engine_facts(llm, memory, None)
    if folder is not None:
        made = f"biographies {people} {seed}"  # they follow from these two
        keep(
            folder,
            Record(
                kind="knowledge",
                time=now(),
                data=data_of("biographies", made.encode(), people),
                settings={"people": people, "tagged": tagged},
                seed=seed,
                figures=knowledge_figures(bits),
                **facts,
            ),
        )
    if bits.per_parameter > EMPIRICAL_LIMIT:
        console().note(
            f"note: {bits.per_parameter:.2f} bits per parameter are more than anybody has seen "
            f"({EMPIRICAL_LIMIT}); were these the people and this the model?"
        )
    if as_json:
        click.echo(json.dumps(bits.to_json(), indent=2))
        return
    click.echo(f"knows            {bits.total:,.0f} bits: {bits.name_bits:,.0f} of names, "
               f"{bits.value_bits:,.0f} of values")  # fmt: skip
    click.echo(f"of               {bits.total / bits.share_known:,.0f} ({bits.share_known:.1%})")
    click.echo(f"per parameter    {bits.per_parameter:.3f} bits ({bits.n_parameters:,} parameters)")
    click.echo(f"per memory bit   {bits.per_memory_bit:.4f} ({bits.nbytes:,} bytes of weights)")
    click.echo(f"values recalled  {bits.recall:.1%} of those asked right behind the name")
