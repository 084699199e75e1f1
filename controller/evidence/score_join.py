"""Join of scores to their requests, by request id or answer id, whichever of the two comes first in the log.

Invariants: an id stays with the first request that has it, whatever later answers claim; joining the same
events again, in log order, gives the same pairs again and no duplicates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from serving.messages import Event, RequestRecord, ScoreRecord

JOIN_WINDOW_S = 900.0  # how long a score waits for its request, unless a subscriber needs longer
HELD_SCORES = 20_000  # ids of requests that have not come yet
# Of requests that scores may refer to. An id takes about 700 bytes with its half of the record: some 400 MB.
MAX_IDS = 600_000
SCORES_OF_ONE = 64  # of these are held for each id; later ones are dropped: there are not so many metrics


class Joined(NamedTuple):
    """A request with the scores that came before it, or a score that comes after its request."""

    request: RequestRecord
    is_new: bool  # the request itself comes here; False: only its score does
    scores: Sequence[ScoreRecord]  # in log order


class ScoreJoin:
    """Recent requests by id, and scores held until their request comes."""

    def __init__(self) -> None:
        self._requests: OrderedDict[str, RequestRecord] = OrderedDict()  # by request id and answer id
        self._held: OrderedDict[str, dict[int, ScoreRecord]] = OrderedDict()  # id -> seq -> score
        self._scored: dict[str, tuple[str, ...]] = {}  # request id -> metrics that have a score
        # The age at which requests are forgotten, where the bound on ids makes it too early for some scores.
        self.forgotten_after_s: float | None = None

    def join(self, events: Iterable[Event]) -> list[Joined]:
        """The events, joined. A score whose request has not come yet is left out, and comes with it."""
        joined = []
        for event in events:
            if isinstance(event, RequestRecord):
                joined.append(Joined(event, True, self._add(event)))
            elif isinstance(event, ScoreRecord) and (request := self._match(event)) is not None:
                joined.append(Joined(request, False, (event,)))
        return joined

    def forget(self, *, before_s: float, max_ids: int) -> None:
        """Drop held scores received before `before_s`, and the oldest ids beyond `max_ids`.

        Ids of requests assigned since `before_s` are kept beyond `max_ids`, up to MAX_IDS: scores may still
        refer to them.
        """
        while self._held and next(iter(next(iter(self._held.values())).values())).at_s < before_s:
            self._held.popitem(last=False)
        self.forgotten_after_s = None
        while len(self._requests) > max_ids:
            oldest = next(iter(self._requests.values()))
            is_young = oldest.at_s >= before_s
            if is_young and len(self._requests) <= MAX_IDS:
                break
            if is_young:
                newest = next(reversed(self._requests.values()))
                self.forgotten_after_s = max(0.0, newest.at_s - oldest.at_s)
            self._requests.popitem(last=False)
            self._scored.pop(oldest.request_id, None)

    def has(self, id: str) -> bool:
        """True: a request with this request id or answer id is recorded. Safe to call from any thread."""
        return id in self._requests

    def has_score(self, id: str, metric: str) -> bool:
        """True: the request with this id has a score of the metric, which counts. Safe from any thread."""
        request = self._requests.get(id)
        return request is not None and metric in self._scored.get(request.request_id, ())

    def _note(self, request: RequestRecord, scores: Iterable[ScoreRecord]) -> None:
        known = self._scored.get(request.request_id, ())
        new = tuple(dict.fromkeys(score.metric for score in scores if score.metric not in known))
        if new:
            self._scored[request.request_id] = known + new

    def first_held(self) -> int | None:
        """Position of the oldest held score; None: none is held."""
        return min((seq for scores in self._held.values() for seq in scores), default=None)

    def _add(self, record: RequestRecord) -> Sequence[ScoreRecord]:
        held: dict[int, ScoreRecord] = {}
        for id in (record.request_id, record.answer_id):
            if id is not None and self._owns(id, record):
                self._requests[id] = record
                # A held score that comes later in the log is joined when it is read again.
                held |= {seq: score for seq, score in self._held.pop(id, {}).items() if seq < record.seq}
        scores = [held[seq] for seq in sorted(held)]
        self._note(record, scores)
        return scores

    def _owns(self, id: str, record: RequestRecord) -> bool:
        """True unless the id is of an earlier request. A request id, which the router chose, comes first."""
        owner = self._requests.get(id)
        if owner is None:
            return True
        if (owner.request_id == id) != (record.request_id == id):
            return record.request_id == id
        return record.seq <= owner.seq

    def _match(self, score: ScoreRecord) -> RequestRecord | None:
        request = self._requests.get(score.id)
        # When the log is read again, a request may be known that comes after its score.
        if request is not None and request.seq < score.seq:
            self._note(request, (score,))
            return request
        held = self._held.setdefault(score.id, {})
        if len(held) < SCORES_OF_ONE:
            held[score.seq] = score
        if len(self._held) > HELD_SCORES:
            self._held.popitem(last=False)
        return None
