"""The files of a SQLite database: that of its URL, and those that SQLite keeps beside it."""

from __future__ import annotations

from pathlib import Path

from controller.errors import BadInput
from controller.store.database_url import parsed_url


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None: it is another's, has no file, or cannot be parsed."""
    try:
        parsed = parsed_url(url)
    except BadInput:
        return None  # whoever opens the database says so
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database)).absolute()


def log_of(path: Path) -> Path:
    """The write-ahead log."""
    return path.with_name(f"{path.name}-wal")


def index_of(path: Path) -> Path:
    """The shared index of the write-ahead log."""
    return path.with_name(f"{path.name}-shm")


def all_files(path: Path) -> tuple[Path, ...]:
    """The file, and whatever SQLite may keep beside it."""
    return path, log_of(path), index_of(path), path.with_name(f"{path.name}-journal")
