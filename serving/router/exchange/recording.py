"""The one record of a request: written when it has ended, or is given up as open, or its trial has ended."""

from __future__ import annotations

from serving.judging.signals import REQUEST_LIMIT
from serving.messages import Outcome, RequestRecord
from serving.router.exchange.answer_text_signals import AnswerText
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.context import RouterContext, Start
from serving.router.exchange.record import Seen, end_at_deadline, record_of
from serving.router.exchange.trial import PendingRecord, Trial
from serving.router.upstreams.health import SILENT_S


class Recording:
    """Whether and when a request is recorded; `record.py` says what its record holds."""

    __slots__ = ("_attempts", "_context", "_seen", "_start", "deadline_s", "is_done", "trial")

    def __init__(self, context: RouterContext, start: Start, attempts: Attempts, seen: Seen) -> None:
        self.is_done = not start.is_eligible
        self.deadline_s = start.now_s + context.limits.settle_s  # then a request that is open is recorded so
        self.trial: Trial | None = None  # of the canary that it is drawn for, which is set aside; None: none
        self._context, self._start, self._attempts, self._seen = context, start, attempts, seen

    def open(self, status: int | None) -> None:
        """The request is still open at its deadline."""
        if self._attempts.is_tried:
            self._attempts.tried_aside("silent", None)
        self.write("open", None, status, self.deadline_s)

    def write(self, outcome: Outcome, cause: str | None, status: int | None, now_s: float) -> None:
        """Record this end, unless the request is recorded already."""
        if self.is_done:
            return
        self.is_done, end = True, (outcome, cause, status)
        if outcome == "open" or (outcome == "cancelled" and now_s - self._start.now_s >= SILENT_S):
            self._attempts.silent()
        if now_s >= (deadline_s := self.deadline_s):  # however late the router checks it
            now_s, end = deadline_s, end_at_deadline(self._seen, status, deadline_s)
        parts = self._start, self._context, self._attempts, self._seen, end
        if self.trial is not None and self._attempts.is_tried and outcome not in ("open", "cancelled"):
            PendingRecord(*parts, now_s=now_s, settle_deadline_s=deadline_s).wait(self.trial)
            return
        record = record_of(*parts, now_s=now_s)
        canary = self._start.assignment.canary
        text = self._text(record)
        self._context.on_record(record, assigned_s=self._start.now_s, canary=canary, text=text)

    def _text(self, record: RequestRecord) -> AnswerText | None:
        """The text of the assigned arm's answer, if that was whole at once, but for its usage."""
        own = self._seen.own
        scan = (own or self._seen).scan
        is_own = own is not None or record.served_arm == record.arm
        is_answered = is_own and record.outcome == "answered" and record.error is False
        if scan is None or scan.excerpt is None or scan.is_too_large or not is_answered:
            return None
        body = self._start.request.body
        kept = bytes(body) if len(body) <= REQUEST_LIMIT else None
        start, unread = self._start, self._context.unread
        is_checked = start.is_checked
        if is_checked is None:
            is_checked = unread.may_check(start.client, body, start.now_s)
        form_by = unread.form_by(is_checked=is_checked)
        return AnswerText(kept, scan.excerpt, scan.finish_reason, start.via, start.client, form_by)
