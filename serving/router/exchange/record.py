"""The record of one request, from its attempts and from what has been seen of its answer. Pure.

Rules:
1. `error`, `rejected` and `cause` are of the first attempt on the assigned arm, whatever a repeat, stable or
   a takeover did; one rule for both arms. A rejected request has no latency: it is no answer.
2. Timestamps are those of the engine's bytes, by the same code for both arms, whether an answer was held back
   or not. The time to the first token is that of the first whole event with content. The time for which the
   first attempt waited for its connection is in neither (`connect_ms`): the arm with the smaller weight finds
   one open less often, whatever its engine is.
3. A first content later than the canary's limit to it is an error on either arm, whatever the user gets: the
   canary is replaced there, stable is waited for. What the router's own stop ends is no error of either.
4. A request still open at its deadline is recorded as open, with that latency, and as an error if nothing of
   the answer has arrived.
5. A stream that is held back if it is the canary's (`cover.py`) is recorded alike on both arms, whenever its
   client leaves after the first content. The canary's shows nothing until its end, so that only clients of
   stable could stop reading in mid-answer. Such an answer is read to its end, for the record alone. For the
   same reason no client that reads slowly holds it up (`relay.py`). Before the first content the clients of
   both arms are sent the same keep-alives.
6. What is whole but for its usage is recorded as the assigned arm gave it: neither the usage that another
   engine adds nor another engine's whole answer changes its times and counts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from serving.messages import CANARY, Outcome, RequestRecord, RouteTable, unfrozen
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.context import RouterContext, Start
from serving.router.exchange.usable import failure_of

_Unfrozen = unfrozen(RequestRecord)

End: TypeAlias = tuple[Outcome, str | None, int | None]  # (outcome, cause of an error, status)


@dataclass(slots=True)
class Seen:
    """What has been seen of a request's answer so far. None: nothing yet."""

    scan: AnswerScan | None = None
    first_byte_s: float | None = None
    last_byte_s: float | None = None
    takeover_at: int | None = None
    taken_over_by: int | None = None
    covered: bool | None = None
    connect_s: float | None = None  # until the first attempt was written; None: it was not
    is_stopped: bool = False  # the router ended it, because it was stopped itself
    own: Seen | None = None  # of an answer that was whole but for its usage, which another then gave

    @property
    def is_stream(self) -> bool:
        """True when the current answer is a stream."""
        return self.scan is not None and self.scan.is_stream

    @property
    def is_known_stream(self) -> bool:
        """True when its first bytes say so too: a whole answer may be named a stream."""
        return self.scan is not None and self.scan.is_stream and self.scan.is_known

    @property
    def error(self) -> str | None:
        """What is wrong with the answer, whatever may still come of it; None: nothing."""
        scan = self.scan
        is_known = scan is not None and (scan.has_error or scan.is_malformed or scan.is_whole)
        return scan.defect if scan is not None and is_known else None

    def forget(self, *, is_whole: bool) -> None:
        """The attempt is of no use to the client, who had nothing of it; is_whole: but for its usage."""
        if is_whole:
            self._keep()
        self.scan = self.first_byte_s = self.last_byte_s = self.covered = None

    def cut(self, tokens: int, *, is_whole: bool) -> None:
        """Another continues the answer, of which the client has these tokens; is_whole: adds its usage."""
        if is_whole:
            self._keep()
        else:
            self.takeover_at = tokens

    def _keep(self) -> None:
        if self.own is None:
            self.own = copy.copy(self)
            self.own.scan = copy.copy(self.scan)  # which goes on counting
            if self.scan is not None:
                self.scan.excerpt = None


def record_of(
    start: Start, context: RouterContext, attempts: Attempts, seen: Seen, end: End, *, now_s: float
) -> RequestRecord:
    """The record of a request that ended so at `now_s`, which is not after its deadline."""
    assignment, table = start.assignment, start.table
    outcome, cause, status = end
    given, own = seen.scan, seen.own
    if own is not None:
        seen, cause = own, own.scan.defect if own.scan is not None else None
        outcome = "answered" if outcome in ("cancelled", "open") else outcome
    scan = seen.scan
    has_fallen_back = attempts.has_fallen_back and not attempts.was_whole
    if outcome == "answered" and has_fallen_back:
        outcome = "fallback" if attempts.first_cause or attempts.first_4xx else "fenced"
    is_late = not has_fallen_back and _is_late(start, context, attempts, seen, now_s)
    error, cause = _error_of_first_attempt(attempts, cause, has_fallen_back=has_fallen_back)
    if is_late and not error:
        error, cause = True, "timeout"
    is_unknown = seen.is_stopped and outcome in ("failed", "cut", "fenced")
    is_unknown = is_unknown and not (is_late or attempts.first_cause or attempts.first_4xx)
    if is_unknown:  # how the first attempt would have ended
        error = cause = None
    is_rejected = attempts.first_4xx is not None and not is_late
    is_own = attempts.was_whole and not attempts.was_redone
    served_arm = None if status is None else assignment.arm if is_own else attempts.arm
    latency_until_s: float | None = None
    open_until_s: float | None = None
    is_empty = False
    match outcome:
        case "answered" | "fallback" | "fenced":
            latency_until_s = seen.last_byte_s or now_s
            is_empty = scan is not None and scan.is_empty
        case "open" if status is None:  # nothing has arrived
            scan = None
        case "open":
            open_until_s = now_s
            latency_until_s = now_s + (seen.connect_s or 0.0)  # the same bound for all
        case "failed":
            served_arm = None
        case "cancelled" if error is False and not is_rejected:
            error = None
        case "cancelled":
            pass  # known before the client left
        case "cut":
            pass  # no latency: it was not answered whole
        case _:
            assert_never(outcome)
    answer_id = given.answer_id if given is not None and scan is not None else None
    if own is not None:
        latency_until_s = own.last_byte_s
    if is_rejected or is_unknown or outcome == "fenced":  # not, or not whole, of the first attempt
        scan = latency_until_s = None
        is_empty = False
    is_stream = scan is not None and scan.is_stream
    latency_ms = ttft_ms = None
    connect_s = seen.connect_s or 0.0
    if latency_until_s is not None:
        latency_ms = (latency_until_s - start.now_s - connect_s) * 1000
    if is_stream and seen.first_byte_s is not None:
        ttft_ms = (seen.first_byte_s - start.now_s - connect_s) * 1000
    record = _Unfrozen(
        seq=0,
        request_id=start.request_id,
        answer_id=answer_id,
        unit=assignment.unit,
        bucket=assignment.bucket,
        arm=assignment.arm,
        w=assignment.w,
        assigned_by=assignment.assigned_by,
        stage=table.stage,
        rollout=table.rollout,
        at_s=start.at_s,
        done_at_s=start.at_s + now_s - start.now_s,
        status=status,
        outcome=outcome,
        served_arm=served_arm,
        error=error,
        cause=cause,
        latency_ms=latency_ms,
        ttft_ms=ttft_ms,
        itl_ms=_itl_ms(seen, open_until_s) if is_stream else None,
        prompt_tokens=scan.prompt_tokens if scan else None,
        completion_tokens=scan.completion_tokens if scan else None,
        finish_reason=scan.finish_reason if scan else None,
        empty=is_empty,
        path=start.request.target.path,
        router=context.router,
        epoch=table.epoch,
        revision=table.revision,
        body_bytes=start.body_bytes,
        rejected=True if is_rejected else (None if error is None else False),
        retries=len(attempts.tried) - 1 if attempts.tried else 0,
        attempts=attempts.records,
        takeover_at=seen.takeover_at,
        taken_over_by=seen.taken_over_by,
        covered=seen.covered,
        connect_ms=None if seen.connect_s is None else seen.connect_s * 1000,
        version=_version(table, assignment.arm),
        judged=start.is_judged,
        cached_tokens=scan.cached_tokens if scan else None,
    )
    record.__class__ = RequestRecord
    return record


def _version(table: RouteTable, arm: int) -> str | None:
    """The version that the arm was when the request was assigned; None: the table has none."""
    assigned = table.canary if arm == CANARY else table.stable
    return assigned.version if assigned is not None else None


def end_at_deadline(seen: Seen, status: int | None, deadline_s: float) -> End:
    """How a request that had not ended by its deadline is recorded."""
    seen = seen.own or seen
    scan, last_byte_s = seen.scan, seen.last_byte_s
    if seen.first_byte_s is None or seen.first_byte_s >= deadline_s:
        return "open", "silent", None
    is_whole = scan is not None and scan.is_finished
    if is_whole and last_byte_s is not None and last_byte_s < deadline_s:
        # The client reads slowly, or the engine does not close the connection.
        return "answered", scan.defect if scan else None, status
    failure = failure_of(status)
    if failure is not None:
        return "open", failure, status
    return "open", "error in the answer" if scan is not None and scan.has_error else None, status


def _is_late(start: Start, context: RouterContext, attempts: Attempts, seen: Seen, now_s: float) -> bool:
    """Whether the first attempt, which has not failed, gave no content within the canary's limit."""
    assignment = start.assignment
    if assignment.canary is None or assignment.is_lookup or attempts.first_cause is not None:
        return False
    limits = context.limits
    limit_s = limits.canary_stream_s if start.streams else limits.canary_whole_s
    first_s = now_s if seen.first_byte_s is None else seen.first_byte_s
    return first_s - start.now_s - (seen.connect_s or 0.0) > limit_s


def _error_of_first_attempt(
    attempts: Attempts, cause: str | None, *, has_fallen_back: bool
) -> tuple[bool | None, str | None]:
    """(error, cause) of the first attempt; `cause`: of the answer that the client got."""
    if attempts.first_cause is not None:
        return True, attempts.first_cause
    if attempts.first_4xx is not None:
        return False, f"status {attempts.first_4xx}"
    if has_fallen_back:  # it was fenced
        return (False if cause is None else None), None
    return cause is not None, cause


def _itl_ms(seen: Seen, open_until_s: float | None) -> float | None:
    """Mean gap between events. An open stream's current gap counts, or a stall would look fast."""
    if seen.scan is None or seen.first_byte_s is None or seen.last_byte_s is None:
        return None
    gaps = seen.scan.events - (1 if open_until_s is None else 0)
    until_s = seen.last_byte_s if open_until_s is None else open_until_s
    return (until_s - seen.first_byte_s) * 1000 / gaps if gaps > 0 else None
