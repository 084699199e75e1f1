"""State of one request: next replica to try, what the client is sent, final record. No socket, no clock.

The relay reports events to an `Exchange` and does what it answers. `next_attempt` names the next request to
an engine; the others return an action: HOLD, AGAIN, or what to `Deliver`.

    event          answer                         next events
    next_attempt   Attempt                        may_start, then answered | broken
                   Refusal                        refused
                   Deliver, "end" or "break"      none
    answered       HOLD                           received | ended | broken
    received       HOLD, Deliver                  received | ended | broken
    ended, broken  Deliver, then "end" or "break" none
    any of these   AGAIN, or Deliver, "again"     next_attempt
    At any time: cancelled, record_open, waited, stalled. Before all: begin_trial.

Rules:
1. The arm is assigned before the exchange begins; the record keeps it whatever happens (intention to treat).
2. A canary request starts only while the router's lease holds and the assigned canary is still published.
   `may_start` checks that when the head is about to be written, not when the replica is chosen.
3. The client is sent nothing before the first whole event with content, and of an answer that is no stream
   nothing before its end, up to HOLD_LIMIT. Until then a canary that fails, or answers 4xx, is replaced by
   stable, whose answer the user gets. A refusal by the canary's fence is no evidence about the version.
4. A stream that is cut later is continued by stable (`continued.py`), where the engine has named the ids
   of its tokens and stable has the same vocabulary (`cover.py`). Else it ends with an error event.
5. Late commit: a canary's stream that could not be continued is held until its last event, up to HOLD_LIMIT.
   It ends when the canary has the full weight. Who waits for a stream is kept alive (`waited`).
6. A stream is complete when every choice has finished; what it should still have said is said for it. Whole
   events are passed on, so that another can always follow.
7. A request still open after `settle_s` is recorded as open, its end is not (`recording.py`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from serving.messages import CANARY, STABLE, Outcome
from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.model_name import NotRenamed
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.context import RouterContext, Start
from serving.router.exchange.continued import ContinuedStream, Ending
from serving.router.exchange.cover import Cover
from serving.router.exchange.outgoing import Outgoing, cut_event, rest_of
from serving.router.exchange.record import Seen
from serving.router.exchange.recording import Recording
from serving.router.exchange.sending import Sender, refused_by_front
from serving.router.exchange.takeover import DONE
from serving.router.exchange.trial import Trial, begin_trial
from serving.router.exchange.usable import failure_of, has_begun, is_read, unusable
from serving.router.headers import RawHeaders, value_of
from serving.router.types import Action, Attempt, Deliver, Failure, Head, Refusal, Step


class Exchange:
    """One request. Events are reported in order; an illegal one raises RuntimeError and changes nothing."""

    def __init__(self, context: RouterContext, start: Start) -> None:
        self.request_id = start.request_id
        self.is_over = False  # the request has ended, with whatever outcome
        self.has_begun = False  # the current attempt, or step of a continuation, has answered with content
        self._context, self.held = context, context.held
        self.start = start
        drawn = start.table, start.assignment
        self._attempts = Attempts(context, *drawn, creates=start.creates, is_once=start.is_once)
        self._sender = Sender(context, start, self._attempts)
        self._status: int | None = None
        self.seen = Seen()
        self._recording = Recording(context, start, self._attempts, self.seen)
        self.settle_deadline_s = self._recording.deadline_s
        self._out = Outgoing(start.now_s, context.held, start.request)
        self._cover = Cover(context, start)
        self._now_s = start.now_s  # of the last end of an attempt
        self._continued: ContinuedStream | None = None
        self._is_key_refused = False  # by stable's endpoint, which was the last to fail
        self._has_left = False  # the client, whose answer is read on for its record alone

    # ---- attempts

    def next_attempt(self, now_s: float | None = None) -> Attempt | Refusal | Deliver:
        """Where to send the request now; what the client gets when no replica is left."""
        if self._continued is not None:
            found = self._continued.next_attempt()
            return found if isinstance(found, Attempt) else self._end(found)
        self._require(self._attempts.replica is None, "next_attempt")
        self._sender.now_s = now_s or self._now_s
        if self._has_left:  # nobody is there for whom another would answer
            self._finish("cut", self._attempts.first_cause, self._sender.now_s)
            return Deliver(then="end")
        if (chosen := self._attempts.begin(self._sender.has_time)) is None:
            return self._refused(self._sender.no_replica(is_key_refused=self._is_key_refused))
        try:
            return self._sender.send(*chosen)
        except NotRenamed as exc:  # a newer table's endpoint has a model name, none of the first had one
            self._release()
            return self._refused(self._sender.refusal(400, "model_not_replaced", str(exc)))

    def _refused(self, refusal: Refusal) -> Refusal | Deliver:
        """The router's own error: as an answer, or as an event where a head has been sent."""
        if not self._out.is_head_sent:
            return refusal
        self.refused(refusal, now_s=self._now_s)
        return Deliver(None, refusal.event(self.start.request.path), "end")

    def may_start(self, now_s: float) -> bool:
        """Checked just before the head is written; False withholds a canary request."""
        if self._attempts.count == 1 and self._continued is None:
            self.seen.connect_s = now_s - self._sender.now_s
        return self._attempts.arm == STABLE or self._context.may_start(self.start.assignment.canary, now_s)

    @property
    def is_recorded(self) -> bool:
        """True when what still comes of the answer is in no record."""
        return self._recording.is_done

    def begin_trial(self, now_s: float) -> Trial | None:
        """The trial of a canary that is set aside, of which this request is; before the first attempt."""
        if self._context.health is None or not self._context.health.failing:
            return None
        with suppress(NotRenamed):  # the attempt says so
            parts = self.start, self._context, self._attempts, self._sender
            self._recording.trial = begin_trial(*parts, now_s=now_s)
        return self._recording.trial

    def may_try(self, now_s: float) -> bool:
        """Checked just before the head of a trial is written."""
        return self._context.may_start(self.start.assignment.canary, now_s)

    def answered(self, status: int, headers: RawHeaders) -> Step:
        """An engine sent its head. AGAIN: this answer is of no use."""
        self._require((replica := self._attempts.replica) is not None, "answered")
        arm, asked = self._attempts.current_arm, self.start.asked
        if (continued := self._continued) is not None:
            step = continued.answered(arm, status, headers)
            self.has_begun = continued.has_begun
            return step
        why: Failure | None = refused_by_front(arm, headers)
        self._attempts.refusal = refusal = self._sender.refusal_of(arm, replica, status)
        why = why or ("key refused" if refusal == "key refused" else None)
        if why is not None:
            return self._failed(why)
        if not self._attempts.is_answer(status, asked=asked):
            self._release()
            return Step.AGAIN
        self._status, seen = status, self.seen
        kept = self._sender.answer_headers(arm, headers)
        if is_read(status, asked=asked):
            is_canary = self._attempts.arm == CANARY and not self.start.assignment.is_lookup
            begun = self._cover.begin(arm, headers, is_canary=is_canary)
            seen.scan, self._out.holds_all, seen.covered = begun
        is_stream = seen.is_stream
        self._out.begin(Head(status, kept + self._sender.own_headers()), is_stream=is_stream)
        if is_stream and value_of(kept, b"content-length") is not None:
            self._out.as_stream()
        return Step.HOLD

    # ---- the body

    def received(self, data: bytes, *, now_s: float) -> Action:
        """Bytes of the body arrived."""
        seen, scan = self.seen, self.seen.scan
        if self._continued is not None:
            return self._of_continued(self._continued.received(data, now_s))
        if self.is_over or self._status is None:
            self._require(self._status is not None, "received")
        is_blank = data.isspace()
        if scan is None and is_blank and not self.has_begun:
            return Step.HOLD if self._out.hold(data) else self._deliver(b"")
        if scan is None:
            seen.last_byte_s = seen.last_byte_s if is_blank else now_s
            self._begin(now_s)
            return self._deliver(data)
        events, is_done, was_stream = scan.events, scan.is_done, scan.is_stream
        data = scan.feed(data)
        data += self._out.count(scan)
        if scan.is_stream is not was_stream:  # its engine gave it another content type
            if scan.is_stream:
                self._out.as_stream()
            self._out.holds_all, seen.covered = self._cover.of(scan)
        if scan.events != events or scan.is_done is not is_done or (scan.is_amid_event and not is_blank):
            seen.last_byte_s = now_s  # a comment is no progress, nor is white space
        is_begun = self.has_begun or has_begun(scan, is_canary=self._attempts.arm == CANARY)
        if is_begun and seen.first_byte_s is None:
            self._begin(now_s)
        if self._out.is_committed and not scan.error_tail:
            return Deliver(None, data) if data else Step.HOLD
        if scan.has_error:
            return self._received_error(scan, data)
        return self._hold(scan, data, is_begun)

    def _begin(self, now_s: float) -> None:
        """The current attempt has answered with content."""
        if self.seen.first_byte_s is None:
            self.seen.first_byte_s = now_s
            self.has_begun = True
            self._attempts.begun()

    @property
    def reads_on(self) -> bool:
        """True for an answer that is read at its engine's pace, however slowly its client reads."""
        return not self._context.held.is_spent and self._cover.may_be_held

    def _hold(self, scan: AnswerScan, data: bytes, is_begun: bool) -> Action:
        """Keep what the client may not have yet; deliver all when it may."""
        if not (is_kept := self._out.hold(data)):
            self.seen.covered = None if self.seen.covered is None else False
        may_pass = scan.is_stream and is_begun and not self._out.holds_all
        if is_kept and self._out.holds_all and scan.has_last_event and not self._has_left:
            why, may_pass = unusable(scan, scan.defect, is_canary=True), True
            if why is not None or self._cover.lacks_usage(scan):
                return self._failed(why)
        return self._deliver(b"") if may_pass or not is_kept else Step.HOLD

    def _received_error(self, scan: AnswerScan, data: bytes) -> Action:
        """The engine reported an error inside its answer, of which `data` is what came before."""
        if not self._out.is_committed and self._attempts.arm == CANARY:
            return self._failed("malformed" if scan.is_malformed else "error in the answer")
        if self._out.is_committed and scan.error_tail and self._may_continue(scan):
            return self._begin_continued(scan, data)
        tail, scan.error_tail = scan.error_tail, b""
        return self._deliver(data + tail)

    def ended(self, *, now_s: float) -> Action:
        """The body ended as its framing declared."""
        has_head = self._status is not None or self._continued is not None
        self._require(has_head and self._attempts.replica is not None, "ended")
        self._now_s, scan = now_s, self.seen.scan
        if self._continued is not None:
            return self._of_continued(self._continued.ended())
        cause, rest = (scan.end(), scan.rest) if scan is not None else (None, b"")
        is_short = rest is None or (self._cover.digest is not None and scan is not None and not scan.is_done)
        if is_short and scan is not None and scan.is_whole:
            return self._complete(scan, rest or b"", now_s)
        is_canary, is_new = self._attempts.arm == CANARY, not self._out.is_committed
        why = unusable(scan, cause, is_canary=is_canary) if scan is not None and is_new else None
        if why is not None:
            return self._failed(why)
        if cause == "cut" and scan is not None and self._may_continue(scan):
            return self._begin_continued(scan)
        failure = self._attempts.refusal or failure_of(self._status, asked=self.start.asked)
        outcome: Outcome = "failed" if failure else "cut" if cause == "cut" else "answered"
        if outcome == "answered" and not self.has_begun:
            self._attempts.begun()
        self._finish(outcome, failure or cause, now_s)
        is_cut = cause == "cut" and scan is not None and not scan.is_done
        return self._deliver(cut_event(self._context.service, scan) if is_cut else rest_of(scan, rest), "end")

    def broken(self, why: Failure, *, now_s: float) -> Action:
        """The attempt failed: no connection, no head in time, or the connection broke in the middle."""
        self._require(self._attempts.replica is not None, "broken")
        self._now_s = now_s
        if self._continued is not None:
            return self._of_continued(self._continued.broken(why))
        scan = self.seen.scan
        if scan is not None and scan.is_whole:
            return self._complete(scan, b"", now_s, is_end=self.seen.is_stopped and why == "cut")
        if not self._out.is_committed:
            return self._failed(why)
        if scan is not None and self._may_continue(scan):
            return self._begin_continued(scan)
        self._finish("cut", "cut", now_s)
        return self._deliver(event := cut_event(self._context.service, scan), "end" if event else "break")

    def _complete(self, scan: AnswerScan, rest: bytes, now_s: float, *, is_end: bool = False) -> Action:
        """Whole, but not what its engine says after it. rest: a last event. is_end: nobody else is asked."""
        last, lacks_usage = rest_of(scan, rest), not is_end and self._cover.lacks_usage(scan)
        if lacks_usage and self.start.is_continuable and self._may_continue(scan):
            return self._begin_continued(scan, last)
        is_new = self._attempts.arm == CANARY and not (is_end or self._out.is_committed or self._has_left)
        if is_new and (scan.is_void or lacks_usage):
            return self._failed("empty" if scan.is_void else None)
        self._finish("answered", scan.defect, now_s)
        is_done = scan.is_done or not self.start.request.path.endswith("completions")
        return self._deliver(last if is_done else last + DONE, "end")

    def waited(self, now_s: float) -> Action:
        """Called a few times a second: what a client that waits for a held answer is sent."""
        is_stream = self.seen.is_known_stream or (self.seen.is_stream and self.start.streams)
        is_waiting = self._continued is not None or self._out.is_waiting(is_stream=is_stream)
        if self.is_over or not is_waiting:
            return Step.HOLD
        since_s = self.seen.last_byte_s if self._continued is not None else None
        return self._out.keep_alive(now_s, self._context.limits.keep_alive_s, since_s) or Step.HOLD

    def _deliver(self, data: bytes, then: Literal["more", "end", "break"] = "more") -> Deliver:
        """What was held, and these bytes, for the client."""
        return self._out.deliver(data, then, is_stream=self.seen.is_stream)

    def _failed(self, why: Failure | None) -> Step:
        """The current attempt failed before anything of it was sent; None: it was whole but for its usage."""
        self._release()
        self.seen.forget(is_whole=why is None)
        self._out.forget()
        self.has_begun = False
        self._is_key_refused = why == "key refused" and self._attempts.arm == STABLE
        self._attempts.failed(why)
        return Step.AGAIN

    # ---- a stream that another engine continues

    def _may_continue(self, scan: AnswerScan) -> bool:
        is_ready = self._out.is_committed and scan.is_between_events and not scan.has_bad_ids
        return is_ready and self._cover.can_continue and self._attempts.can_continue()

    def _begin_continued(self, scan: AnswerScan, data: bytes = b"") -> Action:
        """From now on another engine continues the stream, of which these bytes are still to be sent."""
        parts = scan, self._cover, self._attempts, self._sender, self.seen
        self._continued = ContinuedStream(*parts, service=self._context.service)
        self.has_begun = False
        return Deliver(None, data, "again") if data else Step.AGAIN

    def _of_continued(self, found: Action | Ending) -> Action:
        assert self._continued is not None
        self.has_begun = self._continued.has_begun
        return self._end(found) if isinstance(found, Ending) else found

    def _end(self, ending: Ending) -> Deliver:
        self._finish(ending.outcome, ending.cause, self._now_s)
        return Deliver(None, ending.data, "end")

    @property
    def is_committed(self) -> bool:
        """True when the client has something of an answer, which no other can replace."""
        return self._out.is_committed

    @property
    def body_bytes(self) -> int:
        """Bytes of the request's body, and of each that was made of it for an endpoint with its own name."""
        return len(self.start.request.body) + sum(map(len, self._sender.bodies.values()))

    def awaits_canary(self, *, withdrawn: bool) -> bool:
        """True while the client has nothing of a canary's answer; withdrawn: of one that left the table, else
        of one that is silent: a stream that has begun goes on, in its own time."""
        is_free = not (self._out.is_committed or self._has_left or (self.has_begun and not withdrawn))
        return is_free and self._attempts.asks_canary(withdrawn=withdrawn)

    def attempt_beside(self) -> Attempt | None:
        """The request to stable, beside the attempt under way; None: there is none, or a second would make
        something twice."""
        is_once = self.start.is_once or self.start.creates
        chosen = None if is_once else self._attempts.beside()
        with suppress(NotRenamed):
            return self._sender.send_beside(*chosen) if chosen is not None else None
        return None

    def stalled(self) -> bool:
        """The engine has sent nothing for `stall_s` in mid-answer; True: the attempt is ended."""
        if self._continued is not None:
            return self._continued.stalled()
        if (scan := self.seen.scan) is not None and scan.is_whole:
            return True
        self._attempts.stalled()
        is_replaced = not self._out.is_committed and self._attempts.arm == CANARY
        return is_replaced or (scan is not None and self._may_continue(scan))

    def sent_again(self) -> None:
        """The attempt under way was sent a second time, after a reset that was forgiven."""
        self._attempts.was_sent_again = True

    def refused(self, refusal: Refusal, *, now_s: float) -> None:
        """The client was sent the router's own error."""
        self._status = refusal.status
        self._finish("failed", "internal error" if refusal.code == "internal" else "no answer", now_s)

    def stopped(self) -> None:
        """The router ends the request because it is stopped itself, or has stable answer: the end follows."""
        self.seen.is_stopped = self._attempts.is_stopped = True

    def cancelled(self, *, now_s: float) -> None:
        """The client disconnected."""
        if not self.is_over:
            self._finish("cancelled", self.seen.error, now_s)

    def leave(self) -> bool:
        """The client disconnects. True: its answer goes on, unread (`record.py`, rule 5)."""
        self._has_left = self.has_begun and not self.is_recorded and self._cover.may_be_held
        if self._has_left:
            self._out.drop()
        return self._has_left

    def record_open(self) -> None:
        """`settle_deadline_s` has passed and the request is still open: record it now."""
        self._require(True, "record_open")
        self._recording.open(self._status)

    def _release(self) -> None:
        self._attempts.release()
        self._status = None

    def _require(self, holds: bool, event: str) -> None:
        if self.is_over or not holds:
            raise RuntimeError(f"{event} is out of order for request {self.request_id}")

    def _finish(self, outcome: Outcome, cause: str | None, now_s: float) -> None:
        self._require(True, outcome)
        self._attempts.release(is_cut=outcome == "cut")
        self._out.count_none()
        self._out.release()
        self.is_over = True
        self._recording.write(outcome, cause, self._status, now_s)
