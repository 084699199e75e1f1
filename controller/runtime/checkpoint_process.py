"""Large files of a checkpoint, parsed in a child process: one takes seconds, in which no lease of this
process is renewed and no rollback is begun.

Invariants: one at a time, for `LIMIT_S` at most, within `MEMORY_BYTES`, but that a file which is hashed, too,
has the time for it and keeps no other waiting; what says nothing of the file is Unreachable, to be tried
again, and no fault of the checkpoint.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

from controller.errors import BadCheckpoint, Unreachable
from controller.planning.checkpoint_files import CACHED_FROM_BYTES
from controller.runtime.child_process import ChildFailed, in_child
from serving.files.regular import TooLarge
from serving.files.weights import WeightsError

LIMIT_S = 300.0  # a tokenizer of 40 MB takes 2 s of a processor
HASH_BYTES_PER_S = 10e6  # at least, or the disk hangs
MEMORY_BYTES = 6 << 30  # of a file that is all brackets; a tokenizer of 40 MB takes half a gigabyte

T = TypeVar("T")

_running = threading.Lock()


def parsed_apart(work: Callable[..., T], path: Path, *, hashed_bytes: int = 0) -> T:
    """As `controller.planning.apart.Apart`: of little here, of more in a process. Raises Unreachable, too."""
    try:
        return work(limit=CACHED_FROM_BYTES)
    except TooLarge:
        pass  # what is larger is cached, too, so this is once for each file
    turn: AbstractContextManager[None] = nullcontext() if hashed_bytes else _turn(path)
    with turn:
        try:
            return in_child(
                partial(_within_memory, work, path),
                name="checkpoint",
                limit_s=LIMIT_S + hashed_bytes / HASH_BYTES_PER_S,
                passed_on=(BadCheckpoint, WeightsError, OSError),
            )
        except ChildFailed as exc:
            raise Unreachable(f"{path} was not read: {exc}; try again") from exc


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    if not _running.acquire(timeout=LIMIT_S):
        raise Unreachable(f"{path} waited for other checkpoints for over {LIMIT_S:g} s; try again later")
    try:
        yield
    finally:
        _running.release()


def _within_memory(work: Callable[[], T], path: Path) -> T:
    """In the child process."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        return work()
    except MemoryError as exc:
        raise BadCheckpoint(
            f"{path} takes over {MEMORY_BYTES:,} bytes of memory to parse; is it what its name says? cut it"
        ) from exc
