"""A copy of a SQLite database while it is in use, by SQLite's online backup."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from controller.errors import BadInput, Unreachable
from controller.store.foreign_database import require_own_file
from controller.store.read_only import may_only_read, mode_of
from controller.store.same_database import require_content
from controller.store.sqlite_files import all_files
from controller.store.write_ahead_log import keep_logs_apart

PAGES = 10_000  # copied at a time, so that the copying can be interrupted


def copy_database(source: Path, target: Path) -> None:
    """Write a consistent copy to `target`, which only its owner may read; all of it, or nothing.

    Raises LostDatabase without a source, BadInput for a target that exists or cannot be written, Unreachable
    for a source that cannot be read, or is a copy with another's log.
    """
    require_content(source)
    keep_logs_apart(source)
    require_own_file(source)
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
        _sync(target.parent)
    except sqlite3.Error as exc:
        raise Unreachable(
            f"database {source} cannot be copied: {exc}; check the file and the free space"
        ) from exc
    finally:
        for file in all_files(partial):
            file.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Raises sqlite3.Error."""
    mode = mode_of(source) if may_only_read(source) else "ro"
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode={mode}", uri=True)) as read,
        closing(sqlite3.connect(target)) as written,
    ):
        # Without a transaction the copying would start again with each commit of another connection, and in a
        # database in use never end. A reader of a write-ahead log keeps no writer waiting.
        read.execute("BEGIN")
        read.execute("SELECT count(*) FROM sqlite_master").fetchone()
        read.backup(written, pages=PAGES, sleep=0.0)
        found = written.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"the copy is damaged: {found}")
    _mark_as_copy(target)


def _sync(folder: Path) -> None:
    """Have the copy's name survive the host's power. Its content does: SQLite has written it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mark_as_copy(path: Path) -> None:
    """Let the header say that no log belongs to the file (`write_ahead_log.keep_logs_apart`), until it is
    opened as a database. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
