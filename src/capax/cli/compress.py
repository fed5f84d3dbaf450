"""`capax measure compress`: a file in as many bits as it has information for a model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.console import console
from capax.cli.options import json_option, machine_options
from capax.cli.recording import data_of, engine_facts, keep, record_folder, record_option

if TYPE_CHECKING:
    from capax.engine.llm import LLM
    from capax.measuring.compression import Progress


@click.command("compress")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-m", "--model", required=True, metavar="MODEL", help="Model that predicts the text.")
@click.option(
    "-o", "--output", "output", required=True, type=click.Path(path_type=Path), metavar="OUT",
    help="File to write.",
)  # fmt: skip
@click.option(
    "--window", type=click.IntRange(2), default=1024, show_default=True, metavar="N",
    help="Tokens that know of each other: more compress better and decompress more slowly.",
)  # fmt: skip
@machine_options
@click.option("--kv", metavar="TYPE", help="KV cache: f32, f16, bf16 or int8.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@record_option
@json_option
def command(
    file: Path,
    model: str,
    output: Path,
    window: int,
    threads: int | None,
    memory: int | None,
    kv: str | None,
    force: bool,
    record: str | None,
    as_json: bool,
) -> None:
    """Write FILE to OUT in as many bits as it has information for the model.

    'capax measure decompress' restores it bit for bit with the same model, on any machine and
    with any number of threads. It is a proof of the model's log-probabilities, and slow: every
    byte costs a part of a forward pass.
    """
    from capax.measuring.compression import compress
    from capax.measuring.figures import compression_figures
    from capax.measuring.records import Record, now

    folder = record_folder(record)
    check_output(output, file, force)
    data = read_bytes(file)
    llm = load(model, window, threads=threads, memory=memory, kv=kv)
    started = time.perf_counter()
    result = compress(data, llm, window=window, progress=progress("compressed"))
    seconds = time.perf_counter() - started
    write_whole(output, result.content)
    n_in, n_out = len(data), len(result.content)
    if folder is not None:
        keep(
            folder,
            Record(
                kind="compress",
                time=now(),
                data=data_of(file, data),
                settings={"window": window},
                figures=compression_figures(data, result, seconds),
                **engine_facts(llm, memory, window + 1),
            ),
        )
    if as_json:
        document = {
            "bytes_in": n_in,
            "bytes_out": n_out,
            "bits_per_byte": 8 * n_out / n_in if n_in else None,
            "tokens": result.n_tokens,
            "predicted_bits": result.predicted_bits,
            "payload_bits": 8 * result.payload_nbytes,
            "seconds": seconds,
        }
        click.echo(json.dumps(document, indent=2))
        return
    ratio = f", {8 * n_out / n_in:.3f} bits per byte" if n_in else ""
    click.echo(f"{output}: {n_in:,} -> {n_out:,} bytes{ratio}")
    if result.n_tokens:
        console().note(
            f"{result.n_tokens:,} tokens in {seconds:.1f} s; the model's log-probabilities "
            f"predict {result.predicted_bits / 8:,.1f} bytes, the coder wrote "
            f"{result.payload_nbytes:,}"
        )
    else:
        console().note(f"{model} has no tokens for some of these bytes: stored with LZMA instead")


def check_output(output: Path, source: Path, force: bool) -> None:
    """Raise ConfigError if `output` may not be written."""
    from capax.errors import ConfigError

    if output.exists():
        if not output.is_file() or (source.exists() and output.samefile(source)):
            raise ConfigError(f"OUT {output} is the file to read, or no regular file")
        if not force:
            raise ConfigError(f"{output} exists; give another name, or --force to replace it")


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises ConfigError if it is too large or cannot be read."""
    from capax.errors import ConfigError
    from capax.measuring.compression import MAX_NBYTES

    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_NBYTES + 1)
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    if len(data) > MAX_NBYTES:
        raise ConfigError(f"{path} has more than {MAX_NBYTES >> 20} MiB; give a part of it")
    return data


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all. Raises StoreError."""
    import os
    import tempfile

    from capax.errors import StoreError

    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            try:
                part.write(content)
                part.flush()
                os.fsync(part.fileno())
                os.chmod(part.name, 0o666 & ~_umask())
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror}") from None


def load(
    model: str, window: int, *, threads: int | None, memory: int | None, kv: str | None
) -> LLM:
    """Load a model with room for the windows that are decoded together."""
    from capax import LLM
    from capax.measuring.compression import LANES

    return LLM(model, memory=memory, ctx_size=window + 1, threads=threads, kv=kv, n_sequences=LANES)


def progress(verb: str, things: str = "tokens") -> Progress | None:
    """Return a callback that shows how far it is, on a terminal."""
    if not console().shows_progress():
        return None

    def show(done: int, total: int) -> None:
        click.echo(f"\r{verb} {done:,} of {total:,} {things}", err=True, nl=done == total)

    return show


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
