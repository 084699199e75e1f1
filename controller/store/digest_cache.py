"""Cache file of tensor digests, so that a checkpoint of 140 GB is hashed once."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_FILES = 10_000  # the newest are kept

_writing = threading.Lock()  # one thread of this process writes at a time; other processes replace the file


@contextmanager
def cached_digests(path: Path) -> Iterator[dict[str, str]]:
    """The cached digests, to be added to; those added are written back. Safe to use from several threads."""
    digests = read_digests(path)
    before = set(digests)
    yield digests
    added = {key: value for key, value in digests.items() if key not in before}
    if added:
        with _writing:
            write_digests(path, {**read_digests(path), **added})


def read_digests(path: Path) -> dict[str, str]:
    """The cached digests; empty when the file is missing or malformed: then files are hashed again."""
    try:
        cached = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in cached.items()} if isinstance(cached, dict) else {}


def write_digests(path: Path, digests: dict[str, str]) -> None:
    """Replace the cache file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    newest = dict(list(digests.items())[-MAX_FILES:])
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(newest))
    partial.replace(path)
