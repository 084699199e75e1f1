"""A copy of a SQLite database while it is in use, by SQLite's online backup."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from controller.errors import BadInput, Unreachable
from controller.store.same_database import require_content
from controller.store.write_ahead_log import set_aside_foreign_log

PAGES = 1000  # copied at a time, so that a commit never waits for the whole
PAUSE_S = 0.01


def copy_database(source: Path, target: Path) -> None:
    """Write a consistent copy to `target`, which only its owner may read; all of it, or nothing.

    Raises LostDatabase without a source, BadInput for a target that exists or cannot be written, Unreachable
    for a source that cannot be read.
    """
    require_content(source)
    set_aside_foreign_log(source)
    if target.exists():
        raise BadInput(f"{target} exists; give another path, or remove it first")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as exc:
        raise BadInput(
            f"{target} cannot be written: {exc.strerror}; give a path in a folder that may be"
        ) from exc
    try:
        _copy(source, partial)
        partial.replace(target)
    except sqlite3.Error as exc:
        raise Unreachable(
            f"database {source} cannot be copied: {exc}; check the file and the free space"
        ) from exc
    finally:
        for name in (partial.name, f"{partial.name}-wal", f"{partial.name}-shm", f"{partial.name}-journal"):
            partial.with_name(name).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Raises sqlite3.Error."""
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as read,
        closing(sqlite3.connect(target)) as written,
    ):
        read.backup(written, pages=PAGES, sleep=PAUSE_S)
        written.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        found = written.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"the copy is damaged: {found}")
