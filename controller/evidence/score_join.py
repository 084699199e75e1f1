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
        """Drop held scores received before `before_s`, and the oldest ids beyond `max_ids`."""
        while self._held and next(iter(next(iter(self._held.values())).values())).at_s < before_s:
            self._held.popitem(last=False)
        while len(self._requests) > max_ids:
            self._requests.popitem(last=False)

    def has(self, id: str) -> bool:
        """True: a request with this request id or answer id is recorded. Safe to call from any thread."""
        return id in self._requests

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
        return [held[seq] for seq in sorted(held)]

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
            return request
        held = self._held.setdefault(score.id, {})
        if len(held) < SCORES_OF_ONE:
            held[score.seq] = score
        if len(self._held) > HELD_SCORES:
            self._held.popitem(last=False)
        return None
