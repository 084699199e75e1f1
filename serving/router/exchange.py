"""State of one request: next replica to try, what the client is sent, final record. No socket, no clock.

The relay reports events to an `Exchange` and does what it answers. `next_attempt` names the next request to
an engine; the others return an action: HOLD, AGAIN, or what to `Deliver`.

    event          answer                         next events
    next_attempt   Attempt                        may_start, then answered | broken
                   Refusal                        refused
    answered       HOLD                           received | ended | broken
    received       HOLD, Deliver                  received | ended | broken
    ended, broken  Deliver, then "end" or "break" none
    any of these   AGAIN                          next_attempt
    At any time: cancelled, record_open.

Rules:
1. The arm is assigned before the exchange begins; the record keeps it whatever happens (intention to treat).
2. A canary request starts only while the router's lease holds and the assigned canary is still published.
   `may_start` checks that when the head is about to be written, not when the replica is chosen.
3. The record's `error` and `rejected` are the outcome of the first attempt (`attempts.py`, which also decides
   about repeats). A rejected request has no latency: it is no answer. `retries`, `served_arm`, `outcome` and
   `status` record what became of the request.
4. The client is sent nothing before the first whole event with content, and of an answer that is no stream
   nothing before its end, up to HOLD_LIMIT. Until then a canary that fails, or answers 4xx, is replaced by
   stable, whose answer the user gets. A refusal by the canary's fence is no evidence about the version.
5. A request still open after `settle_s` is recorded as open, with that latency, and as an error if nothing of
   the answer has arrived. It continues and counts as in flight, but its end is not recorded.
6. Timestamps are taken when bytes arrive from the engine, by the same code for both arms. The time to the
   first token is that of the first whole event with content.
7. Of a stream whole events are passed on, so that an error event can always follow.

Clocks: `now_s` is CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

from typing import Literal, assert_never

from serving.credentials import SECRET_HEADER
from serving.messages import CANARY, STABLE, Arm, Outcome, Replica, RequestRecord
from serving.router.answer_scan import AnswerScan
from serving.router.attempts import Attempts, failure_of
from serving.router.headers import OWN_PREFIX, REQUEST_ID, RawHeaders, forwarded, returned, value_of
from serving.router.model_name import NotRenamed, body_with_model
from serving.router.types import (
    Action,
    Attempt,
    Deliver,
    Failure,
    Head,
    Refusal,
    RouterContext,
    Start,
    Step,
)
from serving.targets import Endpoint

HOLD_LIMIT = 1 << 20  # bytes of an answer that are held back at most


class Exchange:
    """One request. Events are reported in order; an illegal one raises RuntimeError and changes nothing."""

    def __init__(self, context: RouterContext, start: Start) -> None:
        self.request_id = start.request_id
        self._context = context
        self._start = start
        self._table = start.table
        self._request = start.request
        self._assignment = start.assignment
        self._attempts = Attempts(context, start.table, start.assignment)
        self._bodies = dict(start.bodies)
        self._status: int | None = None
        self._scan: AnswerScan | None = None
        self._first_byte_s: float | None = None
        self._last_byte_s: float | None = None
        self._head: Head | None = None  # not sent to the client yet
        self._held: list[bytes] = []  # of the body; the same
        self._held_bytes = 0
        self._is_committed = False  # the client has been sent something of the current attempt
        self._is_key_refused = False  # by stable's endpoint, which was the last to fail
        self._is_over = False
        self._is_recorded = not start.is_eligible
        self.settle_deadline_s = start.now_s + context.limits.settle_s

    @property
    def is_over(self) -> bool:
        """True when the request has ended, with whatever outcome."""
        return self._is_over

    # ---- attempts

    def next_attempt(self) -> Attempt | Refusal:
        """Where to send the request now; a Refusal for the client when no replica is left."""
        self._require(self._attempts.replica is None, "next_attempt")
        chosen = self._attempts.begin()
        if chosen is not None:
            try:
                return self._send(*chosen)
            except NotRenamed as exc:  # a newer table's endpoint has a model name, none of the first had one
                self._release()
                return Refusal(400, "model_not_replaced", str(exc), tuple(self._own_headers()))
        stable = self._attempts.current_arm
        version = stable.version if stable else "none"
        if self._is_key_refused and stable is not None:
            message = (
                f"service {self._context.service}: the endpoint of stable version {version} refuses the "
                "service's own API key, not yours; the operator must correct it"
            )
            return Refusal(502, "endpoint_key_refused", message, tuple(self._own_headers()))
        message = f"service {self._context.service}: no replica of stable version {version} answers; retry"
        return Refusal(503, "no_capacity", message, tuple(self._own_headers()), retry_after_s=1)

    def may_start(self, now_s: float) -> bool:
        """Checked just before the head is written; False withholds a canary request."""
        return self._attempts.arm == STABLE or self._context.may_start(self._assignment.canary, now_s)

    def answered(self, status: int, headers: RawHeaders) -> Step:
        """An engine sent its head. AGAIN: this answer is of no use."""
        self._require(self._attempts.replica is not None, "answered")
        arm = self._attempts.current_arm
        refused = value_of(headers, OWN_PREFIX + b"refused") if arm is not None and arm.has_fence else None
        if refused is not None:
            # Sent by the engine's front, not by the engine: a fence, closing, loading, a wrong secret.
            self._failed("withheld" if refused == "fence" else "refused")
            return Step.AGAIN
        if arm is not None and arm.api_key is not None and status in (401, 403):
            # The operator's fault: the client's credentials were never sent.
            self._failed("key refused")
            return Step.AGAIN
        if not self._attempts.is_answer(status):
            self._release()
            return Step.AGAIN
        self._status = status
        if self._start.is_eligible and status == 200:
            kind = (value_of(headers, b"content-type") or "").lower()
            takes_ids = arm is not None and arm.has_fence
            self._scan = AnswerScan(self._request.path, kind, self._start.choices, takes_ids)
        own_id = value_of(self._request.headers, REQUEST_ID)
        kept = returned(headers, request_id=own_id)
        if self._scan is not None and self._scan.is_stream:  # an event may be taken out or added
            kept = [(name, value) for name, value in kept if name != b"content-length"]
        self._head = Head(status, kept + self._own_headers())
        return Step.HOLD

    # ---- the body

    def received(self, data: bytes, *, now_s: float) -> Action:
        """Bytes of the body arrived."""
        self._require(self._status is not None, "received")
        scan = self._scan
        self._last_byte_s = now_s
        if scan is None:
            if self._first_byte_s is None:
                self._first_byte_s = now_s
            return self._deliver(data)
        data = scan.feed(data)
        if self._is_committed:
            return Deliver(None, data) if data else Step.HOLD
        has_begun = scan.has_content or scan.is_finished or scan.has_error or not scan.is_stream
        if has_begun and self._first_byte_s is None:
            self._first_byte_s = now_s
        if scan.has_error and not scan.has_content and self._attempts.arm == CANARY:
            self._failed("error in the answer")
            return Step.AGAIN
        self._held.append(data)
        self._held_bytes += len(data)
        if (scan.is_stream and has_begun) or self._held_bytes > HOLD_LIMIT:
            return self._deliver(b"")
        return Step.HOLD

    def ended(self, *, now_s: float) -> Action:
        """The body ended as its framing declared."""
        self._require(self._status is not None, "ended")
        scan = self._scan
        rest = scan.rest() if scan else b""
        cause = scan.end() if scan else None
        if not self._is_committed and scan is not None and (why := self._unusable(scan, cause)) is not None:
            self._failed(why)
            return Step.AGAIN
        failure = failure_of(self._status)
        if failure is not None:
            self._finish("failed", failure, now_s)
        else:
            self._finish("cut" if cause == "cut" else "answered", cause, now_s)
        is_cut = cause == "cut" and scan is not None and not scan.is_done
        return self._deliver(self._error_event() if is_cut else rest, "end")

    def _unusable(self, scan: AnswerScan, cause: str | None) -> Failure | None:
        """Why this answer, of which the client has seen nothing, is of no use; None: it is passed on."""
        if scan.is_stream and cause == "cut" and not scan.has_content:
            return "cut"
        if self._attempts.arm == CANARY and cause in ("error in the answer", "malformed"):
            return "error in the answer" if cause == "error in the answer" else "malformed"
        return None

    def broken(self, why: Failure, *, now_s: float) -> Action:
        """The attempt failed: no connection, no head in time, or the connection broke in the middle."""
        self._require(self._attempts.replica is not None, "broken")
        if not self._is_committed:
            self._failed(why)
            return Step.AGAIN
        self._finish("cut", "cut", now_s)
        event = self._error_event()
        return self._deliver(event, "end" if event else "break")

    def _deliver(self, data: bytes, then: Literal["more", "end", "break"] = "more") -> Deliver:
        """What was held, and these bytes, for the client."""
        head, self._head = self._head, None
        if self._held:
            data = b"".join([*self._held, data])
            self._held = []
        self._is_committed = True
        return Deliver(head, data, then)

    def _failed(self, why: Failure) -> None:
        """The current attempt failed before anything of it was sent to the client."""
        self._release()
        self._scan = self._head = self._first_byte_s = self._last_byte_s = None
        self._held, self._held_bytes = [], 0
        self._is_key_refused = why == "key refused" and self._attempts.arm == STABLE
        self._attempts.failed(why)

    def _error_event(self) -> bytes:
        """An event on which OpenAI clients raise; b'' where the stream is not between two events."""
        if self._scan is None or not self._scan.is_between_events:
            return b""
        message = f"the answer of service {self._context.service} was cut before its end; send it again"
        return b"data: " + Refusal(502, "cut", message).body() + b"\n\n"

    def refused(self, refusal: Refusal, *, now_s: float) -> None:
        """The client was sent the router's own error."""
        self._status = refusal.status
        self._finish("failed", "internal error" if refusal.code == "internal" else "no answer", now_s)

    def cancelled(self, *, now_s: float) -> None:
        """The client disconnected."""
        if not self._is_over:
            self._finish("cancelled", None, now_s)

    def record_open(self) -> None:
        """`settle_deadline_s` has passed and the request is still open: record it now."""
        self._require(True, "record_open")
        self._record_once("open", None, self._status, self.settle_deadline_s)

    # ---- sending

    def _send(self, arm: Arm, replica: Replica) -> Attempt:
        headers = forwarded(self._request.headers)
        headers.append((b"accept-encoding", b"identity"))
        count = self._attempts.count  # an engine may still hold the attempt before
        sent_id = self.request_id if count == 1 else f"{self.request_id}-{count}"
        headers.append((REQUEST_ID, sent_id.encode()))
        if arm.has_fence:
            secret = self._table.secret
            headers.append((SECRET_HEADER, secret.text.encode() if secret is not None else b""))
            if self._attempts.arm == CANARY:
                headers.append((b"x-canaryctl-revision", self._table.table_revision.encode()))
        endpoint = Endpoint.parsed(replica.url)
        limits = self._context.limits
        canary_s = limits.canary_stream_s if self._start.streams else limits.canary_whole_s
        return Attempt(
            self._attempts.arm,
            endpoint,
            endpoint.path(self._request.target),
            headers,
            self._body_for(arm),
            canary_s if self._attempts.arm == CANARY else limits.stable_s,
            arm.api_key,
            arm.external,
        )

    def _body_for(self, arm: Arm) -> bytes:
        """The client's body, with the model name of an endpoint that has its own. Raises NotRenamed."""
        if arm.model is None:
            return self._request.body
        if arm.model not in self._bodies:
            self._bodies[arm.model] = body_with_model(self._request.body, self._request.headers, arm.model)
        return self._bodies[arm.model]

    def _release(self) -> None:
        self._attempts.release()
        self._status = None

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        arm = self._attempts.current_arm
        return [
            (b"x-canaryctl-version", (arm.version if arm else "").encode()),
            (b"x-canaryctl-arm", b"canary" if self._attempts.arm == CANARY else b"stable"),
            (b"x-canaryctl-revision", self._table.table_revision.encode()),
            (b"x-canaryctl-request-id", self.request_id.encode()),
        ]

    def _require(self, holds: bool, event: str) -> None:
        if self._is_over or not holds:
            raise RuntimeError(f"{event} is out of order for request {self.request_id}")

    # ---- the record

    def _finish(self, outcome: Outcome, cause: str | None, now_s: float) -> None:
        self._require(True, outcome)
        status = self._status
        self._release()
        self._is_over = True
        self._record_once(outcome, cause, status, now_s)

    def _record_once(self, outcome: Outcome, cause: str | None, status: int | None, now_s: float) -> None:
        if self._is_recorded:
            return
        self._is_recorded = True
        if now_s >= self.settle_deadline_s:
            # The record does not depend on how late the router checks the deadline.
            now_s = self.settle_deadline_s
            outcome, cause, status = self._outcome_at_deadline(status)
        record = self._record(outcome, cause, status, now_s)
        self._context.on_record(record, assigned_s=self._start.now_s, canary=self._assignment.canary)

    def _outcome_at_deadline(self, status: int | None) -> tuple[Outcome, str | None, int | None]:
        """(outcome, cause of an error, status) of a request that had not ended by its deadline."""
        scan, last_byte_s = self._scan, self._last_byte_s
        if self._first_byte_s is None or self._first_byte_s >= self.settle_deadline_s:
            return "open", "silent", None
        is_whole = scan is not None and scan.is_finished
        if is_whole and last_byte_s is not None and last_byte_s < self.settle_deadline_s:
            # The client reads slowly, or the engine does not close the connection.
            return "answered", scan.end() if scan else None, status
        failure = failure_of(status)
        if failure is not None:
            return "open", failure, status
        return "open", "error in the answer" if scan is not None and scan.has_error else None, status

    def _record(self, outcome: Outcome, cause: str | None, status: int | None, now_s: float) -> RequestRecord:
        assignment, scan = self._assignment, self._scan
        if outcome == "answered" and self._attempts.has_fallen_back:
            outcome = "fallback" if self._attempts.first_cause or self._attempts.first_4xx else "fenced"
        error, cause = self._error_of_first_attempt(cause)
        is_rejected = self._attempts.first_4xx is not None
        served_arm = self._attempts.arm if status is not None else None
        latency_until_s: float | None = None
        open_until_s: float | None = None
        is_empty = False
        match outcome:
            case "answered" | "fallback" | "fenced":
                latency_until_s = self._last_byte_s or now_s
                is_empty = scan is not None and scan.is_empty
            case "open" if status is None:  # nothing has arrived
                scan = None
            case "open":
                latency_until_s = open_until_s = now_s
            case "failed":
                served_arm = None
            case "cancelled":
                error = error or None
            case "cut":
                pass  # no latency: it was not answered whole
            case _:
                assert_never(outcome)
        answer_id = scan.answer_id if scan else None
        if is_rejected:  # stable's answer is not of the first attempt, and a rejection is no answer
            scan = latency_until_s = None
            is_empty = False
        is_stream = scan is not None and scan.is_stream
        return RequestRecord(
            seq=0,
            request_id=self.request_id,
            answer_id=answer_id,
            unit=assignment.unit,
            bucket=assignment.bucket,
            arm=assignment.arm,
            w=assignment.w,
            assigned_by=assignment.assigned_by,
            stage=self._table.stage,
            rollout=self._table.rollout,
            at_s=self._start.at_s,
            done_at_s=self._start.at_s + now_s - self._start.now_s,
            status=status,
            outcome=outcome,
            served_arm=served_arm,
            error=error,
            cause=cause,
            latency_ms=self._ms_since_start(latency_until_s),
            ttft_ms=self._ms_since_start(self._first_byte_s) if is_stream else None,
            itl_ms=self._itl_ms(open_until_s) if is_stream else None,
            prompt_tokens=scan.prompt_tokens if scan else None,
            completion_tokens=scan.completion_tokens if scan else None,
            finish_reason=scan.finish_reason if scan else None,
            empty=is_empty,
            path=self._request.path,
            router=self._context.router,
            epoch=self._table.epoch,
            revision=self._table.revision,
            body_bytes=len(self._request.body),
            rejected=True if is_rejected else (None if error is None else False),
            retries=max(0, self._attempts.count - 1),
        )

    def _error_of_first_attempt(self, cause: str | None) -> tuple[bool | None, str | None]:
        """(error, cause) of the first attempt; `cause`: of the answer that the client got."""
        if self._attempts.first_cause is not None:
            return True, self._attempts.first_cause
        if self._attempts.first_4xx is not None:
            return False, f"status {self._attempts.first_4xx}"
        if self._attempts.has_fallen_back:  # it was fenced
            return (False if cause is None else None), None
        return cause is not None, cause

    def _itl_ms(self, open_until_s: float | None) -> float | None:
        """Mean gap between events. An open stream's current gap counts, or a stall would look fast."""
        if self._scan is None or self._first_byte_s is None or self._last_byte_s is None:
            return None
        gaps = self._scan.events - (1 if open_until_s is None else 0)
        until_s = self._last_byte_s if open_until_s is None else open_until_s
        return (until_s - self._first_byte_s) * 1000 / gaps if gaps > 0 else None

    def _ms_since_start(self, moment_s: float | None) -> float | None:
        return None if moment_s is None else (moment_s - self._start.now_s) * 1000
