"""Calls of the API in threads of their own, one pool for each kind: what takes long, as hashing a checkpoint
does, what comes in floods, as scores do, and what must never wait for either, as `rollback` must not.

Invariant: no route runs in the threads that synchronous routes would share, so none waits for a thread that
another kind of call holds; of those that only read, few run at once, because all threads share one processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from controller.errors import Unreachable

THREADS = 8
LIMIT_S = 3600.0  # a checkpoint of 140 GB on a slow disk takes half an hour
MAX_CALLS = 40  # running and waiting; waiting ones hold no thread
HASHING = "hash checkpoints or plan"
SLOW_DISK = "is the checkpoint's disk slow? "
HISTORY_THREADS, VIEW_THREADS, FEEDBACK_THREADS, AB_THREADS, HEALTH_THREADS = 1, 2, 4, 2, 2
RETURN_THREADS, WRITE_THREADS, LOOK_UP_THREADS, BODY_THREADS = 8, 4, 4, 1
MAX_READS = 200
MAX_FEEDBACK = 200  # a records log that does not answer holds each for 0.25 s
RETRY_AFTER_S = 1
READ_LIMIT_S = 60.0  # twice as long as the command line waits

T = TypeVar("T")


class SlowCalls:
    """A bounded pool. Used from one event loop."""

    def __init__(
        self,
        *,
        threads: int = THREADS,
        max_calls: int = MAX_CALLS,
        limit_s: float = LIMIT_S,
        what: str = HASHING,
        hint: str = SLOW_DISK,
    ) -> None:
        """what: the calls in words, after "requests". hint: why one may take over `limit_s`."""
        self._what, self._hint = what, hint
        self._limiter = anyio.CapacityLimiter(threads)
        self._max_calls = max_calls
        self._limit_s = limit_s
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def running(self) -> frozenset[asyncio.Task[Any]]:
        """Calls that run or wait, those among them that nobody waits for any more."""
        return frozenset(self._calls)

    async def run(self, work: Callable[[], T]) -> T:
        """Result of `work`, once a thread is free. Raises Unreachable when too many calls wait already, or
        when it takes over `limit_s`.

        A thread cannot be ended: a call that never returns keeps its place, so that threads stay bounded.
        """
        if len(self._calls) >= self._max_calls:
            raise Unreachable(
                f"{len(self._calls)} requests {self._what} already, at most {self._max_calls} may; "
                "try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        call = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=self._limiter))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.shield(call), self._limit_s)
        except TimeoutError:
            if call.done():
                raise
            raise Unreachable(
                f"the request took over {self._limit_s:g} s and goes on; {self._hint}try again later"
            ) from None

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # read: nobody may wait for it any more, and an unread one is reported


def _quick(threads: int, what: str, *, max_calls: int = MAX_READS) -> SlowCalls:
    """A pool for what a person waits for. what: as of `SlowCalls`."""
    return SlowCalls(threads=threads, max_calls=max_calls, limit_s=READ_LIMIT_S, what=what, hint="")


def history_calls() -> SlowCalls:
    """For histories, of which each takes a second and one client may ask for hundreds at once."""
    return _quick(HISTORY_THREADS, "read a history")


def view_calls() -> SlowCalls:
    """For what `status` and `list` show."""
    return _quick(VIEW_THREADS, "read a status")


def feedback_calls() -> SlowCalls:
    """For scores, which clients send by the thousand, and whose log may not answer."""
    return _quick(FEEDBACK_THREADS, "write scores", max_calls=MAX_FEEDBACK)


def ab_calls() -> SlowCalls:
    """For the results of A/B tests, which wait while a test is replayed."""
    return _quick(AB_THREADS, "read an A/B test")


def health_calls() -> SlowCalls:
    """For the health of the process, which looks at the database's file."""
    return _quick(HEALTH_THREADS, "ask for the health")


def return_calls() -> SlowCalls:
    """For `rollback` and `undo`, which share their threads with nothing else."""
    return _quick(RETURN_THREADS, "return to a version")


def write_calls() -> SlowCalls:
    """For the removal of services and the end of A/B tests."""
    return _quick(WRITE_THREADS, "write to the store")


def look_up_calls() -> SlowCalls:
    """For the owners of tokens, which a request without a known one asks for, too."""
    return _quick(LOOK_UP_THREADS, "wait for a token")


def body_calls() -> SlowCalls:
    """For bodies, which are parsed where they keep no other request waiting."""
    return _quick(BODY_THREADS, "send a body")
