"""Problems from the published files: JSON lines, of the data set or of the public generators.

The data set's lines hold `prompt`, `task_name`, `example_name` and `label` (an object, or JSON
text, with `init`, `intermediate`, `final`); lines made by the public generators hold `task_name`,
`example`, `question`, `init`, `intermediate`, `final`, and their templates are files of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capax.errors import ConfigError
from capax.measuring.procbench.instructions import INSTRUCTIONS
from capax.measuring.procbench.problem import MAX_STEPS, MIN_STEPS, TASKS, Kind, Problem, Task

_SEPARATOR = "\n[Question]\n"
_CODES = {task.code: task for task in TASKS.values()}


def load_public(path: Path, templates: Path | None = None) -> list[Problem]:
    """Read problems. `templates`: a directory of instruction texts named 01_sort.txt and so on.

    Without it, lines that have no prompt get our own instructions. Raises ConfigError naming the
    file and line that is not as described.
    """
    texts = dict(INSTRUCTIONS) if templates is None else _templates(templates)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            problems.append(_problem(json.loads(line), texts))
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise ConfigError(
                f"{path} line {number} is no problem of ProcBench ({type(e).__name__}: {e!s:.200})"
            ) from None
    return problems


def _templates(directory: Path) -> dict[str, str]:
    texts = {}
    for task in TASKS.values():
        found = sorted(directory.glob(f"{task.number:02d}_*.txt"))
        if len(found) != 1:
            raise ConfigError(
                f"{directory} has {len(found)} files {task.number:02d}_*.txt but must have one"
            )
        texts[task.name] = found[0].read_text(encoding="utf-8")
    return texts


def _problem(entry: Any, texts: Mapping[str, str]) -> Problem:
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    name = entry["task_name"]
    task = TASKS.get(name) or _CODES[name]
    label = entry.get("label", entry)
    if isinstance(label, str):
        label = json.loads(label)
    states = [*label["intermediate"], label["final"]]
    if not MIN_STEPS <= len(states) <= MAX_STEPS:
        raise ValueError(f"{len(states)} states; there are {MIN_STEPS} to {MAX_STEPS}")
    _check(states, task)
    if "prompt" in entry:
        instructions, separator, question = entry["prompt"].partition(_SEPARATOR)
        if not separator:
            raise ValueError("the prompt has no line [Question]")
    else:
        instructions, question = texts[task.name], entry["question"]
    example = str(entry.get("example_name", entry.get("example", "")))
    return Problem(task, example, instructions, question, label["init"], tuple(states))


def _check(states: list[Any], task: Task) -> None:
    kinds: list[Kind] = [task.kind] * (len(states) - 1) + [task.final_kind]
    for i, (state, kind) in enumerate(zip(states, kinds, strict=True), 1):
        if not is_of_kind(state, kind):
            raise TypeError(f"state {i} is not of the type of {task.name}")


def is_of_kind(state: Any, kind: Kind) -> bool:
    """Whether a true state has the type that its task promises."""
    if kind in ("strs", "ints"):
        item: Kind = "str" if kind == "strs" else "int"
        return isinstance(state, list) and all(is_of_kind(x, item) for x in state)
    if kind == "int":
        return isinstance(state, int) and not isinstance(state, bool)
    return isinstance(state, str)
