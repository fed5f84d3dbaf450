"""English text that every Python brings along: its language reference and its docstrings.

Recipes train on it where no text is given, so that they can be repeated without a network.
"""

from __future__ import annotations

import ast
import sysconfig
import zlib
from pathlib import Path
from typing import NamedTuple


class Split(NamedTuple):
    """Documents to train on, and others to measure on."""

    train: list[str]
    held_out: list[str]


def python_texts(*, min_characters: int = 400, held_out_percent: int = 10) -> Split:
    """Return the language reference's topics and the standard library's longer docstrings.

    Every document is on one side by a hash of its text, so the same text never is on both.
    """
    split = Split([], [])
    for text in sorted({*_topics(), *_docstrings()}):
        if len(text) >= min_characters:
            is_held_out = zlib.crc32(text.encode()) % 100 < held_out_percent
            (split.held_out if is_held_out else split.train).append(text)
    return split


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [str(text) for text in topics.values()]


def _docstrings() -> list[str]:
    found: list[str] = []
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "-packages" in str(path) or "test" in path.parts or "tests" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return found
