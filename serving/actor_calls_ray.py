"""Calls of Ray that may block, under one deadline for the whole operation.

Finding an actor by name, creating and ending one ask Ray's head. While that hangs they block for minutes
each, whatever time-out the call after them has. They run in daemon threads here (look-ups in one for each
name at most), so that an operation ends in time and a hanging head leaves no pile of threads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError

T = TypeVar("T")


class Deadline:
    """The end of one operation of several calls."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left. Raises GetTimeoutError when there are none."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise self._missed()
        return left_s

    def _missed(self) -> GetTimeoutError:
        return GetTimeoutError(f"Ray did not answer within {self._timeout_s:g} s")

    def run(self, work: Callable[[], T]) -> T:
        """The result of this blocking call, which goes on in its thread after the deadline. Its errors."""
        return self.wait(in_thread(work))

    def wait(self, result: Future[T]) -> T:
        """This result, in time. Raises GetTimeoutError, or the call's error."""
        try:
            return result.result(self.left_s)
        except TimeoutError:
            if result.done():
                raise  # the call's own
            raise self._missed() from None


class Patience:
    """How long operations wait: long, but after one that missed its deadline briefly, until one is answered.

    A controller with 25 services would else wait a minute for each, and no rollback would run meanwhile.
    """

    def __init__(self, brief_s: float) -> None:
        self._brief_s = brief_s
        self._has_missed = False

    def run(self, long_s: float, work: Callable[[Deadline], T]) -> T:
        """The result of this operation, which keeps to the deadline that it is given. Its errors."""
        deadline = Deadline(min(long_s, self._brief_s) if self._has_missed else long_s)
        try:
            result = work(deadline)
        except GetTimeoutError:
            self._has_missed = True
            raise
        self._has_missed = False
        return result


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run this in a daemon thread: the process may end without it."""
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # nobody cancels it

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised where the result is awaited
            result.set_exception(exc)

    threading.Thread(target=run, name="ray-call", daemon=True).start()
    return result


class ActorHandles:
    """Handles of named actors, found once. Safe in several threads."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}
        self._pending: dict[str, Future[Any]] = {}

    def within(self, name: str, deadline: Deadline) -> Any:
        """The actor's handle. Raises ValueError when there is none, GetTimeoutError at the deadline."""
        found = self._found.get(name)
        return found if found is not None else deadline.wait(self._look_up(name))

    async def get(self, name: str) -> Any:
        """The same in an event loop; the caller sets the time-out. Raises ValueError."""
        found = self._found.get(name)
        if found is not None:
            return found
        return await asyncio.shield(asyncio.wrap_future(self._look_up(name)))

    def keep(self, name: str, handle: Any) -> None:
        """Use this handle from now on."""
        self._found[name] = handle

    def forget(self, name: str) -> None:
        """Find the actor anew at the next call: Ray restarts a dead one under the same name."""
        self._found.pop(name, None)

    def _look_up(self, name: str) -> Future[Any]:
        with self._lock:
            pending = self._pending.get(name)
            if pending is None:
                pending = self._pending[name] = in_thread(lambda: self._find(name))
            return pending

    def _find(self, name: str) -> Any:
        try:
            handle = ray.get_actor(name, namespace=self._namespace)
            self._found[name] = handle
            return handle
        finally:
            with self._lock:
                self._pending.pop(name, None)
