"""Tasks to sample: a JSONL file with one task per line.

    {"id": "sum-1", "prompt": "2 + 2 =", "reference": "4", "checker": "numeric"}

or `messages` of a chat instead of `prompt`. `checker` may be left out if one is named for the file.
Lines of HumanEval (task_id, prompt, entry_point, test) are tasks with the checker `unit_tests`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from capax.endpoints import Message
from capax.errors import ConfigError
from capax.scaling.checkers import Checker, checker_named
from capax.scaling.unit_tests import reference_of

MAX_LINE_NBYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """One question with its reference answer and what compares them."""

    id: str
    prompt: str | Sequence[Message]
    reference: str
    checker: Checker


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


class _Line(msgspec.Struct):
    id: str | int | None = None
    reference: str | int | float | None = None
    prompt: str | None = None
    messages: list[_Message] | None = None
    checker: str | None = None
    task_id: str | None = None
    entry_point: str | None = None
    test: str | None = None


def read_tasks(path: Path, checker: str | None = None, limit: int | None = None) -> list[Task]:
    """Read the tasks of a file; `checker` is for lines that name none.

    Raises ConfigError naming the line that is not as expected, for an id that comes twice, and for
    a file without tasks.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    tasks: list[Task] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or (limit is not None and len(tasks) >= limit):
            continue
        try:
            task = _task(line, checker)
        except (msgspec.MsgspecError, ConfigError, RecursionError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} line {number} is no task: {e}") from None
        if task.id in seen:
            raise ConfigError(f"{path} line {number}: the id {task.id!r:.60} comes twice")
        seen.add(task.id)
        tasks.append(task)
    if not tasks:
        raise ConfigError(f"{path} has no task; give a JSON object per line")
    return tasks


def _task(line: bytes, checker: str | None) -> Task:
    if len(line) > MAX_LINE_NBYTES:
        raise ConfigError(f"it has {len(line):,} bytes, more than {MAX_LINE_NBYTES:,}")
    fields = msgspec.json.decode(line, type=_Line)
    if (fields.prompt is None) == (fields.messages is None) or fields.messages == []:
        raise ConfigError("it needs either 'prompt' or 'messages'")
    if fields.entry_point is not None and fields.reference is None:
        fields = _with_unit_tests(fields)
    if fields.id is None or fields.reference is None:
        raise ConfigError("it needs 'id' and 'reference'")
    name = fields.checker or checker
    if name is None:
        raise ConfigError("it names no checker; name one in the line or for the whole file")
    prompt: str | list[dict[str, Any]]
    if fields.messages is None:
        prompt = fields.prompt or ""
    else:
        prompt = [msgspec.to_builtins(message) for message in fields.messages]
    if not prompt:
        raise ConfigError("its prompt is empty")
    task = Task(str(fields.id), prompt, str(fields.reference), checker_named(name))
    task.checker.check_reference(task.reference)
    return task


def _with_unit_tests(fields: _Line) -> _Line:
    if fields.prompt is None or not fields.entry_point or fields.test is None:
        raise ConfigError("unit tests need 'prompt', 'entry_point' and 'test'")
    reference = reference_of(fields.prompt, fields.entry_point, fields.test)
    return msgspec.structs.replace(
        fields,
        id=fields.id if fields.task_id is None else fields.task_id,
        reference=reference,
        checker=fields.checker or "unit_tests",
    )


def digest(tasks: Sequence[Task]) -> str:
    """Return what identifies the questions (not their references and checkers), SHA-256 in hex."""
    content = json.dumps([[task.id, task.prompt] for task in tasks], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
