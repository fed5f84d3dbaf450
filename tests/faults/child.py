"""A Python process of its own, for what must not happen to the one the tests run in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_child(
    code: str, *arguments: object, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `code` with `arguments` as sys.argv[1:]; capax is imported from where it is here."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """This process's environment, with the capax under test importable."""
    import capax

    path = [str(Path(capax.__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CAPAX_")}
    return {**clean, "PYTHONPATH": os.pathsep.join(p for p in path if p)}
