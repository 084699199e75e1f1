"""Feedback of users on the answers of this router, on its way to the records log. Pure: time is a parameter.

Rules:
1. An answer whose record was made here of late is known by its request id and by its own id. The first vote
   on it for a metric counts; another one, under either id, is repeated.
2. Another id may be of an answer of another router of the service, or invented. UNKNOWN_PER_S of these are
   taken of one client, and ALL_UNKNOWN_PER_S of all, so that a flood of inventions fills no memory of the
   log's readers, and keeps nobody else's votes out.
3. What waits is bounded: beyond WAITING_LIMIT a vote is refused, and its sender told to try again.
4. The votes of one request are checked together before any is taken: all are, or none is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from serving.messages import RequestRecord, ScoreRecord

KNOWN_LIMIT = 20_000  # answers, with two ids each
VOTED_LIMIT = 40_000  # answer and metric
WAITING_LIMIT = 5_000  # scores that no batch holds yet
UNKNOWN_PER_S, UNKNOWN_AT_ONCE = 20.0, 100.0  # of one client; all of one request may be unknown
ALL_UNKNOWN_PER_S, ALL_UNKNOWN_AT_ONCE = 200.0, 1_000.0  # of all clients
# Clients whose unknown votes are counted each; above it the one that voted longest ago is forgotten.
CLIENTS_LIMIT = 1_000

Vote: TypeAlias = tuple[str, str, float]  # id, metric, value


class VotesWaiting(Exception):
    """Votes were not taken: too many wait, or too many name answers that this router does not know."""


@dataclass(slots=True)
class _Bucket:
    """Votes on unknown answers that may be taken now: `spare`, as of `at_s`."""

    per_s: float
    at_once: float
    spare: float
    at_s: float

    def filled(self, now_s: float) -> float:
        """How many now."""
        self.spare = min(self.spare + max(now_s - self.at_s, 0.0) * self.per_s, self.at_once)
        self.at_s = now_s
        return self.spare


@dataclass(slots=True, eq=False)
class Votes:
    """Those of one router and service."""

    waiting: deque[ScoreRecord] = field(default_factory=deque)
    are_kept: bool = True  # somebody reads them
    _known: OrderedDict[str, str] = field(default_factory=OrderedDict)  # request id, by that and by answer id
    _voted: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    _unknown: _Bucket = field(
        default_factory=lambda: _Bucket(ALL_UNKNOWN_PER_S, ALL_UNKNOWN_AT_ONCE, ALL_UNKNOWN_AT_ONCE, 0.0)
    )
    _unknown_of: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)  # by client

    def answered(self, record: RequestRecord) -> None:
        """This request has its record."""
        if not self.are_kept:
            return
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

    def check(self, votes: Sequence[Vote], *, client: str, now_s: float) -> None:
        """Raises VotesWaiting unless all these can be taken now. client: its name; now_s: boot clock."""
        new = {(self._known.get(id, id), metric): id in self._known for id, metric, _ in votes}
        is_known = [known for key, known in new.items() if key not in self._voted]
        if len(self.waiting) + len(is_known) > WAITING_LIMIT:
            raise VotesWaiting("too much feedback waits for the records log")
        unknown = is_known.count(False)
        if unknown and min(one.filled(now_s) for one in self._buckets(client, now_s)) < unknown:
            raise VotesWaiting("too much feedback on answers that this router does not know")

    def add(self, vote: Vote, *, client: str, now_s: float, wall_s: float) -> bool:
        """Take one vote that has been checked; False: it repeats another."""
        id, metric, value = vote
        request_id = self._known.get(id, id)
        if (request_id, metric) in self._voted:
            return False
        if id not in self._known:
            for one in self._buckets(client, now_s):
                one.spare -= 1.0
        self._voted[request_id, metric] = None
        if len(self._voted) > VOTED_LIMIT:
            self._voted.popitem(last=False)
        self.waiting.append(ScoreRecord(0, request_id, metric, value, wall_s))
        return True

    def _buckets(self, client: str, now_s: float) -> tuple[_Bucket, _Bucket]:
        """The client's and that of all."""
        own = self._unknown_of.pop(client, None)
        own = own or _Bucket(UNKNOWN_PER_S, UNKNOWN_AT_ONCE, UNKNOWN_AT_ONCE, now_s)
        self._unknown_of[client] = own
        if len(self._unknown_of) > CLIENTS_LIMIT:
            self._unknown_of.popitem(last=False)
        return own, self._unknown

    def take(self, limit: int) -> tuple[ScoreRecord, ...]:
        """The oldest that wait, so many at most."""
        return tuple(self.waiting.popleft() for _ in range(min(len(self.waiting), limit)))
