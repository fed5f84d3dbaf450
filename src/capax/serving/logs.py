"""The server's log: one line per event, never a prompt, control characters escaped."""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("capax.serving")


def log_failure(error: BaseException) -> None:
    """Log an exception nobody expected, with where it came from."""
    LOGGER.error("internal error: %s", type(error).__name__, exc_info=error)
