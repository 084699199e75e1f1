"""A stream that broke off, from then until its end: which engine continues it, and what the client gets.

The part of an exchange after its rule 4 (`exchange.py`), which asks it in place of deciding itself. What is
asked of the engine, and how its answer is read, is in `continuation.py`. No socket, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.messages import Arm, Outcome
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.attempts import REPEATED_STATUSES, Attempts
from serving.router.exchange.cover import Cover
from serving.router.exchange.outgoing import cut_event
from serving.router.exchange.record import Seen
from serving.router.exchange.sending import Sender, refused_by_front
from serving.router.exchange.takeover import DONE
from serving.router.headers import RawHeaders
from serving.router.types import Action, Attempt, Deliver, Failure, Step


@dataclass(frozen=True, slots=True)
class Ending:
    """How the request ends, and the last bytes of its stream."""

    outcome: Outcome
    cause: str | None  # of an error; None: there is none
    data: bytes


class ContinuedStream:
    """One stream that another engine continues."""

    __slots__ = ("_attempts", "_cover", "_one", "_scan", "_seen", "_sender", "_service", "has_begun")

    def __init__(
        self, scan: AnswerScan, cover: Cover, attempts: Attempts, sender: Sender, seen: Seen, *, service: str
    ) -> None:
        """scan: of what the client has had, between two events."""
        self._one = cover.continuation(scan)
        self._scan = scan
        self._cover = cover
        self._attempts = attempts
        self._sender = sender
        self._seen = seen
        self._service = service
        self.has_begun = False  # the current step has answered with content
        is_whole = scan.is_finished and not scan.has_error
        seen.cut(self._one.sent, is_whole=is_whole)
        attempts.release()
        attempts.cut(self._one.sent, is_whole=is_whole)

    def next_attempt(self) -> Attempt | Ending:
        """What is asked now, of which engine; or the end."""
        if not self._one.is_possible:
            return self._not_continued()
        if (last := self._one.closing()) is not None:
            return self._whole(last)
        arm, replica = self._attempts.current_arm, self._attempts.replica
        if replica is None:
            arm, replica = self._attempts.begin() or (None, None)
        if arm is None or replica is None or arm.external:
            self._attempts.release()
            return self._not_continued()
        return self._sender.send(arm, replica, self._one)

    def answered(self, arm: Arm | None, status: int, headers: RawHeaders) -> Step:
        """An engine sent its head."""
        why: Failure | None = refused_by_front(arm, headers)
        if why is None and arm is not None:
            self._cover.learn(arm, headers)
        if why is None and not self._one.answered(status, headers):
            why = "refused" if status in REPEATED_STATUSES else "malformed"
        return Step.HOLD if why is None else self._failed(why)

    def received(self, data: bytes, now_s: float) -> Action:
        """Bytes of its body arrived."""
        one = self._one
        if one.has_error:  # after its finish: it has only to end
            return Step.HOLD
        events = one.received(data)
        if events:
            self._seen.last_byte_s, self.has_begun = now_s, True
        if one.has_error and not one.has_passed_finish:
            again = self._failed("cut")
            return Deliver(None, events, "again") if events else again
        return Deliver(None, events) if events else Step.HOLD

    def ended(self) -> Step | Ending:
        """Its body ended."""
        if not self._one.is_tokenizing:
            return self.broken("cut")
        return Step.AGAIN if self._one.tokenized() else self._failed("malformed")

    def broken(self, why: Failure) -> Step | Ending:
        """The attempt failed."""
        last = self._one.ended()
        return self._failed(why) if last is None else self._whole(last)

    def stalled(self) -> bool:
        """The engine has sent nothing for long; True: the attempt is ended."""
        return self._one.is_whole or self._attempts.can_continue()

    def _failed(self, why: Failure) -> Step:
        self._attempts.release()
        self._one.failed()
        self.has_begun = False
        self._attempts.failed(why)
        return Step.AGAIN

    def _whole(self, last: bytes) -> Ending:
        if self._seen.takeover_at is not None:
            self._seen.taken_over_by = self._attempts.arm
        return Ending("answered", None, last)

    def _not_continued(self) -> Ending:
        """No engine continues: an error event, unless only the usage is missing."""
        if self._scan.is_finished:
            return Ending("answered", None, DONE)
        return Ending("cut", "cut", cut_event(self._service, self._scan))
