"""Trials of a canary that is set aside: copies of its requests, while stable answers their users. No clock.

A canary that does not answer makes users wait, so stable is asked for them at once. What the evidence says of
their requests must still be what asking the canary would have said: outages of one arm alone would else be
left out of the records, or counted longer than they were.

Rules:
1. A request that is drawn for a canary that is set aside begins a trial, its own request sent there, or
   shares the one that is under way, if that is TRY_S old at most. So where connections are refused at once,
   as by a process that is gone, each request is tried; only one that stays silent stands for those of half a
   second. All that share a trial are charged alike: with a failure, with a rejection, or with nothing.
2. A trial whose answer begins ends there, and so does the time aside. Its requests are recorded as `fenced`:
   the canary would have answered, and nobody knows how fast. A head alone is no answer, nor is white
   space: the front of an engine that hangs may still write them.
3. A request's record waits for its trial until `settle_s`; by then nothing has come, as of any open request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from serving.messages import CANARY
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.context import RouterContext, Start
from serving.router.exchange.record import End, Seen, record_of
from serving.router.exchange.sending import Sender
from serving.router.exchange.usable import failure_of, has_begun, unusable
from serving.router.headers import content_type
from serving.router.types import Attempt, Failure
from serving.router.upstreams.engine_connection import Headers
from serving.router.upstreams.health import TOLD_4XX, UpstreamHealth

if TYPE_CHECKING:
    from serving.router.upstreams.upstream import Upstream

TRY_S = 0.5
BYTES_LIMIT = 32 << 20  # of the bodies of trials; beyond it a large one shares the last, however old
SMALL = 64 << 10  # bytes of a body that begins a trial all the same: one large request holds no other up


class Waiter(Protocol):
    """What waits for the end of a trial."""

    def __call__(self, cause: str | None, status: int | None) -> None:
        """cause: why it failed, None: it did not.  status: of a rejection, None: it was none."""


class Trials:
    """Those of one router that are under way."""

    def __init__(self) -> None:
        self.newest: dict[str, Trial] = {}  # by URL
        self.bytes = 0

    def shared(self, url: str, now_s: float, body_bytes: int) -> Trial | None:
        """The one that a request of now shares; None: it begins its own."""
        newest = self.newest.get(url)
        has_room = body_bytes <= SMALL or self.bytes <= BYTES_LIMIT
        return None if newest is None or (now_s - newest.began_s >= TRY_S and has_room) else newest

    def begun(self, trial: Trial) -> None:
        """This one begins."""
        self.newest[trial.url] = trial
        self.bytes += len(trial.attempt.body)

    def over(self, trial: Trial) -> None:
        """This one has ended."""
        self.bytes -= len(trial.attempt.body)
        if self.newest.get(trial.url) is trial:
            del self.newest[trial.url]


class Trial:
    """One request to a canary that is set aside. A listener of its call."""

    def __init__(
        self,
        start: Start,
        attempt: Attempt,
        url: str,
        health: UpstreamHealth,
        trials: Trials,
        *,
        now_s: float,
        refusal_of: Callable[[int], str | None],
    ) -> None:
        """url: of the replica. refusal_of: why a status is a failure of a request with the service's key."""
        self.attempt, self.url, self.began_s = attempt, url, now_s
        self.is_sent = self.is_over = False
        self._start, self._health, self._trials = start, health, trials
        self._scan: AnswerScan | None = None  # None: no head has come, or any byte is an answer
        self._waiters: list[Waiter] = []
        self._refusal_of = refusal_of
        self._may_start: Callable[[], bool] = lambda: True
        self._close: Callable[[], None] = lambda: None
        trials.begun(self)

    def wait(self, waiter: Waiter) -> None:
        """Tell this one too how it ends; in the order in which they wait."""
        self._waiters.append(waiter)

    def send(self, upstream: Upstream, method: str, may_start: Callable[[], bool]) -> None:
        """Ask. may_start: asked before the first byte is written."""
        self.is_sent, self._may_start = True, may_start
        call = upstream.open(self.attempt, method, self)
        if self.is_over:
            call.close()
        self._close = call.close

    def stop(self) -> None:
        """The router ends: it is not known how this one would have."""
        self._end(None, None)

    # ---- of the call

    def may_start(self) -> bool:
        """Whether the canary may still be sent requests."""
        return self._may_start()

    def on_head(self, status: int, headers: Headers) -> None:
        """The head arrived: an answer of this status is one, or is still to come."""
        cause = self._refusal_of(status) or failure_of(status, asked=self._start.request.path)
        if cause is not None or status in TOLD_4XX:
            self._health.failed(CANARY, self.url, cause or f"status {status}")
            self._end(cause, status if cause is None else None)
        elif status >= 300:  # a 4xx
            self._answers(status)
        elif self._start.is_eligible:
            is_ours = not self.attempt.may_be_stale
            self._scan = self._start.scan(content_type(headers), is_ours=is_ours)

    def on_data(self, data: bytes) -> None:
        """Bytes arrived: once the answer has begun, that is all that was to be known."""
        scan = self._scan
        if self.is_over:
            return
        if scan is not None:
            scan.feed(data)
            if scan.has_error:
                self._fails("malformed" if scan.is_malformed else "error in the answer")
                return
        if not data.isspace() if scan is None else has_begun(scan, is_canary=True):
            self._answers()

    def on_end(self) -> None:
        """The answer ended before it began."""
        scan = self._scan
        why = unusable(scan, scan.end(), is_canary=True) if scan is not None else None
        if why is not None:
            self._fails(why)
        else:
            self._answers()

    def on_silent(self) -> bool:
        """No answer in time."""
        return True

    def on_failed(self, why: Failure) -> None:
        """No answer."""
        if why == "withheld":
            self._end(None, None)
        else:
            self._fails(why)

    def _answers(self, status: int | None = None) -> None:
        if not self.is_over:
            self._health.answered(CANARY, self.url)
            self._end(None, status)

    def _fails(self, why: Failure) -> None:
        if not self.is_over:
            self._health.failed(CANARY, self.url, "reset" if why == "cut" else why)
            self._end(why, None)

    def _end(self, cause: str | None, status: int | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._trials.over(self)
        self._close()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(cause, status)


def begin_trial(
    start: Start, context: RouterContext, attempts: Attempts, sender: Sender, *, now_s: float
) -> Trial | None:
    """The trial of a request that is drawn for a canary that is set aside, and now goes to stable. It is to
    be sent, if it was not. None: the request is sent as any. Raises NotRenamed."""
    chosen, health, trials = attempts.aside(), context.health, context.trials
    if chosen is None or health is None:
        return None
    url = chosen[1].url
    trial = trials.shared(url, now_s, start.body_bytes)
    if trial is None:
        attempt = sender.send(*chosen)
        limit_s = min(attempt.first_byte_s, context.limits.settle_s)
        attempt = msgspec.structs.replace(attempt, first_byte_s=limit_s)
        refusal_of = partial(sender.refusal_of, *chosen)
        trial = Trial(start, attempt, url, health, trials, now_s=now_s, refusal_of=refusal_of)
    attempts.leave_aside(url)
    trial.wait(attempts.tried_aside)
    return trial


@dataclass(slots=True)
class PendingRecord:
    """A request that has ended and whose trial has not: its record waits, without its body."""

    start: Start
    context: RouterContext
    attempts: Attempts
    seen: Seen
    end: End
    now_s: float  # of its end
    settle_deadline_s: float
    is_recorded: bool = False

    def wait(self, trial: Trial) -> None:
        """Wait for this trial."""
        self.start = self.start.without_body()
        self.context.on_pending(self.start.request_id, self)
        trial.wait(self.write)

    def write(self, cause: str | None, status: int | None) -> None:
        """The trial has ended, as the attempts know already: record the request."""
        if not self.is_recorded:
            self.is_recorded = True
            start, parts = self.start, (self.start, self.context, self.attempts, self.seen, self.end)
            record = record_of(*parts, now_s=self.now_s)
            self.context.on_record(record, assigned_s=start.now_s, canary=start.assignment.canary)

    def record_open(self) -> None:
        """`settle_deadline_s` has passed: the canary has been silent."""
        self.attempts.tried_aside("silent", None)
        self.write("silent", None)
