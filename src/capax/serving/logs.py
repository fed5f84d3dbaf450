"""The server's log: one line per event on stderr, as text or as JSON.

Never a prompt, unless `--log-prompts` asks for it; never a key. Whatever came from a client is
escaped, so that no request can forge a line or colour a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

LOGGER = logging.getLogger("capax.serving")
FIELDS = "capax_fields"


def start_logging(form: Literal["text", "json"], *, is_quiet: bool = False) -> None:
    """Send this package's and uvicorn's log lines to stderr in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name, level in (
        ("capax", logging.WARNING if is_quiet else logging.INFO),
        ("uvicorn.error", logging.CRITICAL),  # what it complains of, our own lines have
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_failure(error: BaseException, **fields: Any) -> None:
    """Log an exception nobody expected, with where it came from."""
    LOGGER.error("internal error: %s", type(error).__name__, exc_info=error, extra={FIELDS: fields})


def log_event(event: str, **fields: Any) -> None:
    """Log one event with its fields."""
    LOGGER.info(event, extra={FIELDS: fields})


def log_prompt(request_id: str, text: str) -> None:
    """Log a prompt; only where the operator asked for it."""
    LOGGER.info("prompt", extra={FIELDS: {"request_id": request_id, "text": text}})


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        document = _common(record) | getattr(record, FIELDS, {})
        return json.dumps(document, default=str)  # ASCII: control characters and more are escaped


class TextFormatter(logging.Formatter):
    """Time, level, event, and the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        common = _common(record)
        parts = [str(common.pop("time")), str(common.pop("level")), _plain(common.pop("event"))]
        fields = common | getattr(record, FIELDS, {})
        return " ".join(parts + [f"{name}={_plain(value)}" for name, value in fields.items()])


def _common(record: logging.LogRecord) -> dict[str, Any]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    document: dict[str, Any] = {
        "time": f"{stamp}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "event": record.getMessage(),
    }
    if record.exc_info and record.exc_info[1] is not None:
        document["traceback"] = logging.Formatter().formatException(record.exc_info)
    return document


def _plain(value: object) -> str:
    """Return a value on one line: quoted and escaped if it holds anything but plain text."""
    text = str(value)
    if text.isprintable() and text.isascii():
        return text if " " not in text and text else json.dumps(text)
    return json.dumps(text)
