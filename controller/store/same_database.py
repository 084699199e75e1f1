"""Whether an open database is still the one under its name.

A file may be moved, deleted or replaced while it is open, and what is written then is lost at the next start;
a PostgreSQL database may be dropped and created anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import quote

import sqlalchemy as sa

from controller.errors import LostDatabase
from controller.store.sqlite_files import log_of

Loss: TypeAlias = Literal["gone", "replaced", "log"]

NOTHING_KEPT = "nothing is decided or kept meanwhile"


class Sameness(Protocol):
    """Tells whether the database under the name is the one that was opened."""

    @property
    def lost(self) -> Loss | None:
        """How it was lost; None: it is still there."""


class SameFile:
    """A SQLite file and its write-ahead log, where commits stand first, by device and inode."""

    def __init__(self, path: Path) -> None:
        """MUST come while the file is open, so that the log exists."""
        self._path = path  # of a link that is pointed elsewhere, too
        self._log = log_of(path.resolve())
        self._opened = _identity(path)
        self._opened_log = _inode(self._log)

    @property
    def lost(self) -> Loss | None:
        """How the file was lost. An emptied one counts as gone."""
        found = _identity(self._path)
        if found != self._opened:
            return "gone" if found is None else "replaced"
        is_same_log = self._opened_log is None or _inode(self._log) == self._opened_log
        return None if is_same_log else "log"


class SameServerDatabase:
    """A PostgreSQL database, by its OID, which each new connection reads: a drop ends all connections."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._opened: int | None = None
        self.lost: Loss | None = None

    def watch(self, engine: sa.Engine) -> None:
        """Compare the database of every new connection of the engine."""

        @sa.event.listens_for(engine, "connect")
        def compare(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
            (oid,) = cursor.fetchone()
            cursor.close()
            connection.rollback()
            if self._opened is None:
                self._opened = oid
            self.lost = None if oid == self._opened else "replaced"
            require_same(self, self._place)


def require_same(sameness: Sameness, place: str) -> None:
    """Raises LostDatabase where the database is gone or another one."""
    if (lost := sameness.lost) is not None:
        raise LostDatabase(f"{loss_line(place, lost)}; {NOTHING_KEPT}; {_remedy(lost)}")


def require_content(path: Path) -> None:
    """Raises LostDatabase for a file that is not there or has nothing in it."""
    if _identity(path) is None:
        raise gone_or_empty(str(path))


def gone_or_empty(place: str) -> LostDatabase:
    """The error for a database that must not be created."""
    return LostDatabase(
        f"the database {place} is gone or empty; restore it, then: canaryctl up; to begin anew: "
        "canaryctl down"
    )


def never_create(engine: sa.Engine, path: Path, mode: str) -> None:
    """Let the engine open the SQLite file only where it exists: by itself, SQLite makes an empty one.

    mode: of SQLite's URI, such as rw.
    """

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: list[Any], given: dict[str, Any]) -> None:
        args[0] = f"file:{quote(str(path))}?mode={mode}"
        given["uri"] = True


def loss_line(place: str, lost: Loss) -> str:
    """What became of the database, as one clause."""
    if lost == "gone":
        return f"the database {place} is gone (moved, deleted or emptied) while it is in use"
    if lost == "log":
        return f"the log of the database {place}, {place}-wal, was removed or replaced while it is in use"
    return f"the database {place} is another one than the controller opened (replaced or created anew)"


def _remedy(lost: Loss) -> str:
    if lost == "gone":
        anew = "to begin anew, which ends what serves: canaryctl down"
        return f"put the same file back, or a copy and type: canaryctl up; {anew}"
    if lost == "log":
        return "have the controller write what it holds into the file, and start again: canaryctl up"
    return "check what it holds, then start the controller on it: canaryctl up"


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None: there is no such file, or it is empty."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and inode; None: there is no such file. A log that was written back whole is empty."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
