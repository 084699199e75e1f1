"""Digests of large tokenizer files, each in a child process: to parse one takes seconds, in which no lease of
this process is renewed and no rollback is begun.

Invariants: one at a time, for `LIMIT_S` at most, within `MEMORY_BYTES`; what says nothing of the file is
Unreachable, to be tried again, and no fault of the checkpoint.
"""

from __future__ import annotations

import resource
import threading
from functools import partial
from pathlib import Path
from typing import Any

from controller.errors import BadCheckpoint, Unreachable
from controller.planning.checkpoint_files import CACHED_FROM_BYTES
from controller.planning.tokenizer_digest import tokenizer_digest
from controller.runtime.child_process import ChildFailed, in_child
from serving.files.regular import TooLarge

LIMIT_S = 300.0  # one of 40 MB takes 2 s of a processor
MEMORY_BYTES = 6 << 30  # of a file that is all brackets; one of 40 MB takes half a gigabyte

_running = threading.Lock()


def digest_apart(file: Path) -> list[Any]:
    """As `tokenizer_digest`: of a small file here, of any other in a process. Raises Unreachable, too."""
    try:
        return tokenizer_digest(file, limit=CACHED_FROM_BYTES)
    except TooLarge:
        pass  # what is larger is cached, too, so this is once for each file
    if not _running.acquire(timeout=LIMIT_S):
        raise Unreachable(f"{file} waited for other tokenizers for over {LIMIT_S:g} s; try again later")
    try:
        return in_child(
            partial(_digest, file), name="tokenizer", limit_s=LIMIT_S, passed_on=(BadCheckpoint, OSError)
        )
    except ChildFailed as exc:
        raise Unreachable(f"{file} was not read: {exc}; try again") from exc
    finally:
        _running.release()


def _digest(file: Path) -> list[Any]:
    """In the child process."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        return tokenizer_digest(file)
    except MemoryError as exc:
        raise BadCheckpoint(
            f"{file} takes over {MEMORY_BYTES:,} bytes of memory to parse; is it a tokenizer? cut it"
        ) from exc
