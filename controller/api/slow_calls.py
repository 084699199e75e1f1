"""Calls of the API that may take minutes, such as hashing a checkpoint, in threads of their own.

Invariant: the other routes, `rollback` first, never wait for a thread that such a call holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from controller.errors import Unreachable

THREADS = 8
MAX_CALLS = 40  # running and waiting; waiting ones hold no thread

T = TypeVar("T")


class SlowCalls:
    """A bounded pool. Used from one event loop."""

    def __init__(self, *, threads: int = THREADS, max_calls: int = MAX_CALLS) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._max_calls = max_calls
        self._calls = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Result of `work`, once a thread is free. Raises Unreachable when too many calls wait already."""
        if self._calls >= self._max_calls:
            raise Unreachable(
                f"{self._calls} requests hash checkpoints or plan already, at most {self._max_calls} may; "
                "try again later"
            )
        self._calls += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._calls -= 1
