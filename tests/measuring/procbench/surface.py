"""True answers written in ten ways, as models write them."""

import json
from collections.abc import Callable
from typing import Any

from capax.measuring.procbench import Problem


def _inline(state: Any) -> str:
    return state if isinstance(state, str) and state else json.dumps(state)


def _items(problem: Problem) -> list[str]:
    return [_inline(state) for state in problem.intermediate]


def _answer(problem: Problem) -> dict[str, Any]:
    return {"intermediate": problem.intermediate, "final": problem.final}


def compact_json(p: Problem) -> str:
    return json.dumps(_answer(p), separators=(",", ":"))


def fenced_json(p: Problem) -> str:
    return f"Here is the result:\n```json\n{json.dumps(_answer(p), indent=2)}\n```\nDone."


def python_dict(p: Problem) -> str:
    return repr(_answer(p))


def headings(p: Problem) -> str:
    return f"**Intermediate states:** {p.intermediate!r}\n\n**Final state:** {_inline(p.final)}"


def assignments(p: Problem) -> str:
    return f"```python\nintermediate = {p.intermediate!r}\nfinal = {p.final!r}\n```"


def numbered(p: Problem) -> str:
    lines = [f"{i}. {item}" for i, item in enumerate(_items(p), 1)]
    return "\n".join(["Intermediate states:", *lines, "", f"Final: {_inline(p.final)}"])


def bulleted(p: Problem) -> str:
    lines = [f"- `{item}`" if item != '""' else '- ""' for item in _items(p)]
    return "\n".join(["The intermediate states are:", *lines, f"Final state: `{_inline(p.final)}`"])


def steps(p: Problem) -> str:
    lines = [f"Step {k}: {item}" for k, item in enumerate(_items(p), 1)]
    return "\n".join([*lines, f"The final answer is: {_inline(p.final)}"])


def table(p: Problem) -> str:
    rows = [f"| {k} | {item} |" for k, item in enumerate(_items(p), 1)]
    return "\n".join(
        ["| step | state |", "| --- | --- |", *rows, f"| final | {_inline(p.final)} |"]
    )


def prose_around(p: Problem) -> str:
    return (
        "Let me carry out the steps one after the other.\n\n"
        f"{json.dumps(_answer(p))}\n\nThese are all of the states that were asked for."
    )


STYLES: dict[str, Callable[[Problem], str]] = {
    style.__name__: style
    for style in (
        compact_json, fenced_json, python_dict, headings, assignments,
        numbered, bulleted, steps, table, prose_around,
    )
}  # fmt: skip
