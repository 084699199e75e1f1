"""Order in which the threads of one process write to a SQLite file, which has one writer at a time.

SQLite itself serves whoever asks again first, so on a slow disk the lease could wait behind every snapshot of
evidence. Invariants: of the waiting writers the most urgent goes next, of equal ones the first; none waits in
SQLite for another of this process.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import count

from controller.errors import Unreachable


class Turn(IntEnum):
    """Urgency of a write, the most urgent first."""

    LEASE = 0
    URGENT = 1  # a manual command, or a state in which a version leaves
    ROUTINE = 2


class Turns:
    """A lock that is handed on by `Turn`. A thread that writes MUST NOT begin another write."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets = count()
        self._waiting: list[tuple[Turn, int]] = []  # a heap
        self._is_taken = False

    @property
    def waiting(self) -> int:
        """Writers that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def take(self, turn: Turn, *, timeout_s: float) -> Iterator[None]:
        """The turn to write. Raises Unreachable after `timeout_s`."""
        with self._changed:
            ticket = (turn, next(self._tickets))
            heapq.heappush(self._waiting, ticket)
            is_mine = self._changed.wait_for(
                lambda: not self._is_taken and self._waiting[0] == ticket, timeout_s
            )
            self._waiting.remove(ticket)
            heapq.heapify(self._waiting)
            if not is_mine:
                self._changed.notify_all()  # it may have been another's turn meanwhile
                raise Unreachable(
                    f"the database's disk is too slow: a write waited {timeout_s:g} s for others; "
                    "check the disk, and move CANARYCTL_HOME to a faster one"
                )
            self._is_taken = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
