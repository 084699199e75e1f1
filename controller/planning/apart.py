"""Where a checkpoint's large files are parsed: here, or where no thread of this process waits for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


class Apart(Protocol):
    """Does the work that parses a file, or a folder's files."""

    def __call__(self, work: Callable[..., T], path: Path, *, hashed_bytes: int = 0) -> T:
        """Result of `work()`, which survives pickling. As `work(limit=BYTES)` it raises TooLarge for more.

        path: what it reads, to name it. hashed_bytes: that it reads besides, so that it takes longer.
        """


def here(work: Callable[..., T], path: Path, *, hashed_bytes: int = 0) -> T:
    """In this thread."""
    return work()
