"""Turns of work that nobody waits for: a tenth of the loop while it has other work, all of it else.

A piece of it may take 15 ms. In the turns of what engines answer, where each turn of the loop takes one,
whoever has a large answer would wait for as many of them as that has reads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from serving.router.turns import Turns

SHARE_RATIO = 0.1  # of the loop's time, while it has other work
IDLE_S = 0.0001  # a turn of the loop that is shorter had no other work


class SpareTurns(Turns):
    """Turns each of which is followed by nine times as much of other work, or by a turn without any."""

    def __init__(self) -> None:
        super().__init__()
        self._seen_s = 0.0  # when it was looked at last
        self._owed_s = 0.0  # time of the loop that is others' before the next turn

    def join_for(self, work: Callable[[], object], client: str) -> None:
        """Call this, which is work of this client, once, in a later turn of the loop."""
        self.join(work, client=client)

    def _take(self) -> None:
        began_s = time.perf_counter()
        others_s = began_s - self._seen_s
        self._owed_s -= others_s
        if self._owed_s > 0.0 and others_s > IDLE_S:
            self._seen_s = began_s
            self._turn = asyncio.get_running_loop().call_soon(self._take)
            return
        try:
            super()._take()
        finally:
            self._seen_s = time.perf_counter()
            self._owed_s = (self._seen_s - began_s) * (1.0 / SHARE_RATIO - 1.0)
