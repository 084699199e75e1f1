"""The client's side of a request: what it has been sent, and what is held back. No socket, no clock.

Rules:
1. Of an answer that fails while it is held back the client has seen nothing: another takes its place.
2. A client that waits for a stream, held or not begun, is sent its head, then comments or pings, which commit
   nobody. What follows is then part of that stream: an answer that is no stream becomes an error event.
"""

from __future__ import annotations

from typing import Literal

from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.held import FREE, HeldBytes
from serving.router.headers import value_of
from serving.router.types import Deliver, Head, Refusal, Request, is_anthropic

HOLD_LIMIT = 1 << 20  # bytes of an answer that are held back at most
# The blank line keeps it apart for clients that split there and look at the first bytes of each part.
KEEP_ALIVE = b": keep-alive\n\n"
# OpenAI's library for Go ended an event at each blank line, here an empty one, on which it fails.
KEEP_ALIVE_GO = b": keep-alive\n"
# Agents on Anthropic's API count events, of which a comment is none, and give up on a stream without any. Its
# pings may come anywhere in a stream, and clients pass over them.
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
UNBUFFERED = (b"x-accel-buffering", b"no")


class Outgoing:
    """What one client has been sent."""

    __slots__ = (
        "_budget",
        "_head",
        "_held",
        "_held_bytes",
        "_is_muted",
        "_is_unread",
        "_kept_bytes",
        "_request",
        "_sent_s",
        "_status",
        "holds_all",
        "is_committed",
        "is_head_sent",
    )

    def __init__(self, now_s: float, budget: HeldBytes, request: Request) -> None:
        self._budget = budget
        self._request = request
        self.is_committed = False  # something of the current answer
        self.is_head_sent = False
        self.holds_all = False  # late commit: until the answer is whole
        self._head: Head | None = None  # of the current answer, not sent yet
        self._status: int | None = None  # of the current answer; None: its head has not come
        self._held: list[bytes] = []
        self._held_bytes = 0  # counted in the budget
        self._kept_bytes = 0  # by the scan of the current answer, counted too
        self._is_muted = False  # what else comes of the answer has no place in the client's stream
        self._is_unread = False  # the client has left
        self._sent_s = now_s  # when it was last sent a keep-alive, or began to wait

    def begin(self, head: Head, *, is_stream: bool = False) -> None:
        """The head of an answer, which is held back."""
        # nginx would collect the events of a stream, and what keeps a client waiting.
        if is_stream and value_of(head.headers, UNBUFFERED[0]) is None:
            head = Head(head.status, [*head.headers, UNBUFFERED])
        self._head, self._status = head, head.status

    def as_stream(self) -> None:
        """The answer whose head is held back is a stream: events may be taken out or added."""
        if (head := self._head) is not None:
            kept = [one for one in head.headers if one[0] not in (b"content-length", b"content-type")]
            self.begin(Head(head.status, [*kept, (b"content-type", b"text/event-stream")]), is_stream=True)

    def hold(self, data: bytes) -> bool:
        """Hold these bytes back; False: they are too many."""
        self._held_bytes += len(data)
        if not self._is_unread:
            self._held.append(data)
            self._budget.total += len(data)
        size = self._held_bytes
        return size <= FREE or (size <= HOLD_LIMIT and not self._budget.is_spent)

    def count(self, scan: AnswerScan) -> bytes:
        """Count what the scan keeps; bytes that it gives up to read, because the budget is spent."""
        budget, size, rest = self._budget, scan.kept_bytes, b""
        budget.total += size - self._kept_bytes
        self._kept_bytes = size
        if size > FREE and budget.is_spent:
            rest = scan.give_up()
            self.count_none()
        return rest

    def count_none(self) -> None:
        """The scan of the current answer keeps nothing any more."""
        self._budget.total -= self._kept_bytes
        self._kept_bytes = 0

    def forget(self) -> None:
        """The answer failed, and the client has seen nothing of it."""
        self._head, self._status, self._held = None, None, []
        self.holds_all = False
        self.count_none()
        self.release()

    def release(self) -> None:
        """Nothing more is held: it is sent, or of no use."""
        if not self._is_unread:
            self._budget.total -= self._held_bytes
        self._held_bytes = 0

    def drop(self) -> None:
        """Nobody reads the answer any more: nothing is kept of it, and what would be held is counted only."""
        self._budget.total -= self._held_bytes
        self._held, self._is_unread = [], True

    def deliver(
        self, data: bytes, then: Literal["more", "end", "break"] = "more", *, is_stream: bool = True
    ) -> Deliver:
        """What was held back, and these bytes. is_stream: of the current answer."""
        head, self._head = self._head, None
        if self._is_muted:
            data = b""
        if self.is_head_sent:
            if not self.is_committed and self._status is not None and not is_stream:
                self._held, self._is_muted = [], True
                text = f"the answer to this request has status {self._status} and is no stream"
                data = Refusal(self._status, "no_stream", text).event(self._request.path)
            head = None
        if self._held:
            data = b"".join([*self._held, data])
            self._held = []
            self.release()
        self.is_committed = self.is_head_sent = True
        return Deliver(head, data, then)

    def is_waiting(self, *, is_stream: bool) -> bool:
        """True while the client has nothing of a stream whose head has come, or of what replaces one.

        Balancers end a connection that is silent for a minute, which a long prompt takes. Both arms alike.
        """
        return ((is_stream and self._head is not None) or self.is_head_sent) and not self.is_committed

    def keep_alive(self, now_s: float, every_s: float, since_s: float | None) -> Deliver | None:
        """What a client that waits is sent, when that is due; None: not yet. since_s: of the last event."""
        if now_s - max(self._sent_s, since_s or 0.0) < every_s or (
            self._head is None and not self.is_head_sent
        ):
            return None
        self._sent_s = now_s
        head, self._head = self._head, None
        if self.is_head_sent:
            head = None
        self.is_head_sent = True
        return Deliver(head, _keep_alive_for(self._request))


def _keep_alive_for(request: Request) -> bytes:
    if is_anthropic(request.path):
        return PING
    return KEEP_ALIVE_GO if value_of(request.headers, b"x-stainless-lang") == "go" else KEEP_ALIVE


def cut_event(service: str, scan: AnswerScan | None) -> bytes:
    """An event on which clients raise; b'' where the stream is not between two events."""
    if scan is None or not scan.is_between_events:
        return b""
    message = f"the answer of service {service} was cut before its end; send it again"
    return Refusal(502, "cut", message).event(scan.path)


def rest_of(scan: AnswerScan | None, rest: bytes | None) -> bytes:
    """What is left of an answer; a last event gets the blank line without which its reader drops it, and a
    message that has stopped the event that says so."""
    if scan is None or not scan.is_stream:
        return rest or b""
    stop = MESSAGE_STOP if scan.lacks_message_stop and not scan.has_error else b""
    return (rest.rstrip(b"\n") + b"\n\n" if rest else b"") + stop
