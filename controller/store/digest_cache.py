"""Cache file of tensor digests, so that a checkpoint of 140 GB is hashed once.

Invariant: it saves time and decides nothing: where it cannot be read or written, files are hashed again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller import telemetry
from controller.private_file import replace_file

MAX_FILES = 10_000  # the newest are kept

_failed: set[Path] = set()  # caches that could not be written, each told of once

_writing = threading.Lock()  # one thread of this process writes at a time; other processes replace the file


@contextmanager
def cached_digests(path: Path) -> Iterator[dict[str, str]]:
    """The cached digests, to be added to; those added are written back. Safe to use from several threads."""
    digests = read_digests(path)
    before = set(digests)
    try:
        yield digests
    finally:  # what was hashed stays true, whatever went wrong after it
        added = {key: value for key, value in digests.items() if key not in before}
        if added:
            with _writing:
                _write(path, {**read_digests(path), **added})


def read_digests(path: Path) -> dict[str, str]:
    """The cached digests; empty when the file is missing or malformed: then files are hashed again."""
    try:
        cached = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in cached.items()} if isinstance(cached, dict) else {}


def write_digests(path: Path, digests: dict[str, str]) -> None:
    """Replace the cache file atomically. Raises OSError."""
    newest = dict(list(digests.items())[-MAX_FILES:])
    replace_file(path, json.dumps(newest).encode())


def _write(path: Path, digests: dict[str, str]) -> None:
    try:
        write_digests(path, digests)
    except OSError as exc:
        if path not in _failed:
            why = exc.strerror or type(exc).__name__
            telemetry.warning("digests are not kept, so files are hashed again", file=str(path), why=why)
        _failed.add(path)
    else:
        _failed.discard(path)
