"""The form an answer has in json mode: an object with the states, of the task's types."""

from __future__ import annotations

from typing import Any

from capax.measuring.procbench.problem import Kind, Task

_SCHEMAS: dict[Kind, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "strs": {"type": "array", "items": {"type": "string"}},
    "ints": {"type": "array", "items": {"type": "integer"}},
}
_WORDS: dict[Kind, str] = {
    "str": "string",
    "int": "number",
    "strs": "list of strings",
    "ints": "list of numbers",
}


def schema(task: Task) -> dict[str, Any]:
    """Return the JSON schema of an answer to a problem of this task."""
    return {
        "type": "object",
        "properties": {
            "intermediate": {"type": "array", "items": _SCHEMAS[task.kind]},
            "final": _SCHEMAS[task.final_kind],
        },
        "required": ["intermediate", "final"],
        "additionalProperties": False,
    }


def request(task: Task) -> str:
    """Say the form in words, to follow the question."""
    return (
        'Answer with one JSON object: {"intermediate": [the intermediate states in order, each a '
        f'{_WORDS[task.kind]}], "final": the final state, a {_WORDS[task.final_kind]}}}'
    )
