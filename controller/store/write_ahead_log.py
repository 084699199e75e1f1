"""The write-ahead log beside a SQLite file: never that of another file.

SQLite plays whatever log stands beside a file into it. Where a copy was put in the place of a file that was
in use, that is the old file's, and its pages would overwrite the copy's. So whoever opens the file notes both
inodes beside them (`NAME.id`), and sets a known log aside that stands beside another file.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from controller import telemetry
from controller.auth import write_private


def set_aside_foreign_log(path: Path) -> None:
    """Rename the log beside `path` if it was noted beside another file; it is kept. MUST come before the file
    is opened."""
    noted = _noted(path)
    log = path.with_name(f"{path.name}-wal")
    if noted is None or _inode(path) in (None, noted[0]) or _inode(log) != noted[1]:
        return
    kept = log.with_name(f"{log.name}.of-another-file-{int(time.time())}")
    with suppress(OSError):
        log.rename(kept)
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
        telemetry.warning("the log of another database was set aside", file=str(kept), database=str(path))


def note_log(path: Path) -> None:
    """Note the file's and its log's inodes. MUST come while the file is open, so that the log exists."""
    log = _inode(path.with_name(f"{path.name}-wal"))
    found = _inode(path)
    if found is None or log is None or _noted(path) == (found, log):
        return
    with suppress(OSError):  # of a file that this user may only read
        write_private(_note(path), json.dumps({"file": found, "log": log}))


def _noted(path: Path) -> tuple[str, str] | None:
    """Inodes of the file and its log when it was opened last; None: not known."""
    try:
        data = json.loads(_note(path).read_text())
        return str(data["file"]), str(data["log"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.id")


def _inode(path: Path) -> str | None:
    """Device and inode; None: there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return f"{found.st_dev}:{found.st_ino}"
