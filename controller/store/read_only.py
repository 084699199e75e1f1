"""A SQLite file that this process may only read: of a disk that is mounted so, or full, or of another user.

SQLite as the store opens it would write beside it: the shared index of the log, and the log.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.pool import ConnectionPoolEntry

from controller.store.sqlite_files import log_of

READER_BYTES = 1 << 16  # that SQLite takes on the disk to read: the index of the log


def may_only_read(path: Path) -> bool:
    """Whether the file is there, and it or its folder cannot be written."""
    path = path.resolve()
    if not path.exists():
        return False
    return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)) or _is_full(path.parent)


def _is_full(folder: Path) -> bool:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < READER_BYTES


def mode_of(path: Path) -> str:
    """How SQLite opens it, as a URI has it. Without a log nobody writes it, and no index of one is needed."""
    try:
        has_log = log_of(path).stat().st_size > 0
    except OSError:
        has_log = False
    return "ro" if has_log else "ro&immutable=1"


def configure_reader(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    """For a connection of such a file: the journal stays as it is."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=10000")


def read_only_line(place: str) -> str:
    """For people who read what is stored there."""
    return f"the database {place} is read only here: its disk or folder takes no writes; as it stands"
