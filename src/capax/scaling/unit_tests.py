"""Programs as answers: unit tests in the format of HumanEval, run in the sandbox.

A problem has a `prompt` (the head of a function, perhaps with helpers before it), an `entry_point`
(its name) and a `test` that defines `check(candidate)`. A sample either goes on with the prompt,
or is an answer with the whole function in a code fence.
HumanEval: Chen et al., 2021, arXiv 2107.03374.
"""

from __future__ import annotations

import functools
import json
import re

import msgspec

from capax.errors import ConfigError
from capax.scaling.sandbox import Limits, Result, check_isolation, run_tests

MAX_CHARS = 100_000
STOPS = ("\nclass ", "\nif ", "\nprint(", "\n#", "\n```", "\nassert ", "\n<|", "\n@")
_FENCE = re.compile(
    r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)


class Problem(msgspec.Struct, frozen=True):
    """What a program is to do, and how that is tested."""

    prompt: str
    entry_point: str
    test: str


@functools.lru_cache(maxsize=1024)
def problem_of(reference: str) -> Problem:
    """Read a reference, JSON of a Problem. Raises ConfigError."""
    try:
        problem = msgspec.json.decode(reference, type=Problem)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ConfigError(
            f"a reference of unit tests is JSON with prompt, entry_point and test: {e}"
        ) from None
    if not problem.entry_point.isidentifier():
        raise ConfigError(f"the entry point {problem.entry_point!r:.60} is no name of a function")
    return problem


def reference_of(prompt: str, entry_point: str, test: str) -> str:
    """Return the reference of a problem."""
    return json.dumps({"prompt": prompt, "entry_point": entry_point, "test": test})


def extract_program(text: str) -> str | None:
    """Return the last fenced code that defines something, else the text as far as it is code."""
    text = text[:MAX_CHARS]
    fenced = [code for code in _FENCE.findall(text) if code.strip()]
    if fenced:
        defining = [code for code in fenced if "def " in code]
        return str((defining or fenced)[-1])
    ends = [at for stop in STOPS if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))] if text.strip() else None


def program_of(problem: Problem, answer: str) -> str:
    """Return the whole program: what the prompt has, and the answer after it."""
    return f"{problem.prompt}\n{answer}" if _is_whole(problem, answer) else problem.prompt + answer


def _is_whole(problem: Problem, answer: str) -> bool:
    return (
        re.search(rf"^def\s+{re.escape(problem.entry_point)}\b", answer, re.MULTILINE) is not None
    )


def judge(answer: str, reference: str, limits: Limits | None = None) -> Result:
    """Run the tests of a problem on an answer. Raises SandboxError without isolation."""
    problem = problem_of(reference)
    return run_tests(
        program_of(problem, answer),
        problem.test,
        problem.entry_point,
        preamble=problem.prompt,
        limits=limits,
    )


def outcome_of(answer: str, reference: str) -> str:
    """Return "passed" or how the tests ended otherwise."""
    return judge(answer, reference).kind


def prepare() -> None:
    """Raise SandboxError now rather than after hours of sampling."""
    check_isolation()
