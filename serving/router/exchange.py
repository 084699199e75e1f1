"""One request on its way: which replica next, what a failure means, what is recorded. No socket, no clock.

An `Exchange` is told what happens (`failed`, `answered`, `received`, `ended`, `cut_off`, `refused`,
`cancelled`, `overdue`) and says what to do (`next_try`, `may_start`).

Rules:
1. The arm was drawn before; nothing that happens here changes it in the record (intention to treat).
2. A canary request starts only while the router's lease holds and the canary that drew it is still published.
   That is asked when the head is about to be written (`may_start`), not when the replica was chosen.
3. Before its first byte a canary that fails is replaced by stable; the failure stays the canary's. A refusal
   by the canary's fence says nothing about the version: stable serves, no error.
4. A connection that failed is tried once more on the same arm, on another replica if there is one: a pooled
   connection may have been closed by the peer. Stable is also tried elsewhere after 429, 502, 503, 504.
5. Stable never falls back to a canary.
6. What is open after `settle_s` is recorded as it stands: a wait of that length, an error if not one byte of
   the answer has come. It goes on, still counted as in flight; how it ends is recorded nowhere.
7. Times are taken when bytes arrive from the engine, on both arms by the same code.

Clocks: `now_s` is CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from serving.messages import CANARY, STABLE, Arm, Outcome, Replica, RequestRecord
from serving.router.answer_scan import AnswerScan
from serving.router.assignment import hash64
from serving.router.headers import OWN_PREFIX, RawHeaders, forwarded, returned, value_of
from serving.router.types import Draw, Head, Limits, Refusal, Request, RouterContext, Start, Try

__all__ = [
    "Draw",
    "Exchange",
    "Failure",
    "Head",
    "Limits",
    "Refusal",
    "Request",
    "RouterContext",
    "Start",
    "Try",
]

MAX_TRIES = 4  # of one request, both arms together
HOLD_LIMIT = 1 << 20  # bytes; a whole answer up to this size is passed on only when it is complete

Failure: TypeAlias = Literal["refused", "reset", "timeout", "cut", "withheld", "error in the answer"]
_AGAIN: tuple[frozenset[str], frozenset[str]] = (  # by arm: another connection may help
    frozenset({"refused", "reset", "cut"}),
    frozenset({"refused", "reset"}),
)
_ELSEWHERE = frozenset({429, 502, 503, 504})


class Exchange:
    """One request on its way. Events are told in order; an illegal one raises RuntimeError."""

    def __init__(self, desk: RouterContext, start: Start) -> None:
        self.request_id = start.request_id
        self._desk = desk
        self._start = start
        self._table = start.table
        self._request = start.request
        self._draw = start.draw
        self._arm = start.draw.arm
        self._tried: list[str] = []  # addresses, of the present arm
        self._tries = 0
        self._again = True  # one more connection on this arm is allowed
        self._replica: Replica | None = None  # where the present try is
        self._status: int | None = None
        self._canary_cause: str | None = None  # why the canary did not answer; 'fenced' is no error
        self._scan: AnswerScan | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._is_over = False
        self._is_told = not start.recorded
        self.settles_at_s = start.now_s + desk.limits.settle_s

    @property
    def is_over(self) -> bool:
        """True when the request has ended, one way or another."""
        return self._is_over

    # ---- trying

    def next_try(self) -> Try | Refusal:
        """Where to send the request now, or what to answer when nobody is left."""
        self._must(self._replica is None, "next_try")
        while self._tries < MAX_TRIES:
            arm = self._present_arm()
            replica = self._choose(arm) if arm else None
            if arm is not None and replica is not None:
                return self._send(arm, replica)
            if self._arm == STABLE:
                break
            self._to_stable(self._canary_cause or "refused")
        stable = self._present_arm()
        version = stable.version if stable else "none"
        message = f"service {self._desk.service}: no replica of stable version {version} answers; retry"
        return Refusal(503, "no_capacity", message, tuple(self._own_headers()), retry_after_s=1)

    def may_start(self, now_s: float) -> bool:
        """Asked when the head is about to be written: False withdraws a canary request at the last moment."""
        return self._arm == STABLE or self._desk.may_start(self._draw.canary, now_s)

    def failed(self, why: Failure) -> None:
        """The present try came to nothing, and the client has been sent nothing."""
        self._must(self._replica is not None, "failed")
        self._release()
        self._scan = self._first_s = self._last_s = None
        if why in _AGAIN[self._arm] and self._again:
            # Stable goes through all its replicas that refuse; what may have started work is repeated once.
            self._again = why == "refused" and self._arm == STABLE
            if why != "refused" and not self._untried():
                self._tried.clear()
            self._canary_cause = why if self._arm == CANARY else self._canary_cause
        elif self._arm == CANARY:
            self._to_stable((self._canary_cause or "fenced") if why == "withheld" else why)

    def answered(self, status: int, headers: RawHeaders) -> Head | None:
        """An engine sent its head. None: do not use it, close it and ask `next_try`."""
        self._must(self._replica is not None, "answered")
        refused = value_of(headers, OWN_PREFIX + b"refused")
        if refused is not None:
            # The engine's own front spoke, not the engine: a fence, closing, still loading, a wrong secret.
            self.failed("withheld" if refused == "fence" else "refused")
            return None
        if self._arm == CANARY and (status >= 500 or status == 429):
            self._release()
            self._to_stable(f"status {status}")
            return None
        if self._arm == STABLE and status in _ELSEWHERE and self._untried() and self._tries < MAX_TRIES:
            self._release()
            return None
        self._status = status
        kind = (value_of(headers, b"content-type") or "").lower()
        length = value_of(headers, b"content-length")
        if self._start.recorded and status == 200:
            self._scan = AnswerScan(self._request.path, kind)
        hold = length is not None and length.isdecimal() and int(length) <= HOLD_LIMIT
        return Head(status, returned(headers) + self._own_headers(), hold)

    # ---- passing on

    def received(self, data: bytes, *, now_s: float) -> bool:
        """Bytes arrived; b'' when the body ended without any. False: of no use, tell `failed`.

        Of no use is a stream without a byte, and one in which the canary reports an error before all else.
        """
        self._must(self._status is not None, "received")
        if not data:
            return self._scan is None or not self._scan.is_stream
        is_first = self._first_s is None
        if is_first:
            self._first_s = now_s
        self._last_s = now_s
        if self._scan is None:
            return True
        self._scan.feed(data)
        if is_first and self._arm == CANARY and self._scan.has_error and not self._scan.has_content:
            self._first_s = self._last_s = None
            return False
        return True

    def ended(self, *, now_s: float) -> bytes:
        """The body ended as its framing said. Returns what the client should get last, if all is not well."""
        cause = self._scan.end() if self._scan else None
        if self._status is not None and (self._status >= 500 or self._status == 429):
            self._finish("failed", f"status {self._status}", now_s)
            return b""
        self._finish("cut" if cause == "cut" else "answered", cause, now_s)
        return self._goodbye() if cause == "cut" else b""

    def cut_off(self, *, now_s: float) -> bytes:
        """The connection broke after the client had been sent something.

        Returns what the client should get last; b'': its connection must break too.
        """
        self._finish("cut", "cut", now_s)
        return self._goodbye()

    def _goodbye(self) -> bytes:
        """An error event that OpenAI clients raise on, where one can stand: between two events."""
        if self._scan is None or not self._scan.is_between_events:
            return b""
        message = f"the answer of service {self._desk.service} was cut before its end; send it again"
        return b"data: " + Refusal(502, "cut", message).body() + b"\n\n"

    def refused(self, refusal: Refusal, *, now_s: float) -> None:
        """The client was sent the router's own error."""
        self._status = refusal.status
        self._finish("failed", "no answer", now_s)

    def cancelled(self, *, now_s: float) -> None:
        """The client went away."""
        if not self._is_over:
            self._finish("cancelled", None, now_s)

    def overdue(self) -> None:
        """`settles_at_s` has come, and it is still open: records it as it stands."""
        self._must(True, "overdue")
        self._tell("open", None, self._status, self.settles_at_s)

    # ---- inside

    def _send(self, arm: Arm, replica: Replica) -> Try:
        self._replica = replica
        self._tried.append(replica.url)
        self._tries += 1
        self._desk.in_flight[replica.url] = self._desk.in_flight.get(replica.url, 0) + 1
        headers = forwarded(self._request.headers)
        headers.append((b"accept-encoding", b"identity"))
        if arm.fenced:
            headers.append((b"x-canaryctl-secret", self._table.secret.encode()))
            if self._arm == CANARY:
                headers.append((b"x-canaryctl-revision", self._table.mark.encode()))
        limits = self._desk.limits
        canary_s = limits.canary_stream_s if self._start.streams else limits.canary_whole_s
        query = b"?" + self._request.query if self._request.query else b""
        url = replica.url + self._request.path + query.decode("latin-1")
        return Try(self._arm, url, headers, canary_s if self._arm == CANARY else limits.stable_s)

    def _choose(self, arm: Arm) -> Replica | None:
        """Of two replicas preferred by the key (a warm prefix cache), the one with less in flight."""
        left = self._untried()
        if len(left) < 2:
            return left[0] if left else None
        spread = hash64(arm.version, self._draw.key)
        first = spread % len(left)
        second = (first + 1 + (spread // len(left)) % (len(left) - 1)) % len(left)
        return min((left[first], left[second]), key=self._load)

    def _load(self, replica: Replica) -> int:
        # What others have in flight is known as of the last publication, our own as of now.
        return max(replica.in_flight, self._desk.in_flight.get(replica.url, 0))

    def _untried(self) -> list[Replica]:
        arm = self._present_arm()
        return [one for one in arm.replicas if one.url not in self._tried] if arm else []

    def _present_arm(self) -> Arm | None:
        if self._arm == CANARY:
            return self._table.canary
        # Stable as it is now: it may have changed its replicas while the canary kept the request waiting.
        table = self._desk.table or self._table
        return table.stable

    def _to_stable(self, why: str) -> None:
        self._canary_cause = why
        self._arm = STABLE
        self._tried.clear()
        self._again = True

    def _release(self) -> None:
        replica, self._replica = self._replica, None
        if replica is not None:
            left = self._desk.in_flight[replica.url] - 1
            if left:
                self._desk.in_flight[replica.url] = left
            else:
                del self._desk.in_flight[replica.url]
        self._status = None

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        arm = self._present_arm()
        return [
            (b"x-canaryctl-version", (arm.version if arm else "").encode()),
            (b"x-canaryctl-arm", b"canary" if self._arm == CANARY else b"stable"),
            (b"x-canaryctl-revision", self._table.mark.encode()),
            (b"x-canaryctl-request-id", self.request_id.encode()),
        ]

    def _must(self, holds: bool, event: str) -> None:
        if self._is_over or not holds:
            raise RuntimeError(f"{event} is out of order for request {self.request_id}")

    def _finish(self, outcome: Outcome, cause: str | None, now_s: float) -> None:
        self._must(True, outcome)
        status = self._status
        self._release()
        self._is_over = True
        self._tell(outcome, cause, status, now_s)

    def _tell(self, outcome: Outcome, cause: str | None, status: int | None, now_s: float) -> None:
        """Records it, unless that has been done."""
        if self._is_told:
            return
        self._is_told = True
        if now_s >= self.settles_at_s:
            # However late the router looks for what is overdue, the record is the same.
            outcome, cause, status = self._as_it_stands(status)
            now_s = self.settles_at_s
        record = self._record(outcome, cause, status, now_s)
        self._desk.settle(record, drawn_s=self._start.now_s, canary=self._draw.canary)

    def _as_it_stands(self, status: int | None) -> tuple[Outcome, str | None, int | None]:
        """(outcome, cause of an error, status) of a request that is not waited for any longer."""
        scan, last_s = self._scan, self._last_s
        if self._first_s is None or self._first_s >= self.settles_at_s:
            return "open", "silent", None
        if scan is not None and scan.is_finished and last_s is not None and last_s < self.settles_at_s:
            # A client that reads slowly, or an engine that does not hang up.
            return "answered", scan.end(), status
        if status is not None and (status >= 500 or status == 429):
            return "open", f"status {status}", status
        return "open", "error in the answer" if scan is not None and scan.has_error else None, status

    def _record(self, outcome: Outcome, cause: str | None, status: int | None, now_s: float) -> RequestRecord:
        is_open = outcome == "open"
        draw, scan = self._draw, None if is_open and status is None else self._scan
        is_moved = draw.arm == CANARY and self._arm == STABLE
        if is_moved and outcome == "answered":
            outcome = "fenced" if self._canary_cause == "fenced" else "fallback"
        if is_moved:
            error, cause = self._moved(cause)
        else:
            error = cause is not None
        is_begun = is_open and status is not None
        is_answered = outcome in ("answered", "fallback", "fenced")
        is_stream = scan is not None and scan.is_stream
        until_s = now_s if is_open else self._last_s or now_s
        return RequestRecord(
            seq=0,
            request_id=self.request_id,
            answer_id=scan.answer_id if scan else None,
            unit=draw.unit,
            bucket=draw.bucket,
            arm=draw.arm,
            w=draw.w,
            assigned_by=draw.assigned_by,
            stage=self._table.stage,
            rollout=self._table.rollout,
            at_s=self._start.at_s,
            done_at_s=self._start.at_s + now_s - self._start.now_s,
            status=status,
            outcome=outcome,
            served_arm=self._arm if status is not None and outcome != "failed" else None,
            error=None if outcome == "cancelled" and not error else error,
            cause=cause if error else None,
            latency_ms=_ms(self._start.now_s, until_s if is_answered or is_begun else None),
            ttft_ms=_ms(self._start.now_s, self._first_s if is_stream else None),
            itl_ms=self._itl_ms(now_s if is_open else None) if is_stream else None,
            prompt_tokens=scan.prompt_tokens if scan else None,
            completion_tokens=scan.completion_tokens if scan else None,
            finish_reason=scan.finish_reason if scan else None,
            empty=scan is not None and is_answered and scan.is_empty,
            path=self._request.path,
            router=self._desk.router,
            epoch=self._table.epoch,
            revision=self._table.revision,
            body_bytes=len(self._request.body),
        )

    def _moved(self, stable_cause: str | None) -> tuple[bool | None, str | None]:
        """(error, cause) of a canary request that stable served: what the canary did, not what stable did."""
        if self._canary_cause != "fenced":
            return True, self._canary_cause
        return (False if stable_cause is None else None), None

    def _itl_ms(self, open_until_s: float | None) -> float | None:
        """Mean gap between events; of an open one with the gap that it is in, or a stall would look fast."""
        if self._scan is None or self._first_s is None or self._last_s is None:
            return None
        gaps = self._scan.events - (1 if open_until_s is None else 0)
        until_s = self._last_s if open_until_s is None else open_until_s
        return (until_s - self._first_s) * 1000 / gaps if gaps > 0 else None


def _ms(since_s: float, until_s: float | None) -> float | None:
    return None if until_s is None else (until_s - since_s) * 1000
