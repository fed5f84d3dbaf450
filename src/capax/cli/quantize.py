"""`capax quantize`: write a GGUF model in a smaller encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.console import console
from capax.cli.options import json_option

if TYPE_CHECKING:
    from capax.weights.requantize import Change


def _known_type(_: click.Context, __: click.Parameter, target: str) -> str:
    from capax.weights.requantize import TARGETS

    if target.upper() not in TARGETS:
        raise click.BadParameter(
            f"capax does not write {target!r:.60}; it writes {', '.join(TARGETS)}"
        )
    return target


@click.command("quantize")
@click.argument("source", metavar="IN")
@click.argument("destination", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("target", metavar="TYPE", callback=_known_type)
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@json_option
def command(
    source: str, destination: Path, target: str, dry_run: bool, force: bool, as_json: bool
) -> None:
    """Write the GGUF model IN to OUT with its matrices in TYPE.

    TYPE is Q8_0, Q4_0, Q4_1, Q4_K or Q6_K. Vectors are kept as they are. The matrix that
    makes the logits gets Q6_K under the 4-bit types. Rows that 256 does not divide cannot be
    Q4_K or Q6_K and become Q4_1 or Q8_0; they are counted, and named with -v. OUT appears
    whole or not at all.
    """
    from capax.errors import ConfigError
    from capax.files.gguf import GGUFFile
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.weights.requantize import plan_changes, requantize

    if str(destination) == "-":
        raise ConfigError("a model is not written to standard output; give OUT the name of a file")
    path = open_model(resolve(source)).path
    if path.is_dir():
        raise ConfigError(f"{path} is a safetensors directory; 'capax quantize' reads GGUF files")
    if destination.exists():
        if not destination.is_file():
            raise ConfigError(f"OUT {destination} is not a regular file; give another name")
        if destination.samefile(path):
            raise ConfigError(f"OUT {destination} is the file to read; give another name")
        if not force and not dry_run:
            raise ConfigError(f"{destination} exists; give another name, or --force to replace it")
    changes = plan_changes(GGUFFile.open(path), target)
    _note_losses(changes)
    if not dry_run:
        changes = requantize(path, destination, target, on_tensor=_progress)
    if as_json:
        click.echo(json.dumps(changes_json(changes, destination, dry_run), indent=2))
        return
    for line in summary_lines(changes, destination, dry_run):
        click.echo(line)
    if not dry_run:
        console().note(f"next: capax perplexity {destination} --text FILE")


def _note_losses(changes: list[Change]) -> None:
    lossy = sum(
        not c.is_copy and not c.tensor.encoding.is_float and len(c.tensor.shape) == 2
        for c in changes
    )
    if lossy:
        console().note(
            f"{lossy} matrices are quantised already; quantising them again loses more than "
            "starting from F16 or BF16 would"
        )
    misfits: dict[tuple[str, str], list[str]] = {}
    for c in changes:
        if "divide" in c.reason:
            misfits.setdefault((str(c.encoding), c.reason), []).append(c.tensor.name)
    for (encoding, reason), names in misfits.items():
        what = names[0] if len(names) == 1 else f"{len(names)} matrices"
        console().note(f"{what}: {encoding} instead, {reason}")
        if len(names) > 1:
            for name in names:
                console().detail(f"  {name}")


def _progress(done: int, total: int, change: Change) -> None:
    tensor = change.tensor
    text = f"[{done + 1:>4}/{total}] {tensor.name}: {tensor.encoding} -> {change.encoding}"
    if console().is_verbose:
        console().note(text)
    elif console().shows_progress():
        click.echo(f"\r{text[:78]:<78}", err=True, nl=done + 1 == total)


def summary_lines(changes: list[Change], destination: Path, is_dry_run: bool) -> list[str]:
    """Return bytes before and after by encoding, and the total."""
    from capax.planning.sizes import format_size

    kinds: dict[tuple[str, str], list[Change]] = {}
    for c in changes:
        kinds.setdefault((str(c.tensor.encoding), str(c.encoding)), []).append(c)
    lines = [
        f"{before:>5} -> {after:<5} {len(group):>4} tensors  "
        f"{format_size(sum(c.tensor.nbytes for c in group)):>10} -> "
        f"{format_size(sum(c.nbytes for c in group))}"
        for (before, after), group in sorted(kinds.items())
    ]
    before, after = sum(c.tensor.nbytes for c in changes), sum(c.nbytes for c in changes)
    verb = "would be" if is_dry_run else "is"
    lines.append(
        f"{destination} {verb} {format_size(after)} of weights, was {format_size(before)} "
        f"({bits_per_weight(changes):.2f} bits per weight)"
    )
    return lines


def bits_per_weight(changes: list[Change]) -> float:
    """Return the average bits of a weight after the change."""
    from math import prod

    return 8 * sum(c.nbytes for c in changes) / sum(prod(c.tensor.shape) for c in changes)


def changes_json(changes: list[Change], destination: Path, is_dry_run: bool) -> dict[str, object]:
    """Return what --json prints."""
    return {
        "output": str(destination),
        "written": not is_dry_run,
        "bytes_before": sum(c.tensor.nbytes for c in changes),
        "bytes_after": sum(c.nbytes for c in changes),
        "bits_per_weight": bits_per_weight(changes),
        "tensors": [
            {
                "name": c.tensor.name,
                "shape": list(c.tensor.shape),
                "from": str(c.tensor.encoding),
                "to": str(c.encoding),
                "bytes": c.nbytes,
                "reason": c.reason,
            }
            for c in changes
        ],
    }
