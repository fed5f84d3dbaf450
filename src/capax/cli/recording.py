"""Keeping a record of what a command measured: the flag, and what a record says of an engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from capax.cli.console import console

if TYPE_CHECKING:
    from capax.engine.llm import LLM
    from capax.files.model_file import ModelFile
    from capax.measuring.records import Data, Record

F = TypeVar("F", bound=Callable[..., Any])


def record_option(function: F) -> F:
    """Add --record."""
    return click.option(
        "--record", metavar="DIR",
        help="Folder to keep the record in; 'none' keeps none. Default: capax's data directory.",
    )(function)  # fmt: skip


def optional_record_option(function: F) -> F:
    """Add --record for commands that keep none unless asked to."""
    return click.option(
        "--record", metavar="DIR", default="none", help="Folder to keep a record in. Default: none."
    )(function)


def record_folder(record: str | None) -> Path | None:
    """Return the folder for a record, ready to be written, or None if none is wanted."""
    from capax.measuring.records import NO_FOLDER, default_folder, prepare_folder

    if record == NO_FOLDER:
        return None
    return prepare_folder(Path(record) if record else default_folder())


def folder_to_read(records: Path | None) -> Path:
    """Return the folder that holds records: the one named, or the default one."""
    from capax.measuring.records import default_folder

    return default_folder() if records is None else records


def keep(folder: Path | None, record: Record) -> None:
    """Write a record and say so; nothing without a folder."""
    from capax.measuring.records import write_record

    if folder is not None:
        write_record(folder, record)
        console().note(f"record {record.id} kept in {folder}")


def engine_facts(llm: LLM, memory: int | None, ctx_size: int | None) -> dict[str, Any]:
    """Return the fields of a record that a loaded model decides."""
    from capax.measuring.records import versions

    return {
        "model": model_facts(llm.file, llm.plan.model),
        "method": {"weights": main_encoding(llm.file), "kv": llm.plan.kv},
        "budget": {"memory_bytes": memory, "ctx_size": ctx_size},
        "machine": machine_facts(llm),
        "versions": versions(),
    }


def model_facts(file: ModelFile, name: str) -> Any:
    """Return what a record says of a model: name, digest, size."""
    from math import prod

    from capax.files.digest import weights_digest
    from capax.measuring.records import Model

    tensors = file.tensors.values()
    return Model(
        name=Path(name).name if Path(name).exists() else name,  # no path of this machine
        digest=weights_digest(file).hex(),
        architecture=file.config.architecture,
        n_params=sum(prod(tensor.shape) for tensor in tensors),
        weights_nbytes=sum(tensor.nbytes for tensor in tensors),
    )


def main_encoding(file: ModelFile) -> str:
    """Return the encoding that most of a model's weights are in."""
    nbytes: dict[str, int] = {}
    for tensor in file.tensors.values():
        nbytes[str(tensor.encoding)] = nbytes.get(str(tensor.encoding), 0) + tensor.nbytes
    return max(nbytes, key=lambda name: nbytes[name])


def machine_facts(llm: LLM) -> dict[str, Any]:
    """Return what a time needs beside it: CPU, instruction set, threads, memory."""
    from capax.cli.bench import machine_json

    facts = machine_json(llm)
    return {k: facts[k] for k in ("cpu", "isa", "threads", "physical_cores", "memory_bytes")}


def host_facts() -> dict[str, Any]:
    """Return what a record says of the machine where no engine ran."""
    from capax.planning.machine import read_machine

    machine = read_machine()
    return {"cpu": machine.cpu_model, "physical_cores": machine.physical_cores,
            "memory_bytes": machine.memory_total}  # fmt: skip


def data_of(name: str | Path, content: bytes, n_items: int | None = None) -> Data:
    """Return what a record says of what was read: the file's name alone, and its digest."""
    from capax.measuring.records import Data

    return Data(
        name=Path(name).name or str(name),
        digest=hashlib.sha256(content).hexdigest(),
        n_items=n_items,
    )


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as records hold them: what is no plain value as JSON text."""
    import json

    return {
        name: value
        if value is None or isinstance(value, str | int | float | bool)
        else json.dumps(value, sort_keys=True)
        for name, value in settings.items()
    }
