"""Work in threads that nobody waits for, so that no tick and no request does.

Rules:
1. One thread at a time of each key, and `at_once` of all.
2. A thread cannot be ended. One that takes over `limit_s`, as on a file system that does not answer, is late:
   its place and its key are free again, and whoever waits for it may see that it is late.
3. At most `MAX_LATE` late ones are left behind. Until one of them ends nothing is begun: the next would hang,
   too.
4. Where the system has no thread nothing has begun, and nothing says that it has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

MAX_LATE = 16

Work: TypeAlias = Callable[[], None]


class Job:
    """Work that was begun."""

    __slots__ = ("_clock", "_has_ended", "_late_at_s", "key")

    def __init__(self, key: str, limit_s: float, clock: Callable[[], float]) -> None:
        self.key = key
        self._clock = clock
        self._late_at_s = clock() + limit_s
        self._has_ended = False

    @property
    def is_late(self) -> bool:
        """True: it has not ended within its limit."""
        return not self._has_ended and self._clock() >= self._late_at_s

    def run(self, work: Work) -> None:
        """Do it."""
        try:
            work()
        finally:
            self._has_ended = True

    @property
    def has_ended(self) -> bool:
        """True: it has returned, or raised."""
        return self._has_ended


class Background:
    """Begins work. Safe in several threads."""

    def __init__(
        self,
        name: str,
        *,
        limit_s: float,
        at_once: int = 1,
        start: Callable[[Work], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """start: runs the work; None: in a thread. It raises RuntimeError where there is none."""
        self._name = name
        self._limit_s = limit_s
        self._at_once = at_once
        self._start = start or self._in_thread
        self._clock = clock
        self._jobs: list[Job] = []  # that have not ended
        self._lock = threading.Lock()

    def begin(self, key: str, work: Work) -> Job | None:
        """Run `work()`; None: nothing has begun, because it runs already, no place is free or there is no
        thread. Try again later. Returns at once."""
        with self._lock:
            self._jobs = [one for one in self._jobs if not one.has_ended]
            running = [one for one in self._jobs if not one.is_late]
            has_place = len(running) < self._at_once and len(self._jobs) - len(running) < MAX_LATE
            if not has_place or any(one.key == key for one in running):
                return None
            job = Job(key, self._limit_s, self._clock)
            self._jobs.append(job)
        try:
            self._start(partial(job.run, work))
        except RuntimeError:  # "can't start new thread"
            with self._lock:
                self._jobs = [one for one in self._jobs if one is not job]
            return None
        return job

    def _in_thread(self, work: Work) -> None:
        threading.Thread(target=work, name=self._name, daemon=True).start()
