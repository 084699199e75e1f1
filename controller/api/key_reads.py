"""Reads of key files that may hang, as on a dead network file system, in threads that nobody waits for long.

Invariant: a file that hangs holds one thread, and a caller for `WAIT_S` once: the few threads that read
views, and those of `rollback`, go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from controller.api.keys import FindProblem, KeyProblem
from serving.credentials import KeyReference

WAIT_S = 2.0
KNOWN_S = 60.0  # what was found before a read that hangs counts as long


@dataclass(slots=True)
class _Reads:
    """Reads of one file. newest: the one that runs, or ran last."""

    newest: Future[KeyProblem | None]
    began_at_s: float
    known: tuple[float, KeyProblem | None] | None = field(
        default=None
    )  # when and what was found; None: never


class KeyReads:
    """Why keys cannot be read, as `find` says. Safe in several threads."""

    def __init__(
        self, find: FindProblem, *, wait_s: float = WAIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find = find
        self._wait_s = wait_s
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, _Reads] = {}

    def problem(self, reference: KeyReference) -> KeyProblem | None:
        """Why the key cannot be read; None: it can. A variable is looked at here, a file in a thread."""
        if reference.source == "env":
            return self._find(reference)
        try:
            reads = self._reading(reference)
        except RuntimeError as exc:  # the system has no more threads
            return KeyProblem(f"{reference} cannot be read now: {exc}; try again")
        left_s = reads.began_at_s + self._wait_s - self._clock()
        newest = reads.newest
        try:
            return newest.result(max(0.0, left_s))
        except TimeoutError:
            if newest.done():
                return newest.result()
        if reads.known is not None and self._clock() - reads.known[0] < KNOWN_S:
            return reads.known[1]
        return KeyProblem(
            f"{reference} was not read within {self._wait_s:g} s; mend its file system, or name another file"
        )

    def _reading(self, reference: KeyReference) -> _Reads:
        """The reads of this file, of which one runs or has just run."""
        with self._lock:
            reads = self._files.get(reference.name)
            if reads is None:
                reads = self._files[reference.name] = _Reads(self._begun(reference), self._clock())
            elif reads.newest.done():
                reads.newest, reads.began_at_s = self._begun(reference), self._clock()
            return reads

    def _begun(self, reference: KeyReference) -> Future[KeyProblem | None]:
        result: Future[KeyProblem | None] = Future()
        result.set_running_or_notify_cancel()  # nobody cancels it

        def run() -> None:
            try:
                found = self._find(reference)
            except BaseException as exc:  # noqa: BLE001 - raised where the result is awaited
                result.set_exception(exc)
                return
            with self._lock:
                self._files[reference.name].known = self._clock(), found
            result.set_result(found)

        threading.Thread(target=run, name="key-file", daemon=True).start()
        return result
