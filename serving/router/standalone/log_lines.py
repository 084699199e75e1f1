"""Log of a router that runs at a terminal or under systemd: one line an event, with time (UTC) and level.

    2026-11-29T15:12:25.104Z INFO table applied: chat canary 20 % -> 0 %

Fields stand behind the text as `name=value`. Invariant: never a prompt, an answer, a user id or a key.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = "canaryctl"
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """One line of text; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = " ".join(record.getMessage().splitlines())
        fields = [
            f" {name}={value}" for name, value in vars(record).items() if name not in _OWN and name[0] != "_"
        ]
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {text}{''.join(fields)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


@contextmanager
def log_lines() -> Iterator[None]:
    """Write canaryctl's events to stderr until the block ends."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger(LOGGER)
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
