"""Formulas as answers: equal if they mean the same, decided by math-verify in a sandboxed process.

The answer is what the last \\boxed{} holds, else what follows "answer is", else the last formula
between dollars, else the last line. Numbers and equal spellings are decided here; the rest is asked
of a worker that is ended when it takes too long. Such an end is an outcome of its own ("timeout"):
it counts as not right, and reports show how many there were.
"""

from __future__ import annotations

import atexit
import functools
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

from capax.errors import ConfigError
from capax.scaling.sandbox import Limits, Worker, WorkerTimeout, check_isolation

MAX_CHARS = 20_000
MAX_ANSWER_CHARS = 400
LIMITS = Limits(wall_s=5.0, cpu_s=3600, memory_nbytes=2 << 30)
_SAID = re.compile(r"answer(?:\s+is)?\s*:?\s*([^\n]{1,400})", re.IGNORECASE)
_DOLLARS = re.compile(r"\$\$?([^$\n]{1,400})\$")
_NOISE = re.compile(r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\[!,;: ]|[\s$*]")
_NUMBER = re.compile(r"[-+]?(?:\d{1,100}(?:\.\d{1,100})?|\.\d{1,100})")


def extract_formula(text: str) -> str | None:
    """Return the answer of a text without spaces, dollars and sizes, or None."""
    text = text[-MAX_CHARS:]
    found = _boxed(text)
    if found is None:
        said = _SAID.findall(text) or _DOLLARS.findall(text) or text.strip().splitlines()
        if not said:
            return None
        found = _DOLLARS.findall(said[-1])[-1] if _DOLLARS.search(said[-1]) else said[-1]
    found = (
        _NOISE.sub("", found)
        .rstrip(".,;")
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
    )
    return found if 0 < len(found) <= MAX_ANSWER_CHARS else None


def _boxed(text: str) -> str | None:
    begin = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if begin < 0:
        return None
    begin = text.index("{", begin) + 1
    depth = 1
    for end in range(begin, min(len(text), begin + 4 * MAX_ANSWER_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return None


def outcome_of(answer: str, reference: str) -> str:
    """Return "passed", "failed" or "timeout". Raises SandboxError without isolation."""
    truth = extract_formula(reference)
    if answer == truth:
        return "passed"
    numbers = [_number(text) for text in (answer, truth or "")]
    if None not in numbers:
        return "passed" if numbers[0] == numbers[1] else "failed"
    try:
        return "passed" if _worker().ask((truth, answer)) is True else "failed"
    except WorkerTimeout:
        return "timeout"


def _number(text: str) -> Decimal | None:
    text = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text) else text
    try:
        return Decimal(text) if _NUMBER.fullmatch(text) else None
    except InvalidOperation:
        return None


@functools.cache
def _worker() -> Worker:
    worker = Worker(Path(__file__).parent / "sandbox" / "symbolic_worker.py", LIMITS)
    atexit.register(worker.close)
    return worker


def prepare() -> None:
    """Raise ConfigError without math-verify, SandboxError without isolation."""
    from importlib.util import find_spec

    if find_spec("math_verify") is None:
        raise ConfigError("the checker 'symbolic' needs: pip install 'capax[scale]'")
    check_isolation()
