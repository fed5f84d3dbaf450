"""Whether two mathematical answers are the same, by math-verify; runs inside the sandbox only."""

from __future__ import annotations

import logging
from typing import Any

from math_verify import parse, verify

logging.disable(logging.CRITICAL)


def answer(request: Any) -> bool:
    """Compare (reference, answer), LaTeX or plain text. The host ends what is slow."""
    reference, given = request
    sides = [
        parse(f"${text}$", parsing_timeout=None, raise_on_error=False)
        for text in (str(reference), str(given))
    ]
    return bool(all(sides)) and bool(
        verify(sides[0], sides[1], timeout_seconds=None, raise_on_error=False)
    )
