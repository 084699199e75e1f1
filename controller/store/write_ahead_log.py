"""The write-ahead log beside a SQLite file: never that of another file.

SQLite plays whatever log stands beside a file into it. Where a copy was put in the place of a file that was
in use, that is the old file's, and its pages would overwrite the copy's. So whoever opens the file notes
beside them which both are (`NAME.id`), and sets a known log aside that stands beside another file.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from controller import telemetry
from controller.errors import Unreachable
from controller.private_file import write_private
from controller.store.file_identity import FileIdentity, identity
from controller.store.sqlite_files import index_of, log_of


def keep_logs_apart(path: Path) -> None:
    """Let no log of another file be read into this one. MUST come before the file is opened.

    A log that was noted beside another file is set aside. Raises Unreachable for one beside a copy.
    """
    path = path.resolve()  # SQLite keeps the log beside the file itself, not beside a link to it
    _set_aside_foreign_log(path)
    _require_own_log(path)


def _set_aside_foreign_log(path: Path) -> None:
    noted, found = _noted(path), identity(path)
    log = log_of(path)
    left = identity(log)
    if noted is None or found is None or left is None:
        return
    if found.is_same(noted[0]) or not left.is_same(noted[1]):
        return
    kept = log.with_name(f"{log.name}.of-another-file-{int(time.time())}")
    with suppress(OSError):
        log.rename(kept)
        index_of(path).unlink(missing_ok=True)
        telemetry.warning("the log of another database was set aside", file=str(kept), database=str(path))


def _require_own_log(path: Path) -> None:
    """Raises Unreachable for a copy with a write-ahead log beside it.

    A copy by `canaryctl backup` keeps no log, and says so in its header, until it is opened: one beside it is
    what a lost file left, and SQLite would write it into the copy. (A plain copy cannot be told from its own
    file.)
    """
    log = log_of(path)
    try:
        if not log.stat().st_size:
            return
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return  # without a log, or whoever opens the file says why it cannot be read
    if header[:16] == b"SQLite format 3\0" and header[18:20] == b"\x01\x01":
        shm = index_of(path)
        raise Unreachable(
            f"{log} is of another database than {path}, a copy, which it would destroy; remove what the lost "
            f"one left: rm -f {log} {shm}"
        )


def note_log(path: Path) -> None:
    """Note which the file and its log are. MUST come while the file is open, so that the log exists."""
    path = path.resolve()
    log = identity(log_of(path))
    found = identity(path)
    if found is None or log is None or _noted(path) == (found, log):
        return
    text = json.dumps({"file": found.inode, "log": log.inode, "file_born": found.born, "log_born": log.born})
    with suppress(OSError):  # of a file that this user may only read
        write_private(_note(path), text)


def _noted(path: Path) -> tuple[FileIdentity, FileIdentity] | None:
    """The file and its log when it was opened last; None: not known. An older release noted no births."""
    try:
        data = json.loads(_note(path).read_text())
        file = FileIdentity(str(data["file"]), data.get("file_born"))
        return file, FileIdentity(str(data["log"]), data.get("log_born"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.id")
