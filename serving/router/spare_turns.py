"""Turns of work that nobody waits for: what is long has a tenth of the loop while that has other work.

A piece of it may take 15 ms. In the turns of what engines answer, where each turn of the loop takes one,
whoever has a large answer would wait for as many of them as that has reads. Short pieces are taken for a
turn's time in each turn of the loop, as all turns are: a tenth would not be enough for a loop that is full of
usual requests, of which a tenth to a fifth is the reading of their answers.

Times are of the loop's thread: on a busy machine a turn is long that has done little.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from serving.router.turns import TURN_S, Turns

SHARE_RATIO = 0.1  # of the loop's time, for long turns while it has other work
LONG_S = 2 * TURN_S  # of a turn
IDLE_S = 0.0001  # a turn of the loop that is shorter had no other work


class SpareTurns(Turns):
    """Turns of which a long one is followed by nine times as much of other work, or by a turn without any."""

    def __init__(self) -> None:
        super().__init__()
        self._seen_s = 0.0  # when it was looked at last
        self._owed_s = 0.0  # time of the loop that is others' before the next turn

    def join_for(self, work: Callable[[], object], client: str) -> None:
        """Call this, which is work of this client, once, in a later turn of the loop."""
        self.join(work, client=client)

    def _take(self) -> None:
        began_s = time.thread_time()
        others_s = began_s - self._seen_s
        self._owed_s -= others_s
        if self._owed_s > 0.0 and others_s > IDLE_S:
            self._seen_s = began_s
            self._turn = asyncio.get_running_loop().call_soon(self._take)
            return
        try:
            super()._take()
        finally:
            self._seen_s = time.thread_time()
            cost_s = self._seen_s - began_s
            self._owed_s = cost_s * (1.0 / SHARE_RATIO - 1.0) if cost_s > LONG_S else 0.0
