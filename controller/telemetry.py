"""Structured logs: one JSON object per line, with a constant event text plus fields.

Invariant: never a prompt, a completion, a user id, a key or a token.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import TextIO

LOGGER = "canaryctl"

Field = str | int | float | bool | None


class JsonFormatter(logging.Formatter):
    """One line of JSON: time (UTC, ms), level, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Field] = {
            "at": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            line.update(fields)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(stream: TextIO = sys.stderr, *, level: int = logging.INFO) -> None:
    """Send canaryctl's events to `stream` as JSON lines. Called once, by the main of the process."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


def warn_people(stream: TextIO) -> None:
    """Print the warnings of a command as lines for people, with their fields. Called before each command."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_LineFormatter())
    logging.lastResort = handler
    handler.setLevel(logging.WARNING)


class _LineFormatter(logging.Formatter):
    """`warning: text (name value, ...)`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        shown = ", ".join(f"{name} {value}" for name, value in fields.items()) if fields else ""
        return f"{record.levelname.lower()}: {record.getMessage()}" + (f" ({shown})" if shown else "")


def event(text: str, /, **fields: Field) -> None:
    """INFO: a state changed or an action was performed."""
    logging.getLogger(LOGGER).info(text, extra={"fields": fields})


def warning(text: str, /, **fields: Field) -> None:
    """WARNING: something failed and will be retried."""
    logging.getLogger(LOGGER).warning(text, extra={"fields": fields})


def error(text: str, /, exc: BaseException | None = None, **fields: Field) -> None:
    """ERROR: a person must act."""
    logging.getLogger(LOGGER).error(text, extra={"fields": fields}, exc_info=exc)
