"""Calls of the API that take long, as hashing a checkpoint or reading a history do, or that come in floods,
as scores do, in threads of their own.

Invariant: the other routes, `rollback` first, never wait for a thread that such a call holds; of those that
only read, few run at once, because all threads share one processor.
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
HISTORY_THREADS, VIEW_THREADS, FEEDBACK_THREADS = 1, 2, 4
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


def history_calls() -> SlowCalls:
    """For histories, of which each takes a second and one client may ask for hundreds at once."""
    return SlowCalls(
        threads=HISTORY_THREADS, max_calls=MAX_READS, limit_s=READ_LIMIT_S, what="read a history", hint=""
    )


def view_calls() -> SlowCalls:
    """For what `status` and `list` show."""
    return SlowCalls(
        threads=VIEW_THREADS, max_calls=MAX_READS, limit_s=READ_LIMIT_S, what="read a status", hint=""
    )


def feedback_calls() -> SlowCalls:
    """For scores, which clients send by the thousand, and whose log may not answer."""
    return SlowCalls(
        threads=FEEDBACK_THREADS, max_calls=MAX_FEEDBACK, limit_s=READ_LIMIT_S, what="write scores", hint=""
    )
