"""The state of a git working tree, for those who must say which code made a result."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

TIMEOUT_S = 10.0
# A working tree may be anybody's: nothing that its configuration names is run.
SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def git_state(folder: Path, tracked: str | None = None) -> dict[str, Any] | None:
    """Return {"commit", "is_dirty"} of the working tree that holds a folder, None without one.

    `tracked`: a file of the folder that must belong to it, or the tree is somebody else's. Changes
    of files that git does not track do not count.
    """
    if tracked is not None and _git(folder, "ls-files", "--error-unmatch", tracked) is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "is_dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None if it fails, is missing or takes too long."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *SAFE, "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
