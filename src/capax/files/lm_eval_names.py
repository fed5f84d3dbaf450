"""How lm-evaluation-harness spells models and times in paths."""

from __future__ import annotations

import re
import time


def sanitized(name: str) -> str:
    """Return a name that is one harmless part of a path, as the harness makes it."""
    safe = re.sub(r"[^A-Za-z0-9._=-]", "_", name)[:120]
    return safe if safe.strip(".") else "_" + safe.replace(".", "_")


def iso(seconds: float) -> str:
    """Return a moment as names of files have it, colons replaced."""
    return time.strftime("%Y-%m-%dT%H-%M-%S.000000", time.gmtime(seconds))
