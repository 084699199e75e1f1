"""Which file stands under a name: its device and inode, and when it was made, for an inode is given again."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_AT_FDCWD, _STATX_BTIME, _SIZE = -100, 0x800, 256
_MASK_AT, _SECONDS_AT, _NANOSECONDS_AT = 0, 80, 88  # of `struct statx`, see statx(2)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file. born: when it was made, in nanoseconds; None: the file system does not tell."""

    inode: str  # device:inode
    born: int | None = None

    def is_same(self, other: FileIdentity) -> bool:
        """Whether both are one file, as far as both tell."""
        is_born_same = None in (self.born, other.born) or self.born == other.born
        return self.inode == other.inode and is_born_same


def identity(path: Path) -> FileIdentity | None:
    """The file under this name, behind any link; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return FileIdentity(f"{found.st_dev}:{found.st_ino}", _born(path))


def _born(path: Path) -> int | None:
    """Python 3.11 has no call for it."""
    statx = getattr(ctypes.CDLL(None), "statx", None) if sys.platform == "linux" else None
    if statx is None:
        return None
    answer = ctypes.create_string_buffer(_SIZE)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, answer) != 0:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(answer.raw[at : at + size], sys.byteorder)

    if not number(_MASK_AT, 4) & _STATX_BTIME:
        return None
    return number(_SECONDS_AT, 8) * 1_000_000_000 + number(_NANOSECONDS_AT, 4)
