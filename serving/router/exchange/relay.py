"""Relay of one request between its client and its engines: reports events to the exchange, does what it says.

The relay decides nothing about the request. What it owns: the call under way, the pace (a client that reads
slowly stops the reading of the engine's answer), and the idle time-outs: `stall_s` counts events, for another
engine may take over; then `idle_s` counts bytes of any kind, for what sends comments or pings is at work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from serving.clock import boot_s
from serving.messages import STABLE
from serving.router.exchange.beside import Beside
from serving.router.exchange.exchange import Exchange
from serving.router.types import Action, Deliver, Failure, Refusal, Step
from serving.router.upstreams.engine_connection import Headers
from serving.router.upstreams.upstream import Call, Upstream

log = logging.getLogger("canaryctl.router")


# Bytes that wait for a client up to which an answer that may be held is read on. A canary's client, who has
# nothing before its end, holds nothing up; so stable's must not either, or its answers would look slower.
READ_ON = 4 << 20


class Client(Protocol):
    """The connection of a client, as a relay needs it."""

    @property
    def unread_bytes(self) -> int:
        """Bytes that it was sent and that wait here."""

    def deliver(self, action: Deliver) -> None:
        """Send this; `then` says whether the answer has ended."""

    def refuse(self, refusal: Refusal) -> None:
        """Send the router's own error, and end."""


class Relay:
    """One request under way. `start` it; the client reports `gone`, `slow` and `ready`."""

    def __init__(
        self, exchange: Exchange, client: Client, upstream: Upstream, method: str, on_over: Callable[[], None]
    ) -> None:
        """on_over: called once, when the request has ended in whatever way."""
        self._exchange = exchange
        self._client = client
        self._upstream = upstream
        self._method = method
        self._on_over = on_over
        self._idle_s = upstream.limits.idle_s
        self._stall_s = min(upstream.limits.stall_s, upstream.limits.idle_s)
        self._is_stalled = False  # the engine has sent no event for that long
        self._data_s = 0.0  # when bytes of its answer came last
        self._call: Call | None = None
        self._beside: Beside | None = None  # stable's answer, which may replace a silent canary's
        self._taken: Beside | None = None  # the same while it is passed on
        self._is_slow = False
        self._has_failed = False  # by an error of our own, in a canary's answer
        self._has_begun = False  # the client has been sent something
        self._is_over = False

    def start(self) -> None:
        """Send the first attempt, and that of a trial (`trial.py`)."""
        try:
            trial = self._exchange.begin_trial(boot_s())
            if trial is not None and not trial.is_sent:
                trial.send(self._upstream, self._method, lambda: self._exchange.may_try(boot_s()))
            self._next()
        except Exception:  # noqa: BLE001 - logged and recorded there
            self._fail()

    # ---- of the client

    def gone(self) -> None:
        """The client has disconnected: the engine's work stops."""
        if not self._is_over:
            self._end()
            self._exchange.cancelled(now_s=boot_s())

    @property
    def is_recorded(self) -> bool:
        """True when what still comes of the answer is in no record."""
        return self._exchange.is_recorded

    @property
    def body_bytes(self) -> int:
        """Bytes of the request's body that are held, with those that are made of it."""
        return self._exchange.body_bytes

    def go_on(self, nobody: Client, on_over: Callable[[], None]) -> bool:
        """The client has disconnected. True: the answer goes on for `nobody`; False: it is to end."""
        if self._is_over or not self._exchange.leave():
            return False
        self._client, self._on_over = nobody, on_over
        self.ready()
        return True

    def slow(self) -> None:
        """The client does not read as fast as the engine answers."""
        self._is_slow = True
        self._pause()

    def ready(self) -> None:
        """The client reads again."""
        if not self._is_slow:
            return
        self._is_slow = False
        if self._call is not None and self._call.is_paused:
            self._call.resume()
            deadline_s = boot_s() + (self._idle_s if self._is_stalled else self._stall_s)
            self._call.deadline_s = max(
                deadline_s, 0.0 if self._exchange.has_begun else self._call.deadline_s
            )

    # ---- of the call

    def may_start(self) -> bool:
        """Whether the head of this attempt may be written now."""
        return self._exchange.may_start(boot_s())

    def on_head(self, status: int, headers: Headers) -> None:
        """The engine's head arrived."""
        try:
            self._do(self._exchange.answered(status, headers))
        except Exception:  # noqa: BLE001 - logged and recorded there
            self._fail()

    def on_data(self, data: bytes) -> None:
        """Bytes of the engine's body arrived."""
        self._data_s = now_s = boot_s()
        try:
            action = self._exchange.received(data, now_s=now_s)
            call = self._call
            if self._exchange.has_begun and call is not None and self._exchange.seen.last_byte_s == now_s:
                call.deadline_s = now_s + self._stall_s
                self._is_stalled = False
            elif self._is_stalled and call is not None:
                call.deadline_s = now_s + self._idle_s
            self._do(action)
            if self._is_slow:
                self._pause()
        except Exception:  # noqa: BLE001 - logged and recorded there
            self._fail()

    def on_end(self) -> None:
        """The engine's body ended."""
        self._call = None
        try:
            self._do(self._exchange.ended(now_s=boot_s()))
        except Exception:  # noqa: BLE001 - logged and recorded there
            self._fail()

    def on_silent(self) -> bool:
        """Nothing has come for as long as is allowed; True: the call fails now."""
        if self._is_stalled or self._call is None or not self._exchange.has_begun or self._exchange.stalled():
            return True
        self._is_stalled = True
        self._call.deadline_s = max(self._data_s, self._call.deadline_s - self._stall_s) + self._idle_s
        return False

    def on_failed(self, why: Failure) -> None:
        """The attempt failed."""
        call, self._call = self._call, None
        try:
            if call is not None and call.was_sent_again:
                self._exchange.sent_again()
            self._do(self._exchange.broken(why, now_s=boot_s()))
        except Exception:  # noqa: BLE001 - logged and recorded there
            self._fail()

    def took(self, call: Call | None) -> None:
        """All that stable had said beside the canary has been passed on; None: its answer has ended."""
        self._taken, self._call = None, call
        if call is not None and self._exchange.has_begun:
            call.deadline_s = boot_s() + self._stall_s
        if self._is_slow:
            self._pause()

    # ---- of the front

    def hand_over(self) -> bool:
        """Ask stable now if the client has nothing of the answer of a canary that has left the table."""
        call = self._call
        if self._is_over or call is None or not self._exchange.awaits_canary(withdrawn=True):
            return False
        call.fail("withheld")
        return True

    def ask_beside(self) -> bool:
        """Ask stable too where a canary is silent; whichever is whole first is the answer (`beside.py`)."""
        if self._is_over or self._call is None or not self._exchange.awaits_canary(withdrawn=False):
            return False
        attempt = self._exchange.attempt_beside()
        if attempt is None:
            return False
        start = self._exchange.start
        parts = start, self._exchange.held
        self._beside = beside = Beside(*parts, on_whole=self._is_whole_beside, on_failed=self.ask_beside)
        beside.send(self._upstream, attempt, self._method)
        return True

    def _is_whole_beside(self) -> None:
        call = self._call
        if not self._is_over and call is not None and self._exchange.awaits_canary(withdrawn=False):
            self._exchange.stopped()
            call.fail("withheld")

    def stop(self, refusal: Refusal) -> None:
        """The router ends: what has come of the answer is all that the client gets, and it is told."""
        if self._is_over:
            return
        self._end()
        action: Action = Step.AGAIN
        try:
            self._exchange.stopped()
            scan = self._exchange.seen.scan
            if self._has_begun or (scan is not None and scan.is_whole):  # held back, or not
                action = self._exchange.broken("cut", now_s=boot_s())
        except Exception:  # the client is told all the same
            log.exception("internal error", extra={"request": self._exchange.request_id})
        self._refused(refusal)
        if isinstance(action, Deliver) and action.then in ("end", "break"):
            self._client.deliver(action)
        elif self._has_begun:
            data = action.data if isinstance(action, Deliver) else b""
            event = refusal.event(self._exchange.start.request.path)
            self._client.deliver(Deliver(None, data + event, "end"))
        else:
            self._client.refuse(refusal)

    # ---- of time

    def waited(self, now_s: float) -> None:
        """Called a few times a second: a client that waits for a held answer is kept waiting."""
        if self._is_over or self._is_slow:
            return
        try:
            self._do(self._exchange.waited(now_s))
        except Exception:  # noqa: BLE001 - logged and recorded there
            self._fail()

    # ---- inside

    def _next(self) -> None:
        attempt = self._exchange.next_attempt(boot_s())
        if isinstance(attempt, Deliver):
            self._do(attempt)
            return
        if isinstance(attempt, Refusal):
            self._exchange.refused(attempt, now_s=boot_s())
            self._end()
            self._client.refuse(attempt)
            return
        self._call = None
        self._is_stalled = False
        if attempt.arm == STABLE:
            beside, self._beside = self._beside, None
            if beside is not None and not beside.is_over:
                self._taken = beside
                beside.pass_on(self)
                return
        call = self._upstream.open(attempt, self._method, self)
        if not call.is_over:
            self._call = call
            if self._is_slow:
                self._pause()
            if self._beside is not None and self._beside.is_whole:
                self._is_whole_beside()

    def _pause(self) -> None:
        """Read no more for a client that reads slowly, unless the answer is read on all the same."""
        call = self._call
        if call is None or call.is_paused:
            return
        if not (self._exchange.reads_on and self._client.unread_bytes <= READ_ON):
            call.pause()

    def _do(self, action: Action) -> None:
        if action is Step.HOLD:
            return
        if isinstance(action, Deliver):
            self._has_begun = True
            if self._beside is not None and self._exchange.is_committed:
                self._beside.close()  # stable's answer cannot take the place of what the client has
                self._beside = None
            if action.then == "more":
                self._client.deliver(action)
                return
            if action.then != "again":
                self._end()
                self._client.deliver(action)
                return
            action.then = "more"
            self._client.deliver(action)
            if self._is_over:  # the client was lost meanwhile
                return
        self._close_call()
        self._next()

    def _fail(self) -> None:
        """An error of our own. In a canary's answer of which the client has nothing: stable is asked, once.
        Else the client gets 500, or a broken connection; the record says so."""
        log.exception("internal error", extra={"request": self._exchange.request_id})
        if self._is_over:
            return
        if not self._has_failed and self._exchange.awaits_canary(withdrawn=False):
            self._has_failed = True
            try:
                self._do(self._exchange.broken("malformed", now_s=boot_s()))
            except Exception:  # noqa: BLE001 - logged and recorded there
                self._fail()
            return
        self._end()
        text = "the router failed on this request; it is in its log, send it again"
        refusal = Refusal(500, "internal", text)
        self._refused(refusal)
        if self._has_begun:
            self._client.deliver(Deliver(then="break"))
        else:
            self._client.refuse(refusal)

    def _refused(self, refusal: Refusal) -> None:
        """Let the exchange know what the client is told now, whether or not that raises."""
        try:
            if not self._exchange.is_over:
                self._exchange.refused(refusal, now_s=boot_s())
        except Exception:
            log.exception("internal error", extra={"request": self._exchange.request_id})

    def _end(self) -> None:
        self._is_over = True
        self._close_call()
        if self._beside is not None:
            self._beside.close()
        self._on_over()

    def _close_call(self) -> None:
        for one in (self._call, self._taken):
            if one is not None:
                one.close()
        self._call = self._taken = None
