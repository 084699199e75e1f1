"""Turns of work that may be long: a millisecond of it each turn of the event loop, for all who have some.

A client costs by what it sends and an engine by what it answers: a body of 60 KB may take 5 ms to read, one
in chunks of a byte a hundred times as long to parse as others, 8 MB of small events seconds to scan.
Whatever waits while a turn of the loop is long has come by the next one, so what each connection does for
itself adds up. Here they share one budget, and the loop does all else in between.

Next is the client for which least time has been spent since it began to wait, however many connections it
has (start-time fair queueing). One that has no more work keeps its place in the order until its turn would
have come: had it been forgiven its last piece, a client that sends one costly piece after the other would
be before all who have several waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from typing import Protocol

TURN_S = 0.001
LARGE_READ = 64 << 10  # bytes; after one a socket is not read again before its turn
AT_ONCE = 4  # small pieces of work in a turn of the loop that do not wait
KEPT = 16384  # clients in the order, beyond which one that has no more work is forgotten at once
READ_S = 0.00015  # that such a read takes, which the loop makes after the turn


def turn_end_s() -> float:
    """When a turn that begins now has used its time, for `is_turn_over`."""
    return time.perf_counter() + TURN_S


def is_turn_over(end_s: float) -> bool:
    """Whether its time is used: what is left to do joins the turns."""
    return time.perf_counter() >= end_s


class _Socket(Protocol):
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Turns:
    """Functions that each do a piece of work; one that has more to do joins again."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Callable[[], object], float]] = {}  # by client; perhaps nothing
        self._order: list[tuple[float, int, str]] = []  # a heap: seconds spent, a number, the client
        self._joined = 0
        self._level_s = 0.0  # of whose turn was last; where one who begins to wait begins
        self._turn: asyncio.Handle | None = None
        self._at_once = 0  # in this turn of the loop

    def is_free(self) -> bool:
        """True for the first few that ask in a turn of the loop: what all others would do is to `join`.

        The loop serves every socket that is ready in one turn, and a client may have thousands.
        """
        if not self._at_once:
            asyncio.get_running_loop().call_soon(self._free)
        self._at_once += 1
        return self._at_once <= AT_ONCE

    def _free(self) -> None:
        self._at_once = 0

    def join(self, work: Callable[[], object], least_s: float = 0.0, client: str = "") -> None:
        """Call this once, in a later turn of the loop. One that waits already is not called twice.

        least_s: what it costs at least, part of which comes later.   client: whose work it is.
        """
        if client not in self._waiting:
            self._waiting[client] = {}
            self._queue(client, self._level_s)
        self._waiting[client][work] = least_s
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        left_s = TURN_S
        self._turn = None
        try:
            while self._waiting and left_s > 0:
                left_s -= self._take_next()
        finally:  # an error in one does not end the turns of the others
            if self._waiting and self._turn is None:
                self._turn = asyncio.get_running_loop().call_soon(self._take)

    def _take_next(self) -> float:
        """Do one piece of work of the client whose turn it is, if it has any; the seconds that it cost."""
        began_s = time.perf_counter()
        self._level_s, _, client = heapq.heappop(self._order)
        spent_s = self._level_s
        works = self._waiting[client]
        if not works:
            del self._waiting[client]
            return time.perf_counter() - began_s
        work = next(iter(works))
        least_s = works.pop(work)
        try:
            work()
        finally:
            cost_s = max(time.perf_counter() - began_s, least_s)
            if works or len(self._waiting) <= KEPT:
                self._queue(client, spent_s + cost_s)
            else:
                del self._waiting[client]
        return cost_s

    def _queue(self, client: str, spent_s: float) -> None:
        self._joined += 1  # of equals the first that came is next
        heapq.heappush(self._order, (spent_s, self._joined, client))


def take_in_turns(turns: Turns, steps: Iterator[None]) -> None:
    """Take these steps, a turn's time of them each turn. What they make is theirs to hand on."""

    def go_on() -> None:
        end_s = turn_end_s()
        for _ in steps:
            if is_turn_over(end_s):
                turns.join(go_on)
                return

    turns.join(go_on)


class Reading:
    """Whether a socket is read: not while its owner holds it, nor after a large read before its turn.

    The loop would else read one socket up to 32 times in a row, 8 MB, before it does anything else.
    """

    __slots__ = ("_awaits_turn", "_is_paused", "_socket", "_turns", "client", "is_held")

    def __init__(self, socket: _Socket, turns: Turns, client: str = "") -> None:
        self._socket, self._turns, self.client = socket, turns, client
        self.is_held = self._awaits_turn = self._is_paused = False

    def came(self) -> None:
        """LARGE_READ bytes or more have been read."""
        if not self._awaits_turn:
            self._awaits_turn = True
            self._turns.join(self._read_on, READ_S, self.client)
            self._apply()

    def hold(self, is_held: bool) -> None:
        """Read no more, or read on."""
        if is_held is not self.is_held:
            self.is_held = is_held
            self._apply()

    def _read_on(self) -> None:
        self._awaits_turn = False
        self._apply()

    def _apply(self) -> None:
        must_wait = self.is_held or self._awaits_turn
        if must_wait is not self._is_paused and not self._socket.is_closing():
            self._is_paused = must_wait
            self._socket.pause_reading() if must_wait else self._socket.resume_reading()
