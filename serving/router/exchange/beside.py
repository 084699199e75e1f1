"""Stable asked beside a silent canary, while the router is being stopped.

A canary that has said nothing may be about to answer or may never: neither is known, and there is no time to
wait for the one and then for the other. So stable is asked too, and the client gets whichever is whole first.
What stable says is kept here until then. When the canary fails, it is passed on from there, in turns, as what
an engine sends is (`engine_connection.py`).

Whole is an answer with nothing wrong in it, or a 4xx: anything else might be worse than what the canary still
says. Where one replica of stable fails, another is asked, as by any request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.context import Start
from serving.router.exchange.held import FREE, HeldBytes
from serving.router.exchange.usable import is_read
from serving.router.headers import content_type
from serving.router.turns import Turns, is_turn_over, turn_end_s
from serving.router.types import Attempt, Failure
from serving.router.upstreams.engine_connection import Headers
from serving.router.upstreams.listener import Listener
from serving.router.upstreams.upstream import Call, Upstream

ANSWER_LIMIT = 1 << 20  # bytes of an answer that is kept
_NOT_THE_CLIENTS = frozenset({401, 403, 429})


class Taker(Listener, Protocol):
    """Who takes an answer that was kept."""

    def took(self, call: Call | None) -> None:
        """All that was kept has been told; what follows comes from this call. None: it has ended."""


class Beside:
    """One answer of stable that may never be needed. A listener of its call."""

    def __init__(
        self,
        start: Start,
        budget: HeldBytes,
        *,
        on_whole: Callable[[], None],
        on_failed: Callable[[], object],
    ) -> None:
        """budget: in which counts what is kept here; beyond it the answer is given up.
        on_whole, on_failed: one is called once, perhaps before `send` returns, unless it is closed."""
        self.status: int | None = None  # None: no head has come
        self.headers: Headers = []
        self.is_whole = self.is_over = False
        self._start, self._budget = start, budget
        self._kept_bytes = self._counted = 0  # of the parts, and what is counted in the budget
        self._parts: deque[bytes] = deque()
        self._is_ours = False
        self._bytes = 0
        self._scan: AnswerScan | None = None  # None: nothing that needs one has come
        self._on_whole = on_whole
        self._on_failed = on_failed
        self._call: Call | None = None
        self._turns = Turns()
        self._taker: Taker | None = None  # None: nobody needs the answer so far
        self._failure: Failure | None = None  # None: it has not failed, or nobody is to be told

    def send(self, upstream: Upstream, attempt: Attempt, method: str) -> None:
        """Ask."""
        self._is_ours, self._turns = not attempt.may_be_stale, upstream.turns
        call = upstream.open(attempt, method, self)
        if not call.is_over:
            self._call = call

    def close(self) -> None:
        """The answer is not needed."""
        call, self._call, self.is_over = self._call, None, True
        self._parts.clear()
        self._scan, self._kept_bytes = None, 0
        self._count()
        if call is not None:
            call.close()

    def _count(self) -> None:
        """Count in the budget what is kept now."""
        size = self._kept_bytes + (self._scan.kept_bytes if self._scan is not None else 0)
        self._budget.total += size - self._counted
        self._counted = size

    def pass_on(self, taker: Taker) -> None:
        """Tell this one of the call: of what has come, a turn's time of it at once, then of what follows."""
        self._taker, self._scan = taker, None
        if self._call is not None:
            self._call.pause()  # what has been read already still comes
        if self.status is not None:
            taker.on_head(self.status, self.headers)
        self._take_turn()

    def _take_turn(self) -> None:
        taker, end_s = self._taker, turn_end_s()
        if taker is None or self.is_over:
            return
        while self._parts:
            part = self._parts.popleft()
            self._kept_bytes -= len(part)
            self._count()
            taker.on_data(part)
            if self.is_over:  # it was closed
                return
            if is_turn_over(end_s):
                self._turns.join(self._take_turn)
                return
        call, self._call, self.is_over = self._call, None, True
        if call is not None:
            call.listener = taker
            call.resume()
        taker.took(call)
        if call is None and self._failure is not None:
            taker.on_failed(self._failure)
        elif call is None:
            taker.on_end()

    # ---- of the call

    def may_start(self) -> bool:
        """Stable may always be asked."""
        return True

    def on_head(self, status: int, headers: Headers) -> None:
        """The head arrived."""
        self.status, self.headers = status, headers
        if is_read(status, asked=self._start.asked):
            self._scan = self._start.scan(content_type(headers), is_ours=self._is_ours)
        elif not 400 <= status < 500 or status in _NOT_THE_CLIENTS:
            self._fail()

    def on_data(self, data: bytes) -> None:
        """Bytes arrived."""
        self._parts.append(data)
        self._bytes += len(data)
        self._kept_bytes += len(data)
        if self._scan is not None:
            self._scan.feed(data)
        self._count()
        is_large = self._bytes > ANSWER_LIMIT or (self._bytes > FREE and self._budget.is_spent)
        if self._taker is None and is_large:
            self.close()

    def on_end(self) -> None:
        """The answer ended."""
        self._call = None
        if self._taker is not None:
            return
        if self._scan is not None and self._scan.end() is not None:
            self._fail()
        else:
            self.is_whole = True
            self._on_whole()

    def on_silent(self) -> bool:
        """Nothing came in time."""
        return True

    def on_failed(self, why: Failure) -> None:
        """No answer."""
        self._call = None
        if self._taker is not None:
            self._failure = why
        else:
            self._fail()

    def _fail(self) -> None:
        self.close()
        self._on_failed()
