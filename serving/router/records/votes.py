"""Feedback of users on the answers of this router, on its way to the records log. Pure: time is a parameter.

Rules:
1. An answer whose record was made here of late is known by its request id and by its own id. The first vote
   on it for a metric counts; another one, under either id, is repeated.
2. Another id may be of an answer of another router of the service, or invented. UNKNOWN_PER_S of these are
   taken, so that a flood of inventions fills no memory of the log's readers.
3. What waits is bounded: beyond WAITING_LIMIT a vote is refused, and its sender told to try again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from serving.messages import RequestRecord, ScoreRecord

KNOWN_LIMIT = 20_000  # answers, with two ids each
VOTED_LIMIT = 40_000  # answer and metric
WAITING_LIMIT = 5_000  # scores that no batch holds yet
UNKNOWN_PER_S = 20.0


class VotesWaiting(Exception):
    """A vote was not taken: too many wait, or too many name answers that this router does not know."""


@dataclass(slots=True)
class Votes:
    """Those of one router and service."""

    waiting: deque[ScoreRecord] = field(default_factory=deque)
    are_kept: bool = True  # somebody reads them
    _known: OrderedDict[str, str] = field(default_factory=OrderedDict)  # request id, by that and by answer id
    _voted: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    _spare: float = UNKNOWN_PER_S  # votes on unknown answers that may be taken now
    _spare_at_s: float = 0.0

    def answered(self, record: RequestRecord) -> None:
        """This request has its record."""
        known = self._known
        known[record.request_id] = record.request_id
        if record.answer_id is not None:
            # An id stays with the first request that has it, whatever an engine answers later.
            known.setdefault(record.answer_id, record.request_id)
        while len(known) > 2 * KNOWN_LIMIT:
            known.popitem(last=False)

    def knows(self, id: str) -> bool:
        """Whether the answer with this id, or to this request, is one of this router."""
        return id in self._known

    def add(self, id: str, metric: str, value: float, *, now_s: float, wall_s: float) -> bool:
        """Take one vote; False: it repeats another. Raises VotesWaiting. now_s: boot clock."""
        request_id = self._known.get(id, id)
        if (request_id, metric) in self._voted:
            return False
        if len(self.waiting) >= WAITING_LIMIT:
            raise VotesWaiting("too much feedback waits for the records log")
        if id not in self._known:
            self._spare = min(self._spare + (now_s - self._spare_at_s) * UNKNOWN_PER_S, UNKNOWN_PER_S)
            self._spare_at_s = now_s
            if self._spare < 1.0:
                raise VotesWaiting("too much feedback on answers that this router does not know")
            self._spare -= 1.0
        self._voted[request_id, metric] = None
        if len(self._voted) > VOTED_LIMIT:
            self._voted.popitem(last=False)
        self.waiting.append(ScoreRecord(0, request_id, metric, value, wall_s))
        return True

    def take(self, limit: int) -> tuple[ScoreRecord, ...]:
        """The oldest that wait, so many at most."""
        return tuple(self.waiting.popleft() for _ in range(min(len(self.waiting), limit)))
