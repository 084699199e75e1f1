"""State of one request: next replica to try, meaning of a failure, final record. No socket, no clock.

The front reports events to an `Exchange` (`failed`, `answered`, `received`, `ended`, `cut_off`, `refused`,
`cancelled`), the router `record_open`; the exchange decides what to do next (`next_attempt`, `may_start`).

Rules:
1. The arm is assigned before the exchange begins; the record keeps it whatever happens (intention to treat).
2. A canary request starts only while the router's lease holds and the assigned canary is still published.
   `may_start` checks that when the head is about to be written, not when the replica is chosen.
3. The record's `error` and `rejected` are the outcome of the first attempt (`attempts.py`, which also decides
   about repeats). A rejected request has no latency: it is no answer. `retries`, `served_arm`, `outcome` and
   `status` record what became of the request.
4. A canary that does not answer before its first byte, or answers 4xx, is replaced by stable, whose answer
   the user gets. A refusal by the canary's fence is no evidence about the version.
5. A request still open after `settle_s` is recorded as open, with that latency, and as an error if no byte of
   the answer has arrived. It continues and counts as in flight, but its end is not recorded.
6. Timestamps are taken when bytes arrive from the engine, by the same code for both arms.

Clocks: `now_s` is CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

from typing import assert_never

from serving.credentials import SECRET_HEADER
from serving.messages import CANARY, STABLE, Arm, Outcome, Replica, RequestRecord
from serving.router.answer_scan import AnswerScan
from serving.router.attempts import Attempts, failure_of
from serving.router.headers import OWN_PREFIX, REQUEST_ID, RawHeaders, forwarded, returned, value_of
from serving.router.model_name import NotRenamed, body_with_model
from serving.router.types import Attempt, Failure, Head, Refusal, RouterContext, Start
from serving.targets import Endpoint

HOLD_LIMIT = 1 << 20  # bytes; a whole answer up to this size is passed on only when it is complete


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

    def failed(self, why: Failure) -> None:
        """The current attempt failed before anything was sent to the client."""
        self._require(self._attempts.replica is not None, "failed")
        self._release()
        self._scan = self._first_byte_s = self._last_byte_s = None
        self._is_key_refused = why == "key refused" and self._attempts.arm == STABLE
        self._attempts.failed(why)

    def answered(self, status: int, headers: RawHeaders) -> Head | None:
        """An engine sent its head. None: discard this answer, close it and call `next_attempt`."""
        self._require(self._attempts.replica is not None, "answered")
        arm = self._attempts.current_arm
        refused = value_of(headers, OWN_PREFIX + b"refused") if arm is not None and arm.has_fence else None
        if refused is not None:
            # Sent by the engine's front, not by the engine: a fence, closing, loading, a wrong secret.
            self.failed("withheld" if refused == "fence" else "refused")
            return None
        if arm is not None and arm.api_key is not None and status in (401, 403):
            # The operator's fault: the client's credentials were never sent.
            self.failed("key refused")
            return None
        if not self._attempts.is_answer(status):
            self._release()
            return None
        self._status = status
        kind = (value_of(headers, b"content-type") or "").lower()
        length = value_of(headers, b"content-length")
        if self._start.is_eligible and status == 200:
            self._scan = AnswerScan(self._request.path, kind)
        own_id = value_of(self._request.headers, REQUEST_ID)
        hold = length is not None and length.isdecimal() and int(length) <= HOLD_LIMIT
        return Head(status, returned(headers, request_id=own_id) + self._own_headers(), hold)

    # ---- the body

    def received(self, data: bytes, *, now_s: float) -> bool:
        """Bytes arrived; b'' when the body ended without any. False: unusable, report `failed`.

        Unusable: a stream without a byte, or a canary's stream that begins with an error.
        """
        self._require(self._status is not None, "received")
        if not data:
            return self._scan is None or not self._scan.is_stream
        is_first = self._first_byte_s is None
        if is_first:
            self._first_byte_s = now_s
        self._last_byte_s = now_s
        if self._scan is None:
            return True
        self._scan.feed(data)
        if is_first and self._attempts.arm == CANARY and self._scan.has_error and not self._scan.has_content:
            self._first_byte_s = self._last_byte_s = None
            return False
        return True

    def ended(self, *, now_s: float) -> bytes:
        """The body ended as its framing declared. An error event for the client if the answer is cut."""
        cause = self._scan.end() if self._scan else None
        failure = failure_of(self._status)
        if failure is not None:
            self._finish("failed", failure, now_s)
            return b""
        self._finish("cut" if cause == "cut" else "answered", cause, now_s)
        return self._error_event() if cause == "cut" else b""

    def cut_off(self, *, now_s: float) -> bytes:
        """The connection broke after the client had been sent something.

        An error event for the client; b'': its connection must be broken too.
        """
        self._finish("cut", "cut", now_s)
        return self._error_event()

    def _error_event(self) -> bytes:
        """An event on which OpenAI clients raise; b'' where the stream is not between two events."""
        if self._scan is None or not self._scan.is_between_events:
            return b""
        message = f"the answer of service {self._context.service} was cut before its end; send it again"
        return b"data: " + Refusal(502, "cut", message).body() + b"\n\n"

    def refused(self, refusal: Refusal, *, now_s: float) -> None:
        """The client was sent the router's own error."""
        self._status = refusal.status
        self._finish("failed", "no answer", now_s)

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
        limits = self._context.limits
        canary_s = limits.canary_stream_s if self._start.streams else limits.canary_whole_s
        return Attempt(
            self._attempts.arm,
            Endpoint.parsed(replica.url).url(self._request.target),
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
