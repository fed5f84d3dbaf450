"""Reads the states from an answer in free form, by rule and without a judge.

Tried in this order, the last mention winning within each:

1. keys: `"intermediate": [...]` and `"final": ...`, as in JSON, in a Python literal, as
   assignments or as headings; the value is a literal on the spot;
2. lines: numbered, bulleted or `Step k:` lines, or the rows of a table, are the intermediate
   states in the order written; the final state is what follows "final".

A state is read as its task's type: digits stay a string where states are strings. In an answer
that was cut off, an unfinished last state is dropped, and an unfinished final state is missing.
None: nothing could be read.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from capax.measuring.procbench.literals import Word, read
from capax.measuring.procbench.problem import Kind, Task
from capax.measuring.procbench.scoring import Prediction, as_integer

MAX_CHARS: Final = 1 << 18  # of an answer; what follows is not looked at
MAX_LISTS: Final = 8  # mentions of "intermediate" that are tried, from the last
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_LIST_KEY = re.compile(
    r"intermediate(?:[ _](?:states?|strings?|lists?|results?|steps?))?[\"'`*]{0,8}"
    r"[ \t]{0,8}[:=]?[ \t*]{0,8}\s{0,8}(?:```\w{0,16}\s{0,8})?(?=\[)",
    re.IGNORECASE,
)
_FINAL_KEY = re.compile(
    r"\bfinal(?:[ _](?:state|string|list|result|answer|sum|number|sentence|array|character))?"
    r"[\"'`*]{0,8}[ \t]{0,8}(?:[:=]|\bis\b[ \t]{0,8}:?)[ \t*]{0,8}",
    re.IGNORECASE,
)
_ENTRY = re.compile(
    r"^[ \t]{0,8}(?:[*_]{0,2}step[ \t]\d{1,3}[*_]{0,2}[ \t]?[:.)-][*_]{0,2}|\d{1,3}[.):]"
    r"|[-*+\u2022])[ \t](?P<state>[^\n]*)(?P<end>\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_ROW = re.compile(
    r"^[ \t]{0,8}\|[ \t]{0,8}(?P<label>\d{1,3}|final)[ \t]{0,8}\|(?P<state>[^|\n]*)\|"
    r"[ \t]{0,8}(?P<end>\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)


def parse(text: str, task: Task, is_cut: bool = False) -> Prediction | None:
    """Read an answer. `is_cut`: it stopped at the limit of tokens, not by itself."""
    text = _THOUGHT.sub("", text[:MAX_CHARS])
    rows = list(_ROW.finditer(text))
    if rows:
        return _from_rows(rows, task, is_cut)
    intermediate = _listed(text, task, is_cut)
    final = _final(text, task, is_cut)
    if intermediate is None:
        intermediate = _lines(text, task, is_cut)
    if intermediate is None and final is None:
        return None
    return Prediction(intermediate or [], final)


def parse_json(text: str, task: Task, is_cut: bool = False) -> Prediction | None:
    """Read an answer in json mode: the types are as written; one that was cut off as `parse`."""
    try:
        answer = json.loads(text[:MAX_CHARS])
    except (ValueError, RecursionError):
        return parse(text, task, is_cut) if is_cut else None
    if not isinstance(answer, dict) or not isinstance(answer.get("intermediate"), list):
        return None
    return Prediction(answer["intermediate"], answer.get("final"))


def _listed(text: str, task: Task, is_cut: bool) -> list[Any] | None:
    """Read the list after the last "intermediate" that has one."""
    for key in reversed(list(_LIST_KEY.finditer(text))[-MAX_LISTS:]):
        literal = read(text, key.end())
        if literal is not None and (literal.is_whole or is_cut):
            return [_typed(item, task.kind) for item in literal.value]
    return None


def _final(text: str, task: Task, is_cut: bool) -> Any:
    """Read what follows the last "final": a literal, or the rest of the line."""
    keys = list(_FINAL_KEY.finditer(text))
    if not keys:
        return None
    start = keys[-1].end()
    if text[start : start + 1] == "\n":  # a heading: the state is on the next line
        start = len(text) - len(text[start:].lstrip())
        fence = re.compile(r"```\w*\n").match(text, start)
        start = fence.end() if fence else start
    end = text.find("\n", start)
    line = text[start : len(text) if end < 0 else end]
    ended = end >= 0 or not is_cut
    is_string = task.final_kind == "str"
    if line[:1] in ('"', "'", "`") or (line[:1] == "[" and not is_string):
        literal = read(text, start)
        if literal is None or not literal.is_whole:
            return None
        if isinstance(literal.value, str):
            return _plain(literal.value, task.final_kind)
        return _typed(literal.value, task.final_kind)
    return _plain(line.rstrip(",} \t"), task.final_kind) if ended and line.strip() else None


def _from_rows(rows: list[re.Match[str]], task: Task, is_cut: bool) -> Prediction:
    done = [row for row in rows if row["end"] or not is_cut]
    finals = [row["state"] for row in done if row["label"].lower() == "final"]
    states = [row["state"] for row in done if row["label"].lower() != "final"]
    return Prediction(
        [_plain(state, task.kind) for state in states],
        _plain(finals[-1], task.final_kind) if finals else None,
    )


def _lines(text: str, task: Task, is_cut: bool) -> list[Any] | None:
    """Read numbered, bulleted and step lines that do not speak of the final state."""
    states = [
        _plain(entry["state"], task.kind)
        for entry in _ENTRY.finditer(text)
        if entry["state"].strip()
        and (entry["end"] or not is_cut)
        and not _FINAL_KEY.search(entry["state"])
    ]
    return states or None


def _plain(line: str, kind: Kind) -> Any:
    """Read a state that fills a line or a cell."""
    line = line.strip().strip("*").strip()
    for quote in "`\"'":
        if len(line) >= 2 and line[0] == line[-1] == quote:
            line = line[1:-1]
            break
    if kind == "str":
        return line
    if kind == "int":
        return _typed(Word(line), kind)
    literal = read(line if line.startswith("[") else f"[{line}]", 0)
    return line if literal is None else _typed(literal.value, kind)


def _typed(value: Any, kind: Kind) -> Any:
    """Give a literal the type of the task's states, where it has it."""
    if kind in ("str", "int"):
        if isinstance(value, Word):
            number = as_integer(value.text) if kind == "int" else None
            return value.text if number is None else number
        return _untyped(value)
    if not isinstance(value, list):
        return _untyped(value)
    return [_typed(item, "str" if kind == "strs" else "int") for item in value]


def _untyped(value: Any) -> Any:
    if isinstance(value, Word):
        return value.text
    return [_untyped(item) for item in value] if isinstance(value, list) else value
