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

Loss: TypeAlias = Literal["gone", "replaced"]

NOTHING_KEPT = "nothing is decided or kept meanwhile"


class Sameness(Protocol):
    """Tells whether the database under the name is the one that was opened."""

    @property
    def lost(self) -> Loss | None:
        """How it was lost; None: it is still there."""


class SameFile:
    """A SQLite file, by its device and inode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = _identity(path)

    @property
    def lost(self) -> Loss | None:
        """How the file was lost. An emptied one counts as gone."""
        found = _identity(self._path)
        if found == self._opened:
            return None
        return "gone" if found is None else "replaced"


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


def require_own_log(path: Path) -> None:
    """Raises LostDatabase for a file with the write-ahead log of another one beside it.

    A copy by `canaryctl backup` keeps no log, and says so in its header, until it is opened: one beside it is
    what a lost file left, and SQLite would write it into the copy. (A plain copy cannot be told from its own
    file.)
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        if not log.stat().st_size:
            return
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return  # without a log, or whoever opens the file says why it cannot be read
    if header[:16] == b"SQLite format 3\0" and header[18:20] == b"\x01\x01":
        shm = log.with_name(f"{path.name}-shm")
        raise LostDatabase(
            f"{log} is of another database than {path}, a copy, which it would destroy; remove what the lost "
            f"one left: rm -f {log} {shm}"
        )


def gone_or_empty(place: str) -> LostDatabase:
    """The error for a database that must not be created."""
    return LostDatabase(
        f"the database {place} is gone or empty; restore it, then: canaryctl up; to begin anew: "
        "canaryctl down"
    )


def never_create(engine: sa.Engine, path: Path) -> None:
    """Let the engine open the SQLite file only where it exists: by itself, SQLite makes an empty one."""

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: list[Any], given: dict[str, Any]) -> None:
        args[0] = f"file:{quote(str(path))}?mode=rw"
        given["uri"] = True


def loss_line(place: str, lost: Loss) -> str:
    """What became of the database, as one clause."""
    if lost == "gone":
        return f"the database {place} is gone (moved, deleted or emptied) while it is in use"
    return f"the database {place} is another one than the controller opened (replaced or created anew)"


def _remedy(lost: Loss) -> str:
    if lost == "gone":
        return "put the same file back, or a copy and type: canaryctl up"
    return "check what it holds, then start the controller on it: canaryctl up"


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None: there is no such file, or it is empty."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None
