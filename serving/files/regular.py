"""The one way in which a file of a checkpoint is opened: a regular one, and no more of it than a limit.

Whoever can write a checkpoint's folder can put a pipe, a device or a huge file in any file's place, also
between two looks at it. So nothing is decided by a look before: what was opened is looked at, and what was
read is counted.

Invariant: no other module opens or reads a file of a checkpoint (`tests/unit/serving/files/test_regular.py`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

# Of a file of settings: it is parsed in one piece, in which no other thread of the process runs (16 million
# numbers take a second). The largest known, a tokenizer_config.json, has 1.2 MB.
MAX_SETTINGS_BYTES = 8 << 20


class NotReadable(OSError):
    """The file is not a regular one, or too large; one line with the remedy."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.strerror = text


class TooLarge(NotReadable):
    """The file has more bytes than were asked for."""


def open_regular(file: Path) -> BinaryIO:
    """The file, opened to read; of a device or a pipe nothing is waited for. Raises NotReadable, OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotReadable(f"{file} is not a regular file; remove it, or name a file")
    return os.fdopen(descriptor, "rb")


def read_regular(file: Path, *, limit: int) -> bytes:
    """All bytes of the file, at most `limit`. Raises TooLarge, NotReadable, OSError."""
    with open_regular(file) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"{file} has over {limit:,} bytes, which is too much to parse; cut it")
    return data


def begins_with(file: Path, start: bytes) -> bool:
    """Whether the file begins so. Raises NotReadable, OSError."""
    with open_regular(file) as stream:
        return stream.read(len(start)) == start
