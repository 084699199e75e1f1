"""Join of scores to their requests, by request id or answer id, whichever of the two comes first in the log.

Invariants: an id stays with the first request that has it, whatever later answers claim; joining the same
events again, in log order, gives the same pairs again and no duplicates.
"""

from __future__ import annotations

import heapq
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from serving.messages import Event, RequestRecord, ScoreRecord

JOIN_WINDOW_S = 900.0  # how long a score waits for its request, unless a subscriber needs longer
HELD_SCORES = 20_000  # ids of requests that have not come yet
# Of requests that scores may refer to, of all services of a controller together. An id takes about 700 bytes
# with its half of the record: some 400 MB.
MAX_IDS = 600_000
SCORES_OF_ONE = 64  # of these are held for each id, one a metric; later ones are dropped


class Joined(NamedTuple):
    """A request with the scores that came before it, or a score that comes after its request."""

    request: RequestRecord
    is_new: bool  # the request itself comes here; False: only its score does
    scores: Sequence[ScoreRecord]  # in log order


class IdBudget:
    """Memory bound over the joins of all services: each may hold what the others leave, or an equal share."""

    def __init__(self, max_ids: int | None = None) -> None:
        """max_ids: of all joins together; None: MAX_IDS."""
        self._max_ids = max_ids
        self._joins: weakref.WeakSet[ScoreJoin] = weakref.WeakSet()
        self._lock = threading.Lock()  # services are ticked in threads of their own

    def add(self, join: ScoreJoin) -> None:
        """Count the ids of this join, for as long as it is in use."""
        with self._lock:
            self._joins.add(join)

    def limit(self, join: ScoreJoin) -> int:
        """Ids that this join may hold now, >= 1. One above its share gives way to those below theirs."""
        with self._lock:
            others = [len(one) for one in self._joins if one is not join]
        max_ids = MAX_IDS if self._max_ids is None else self._max_ids
        return max(max_ids // (len(others) + 1), max_ids - sum(others), 1)


class Ages:
    """Ids, the oldest first, in whatever order they were read: a subscriber may begin at the log's start."""

    def __init__(self, at_s_of: Callable[[str], float | None]) -> None:
        """at_s_of: since when an id is known; None: it is no longer."""
        self._at_s_of = at_s_of
        # Also of ids that are not known since then any more. Of one time, in the order of `add`.
        self._heap: list[tuple[float, int, str]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, id: str) -> None:
        """Note an id that has just become known, or is known since another time."""
        at_s = self._at_s_of(id)
        if at_s is not None:
            self._added += 1
            heapq.heappush(self._heap, (at_s, self._added, id))

    def oldest(self) -> tuple[float, str] | None:
        """The oldest id that is known, and since when; None: no id is."""
        while self._heap and self._at_s_of(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return (self._heap[0][0], self._heap[0][2]) if self._heap else None

    def tidy(self, known: int) -> None:
        """Drop what is out of date when there is too much of it. known: number of ids."""
        if len(self._heap) > 2 * known + 1000:
            first = {entry[::2]: entry for entry in sorted(self._heap, reverse=True)}
            self._heap = sorted(entry for entry in first.values() if self._at_s_of(entry[2]) == entry[0])


class ScoreJoin:
    """Recent requests by id, and scores held until their request comes."""

    def __init__(self, budget: IdBudget | None = None) -> None:
        """budget: shared with the joins of other services; None: one of its own."""
        self._budget = IdBudget() if budget is None else budget
        self._budget.add(self)
        self._requests: dict[str, RequestRecord] = {}  # by request id and answer id
        # When a request was read that its router's clock puts later: such a clock keeps no id young.
        self._read_at_s: dict[str, float] = {}
        self._held: dict[str, dict[int, ScoreRecord]] = {}  # id -> seq -> score
        self._ages, self._held_ages = Ages(self._assigned_at_s), Ages(self._held_since_s)
        self._newest_s = 0.0  # of all requests
        self._now_s = math.inf
        self._scored: dict[str, tuple[str, ...]] = {}  # request id -> metrics that have a score
        # The age at which requests are forgotten, where that is too early for some scores: by the bound on
        # ids, or because the log no longer had them when this join began.
        self.forgotten_after_s: float | None = None
        self.missing_until_s = 0.0  # of the requests assigned until then some are not known; 0: all are

    def __len__(self) -> int:
        return len(self._requests)

    def join(self, events: Iterable[Event], *, now_s: float = math.inf) -> list[Joined]:
        """The events, joined. A score whose request has not come yet is left out, and comes with it.

        now_s: the controller's clock; no request counts as assigned after it.
        """
        self._now_s = now_s
        joined = []
        for event in events:
            if isinstance(event, RequestRecord):
                joined.append(Joined(event, True, self._add(event)))
            elif isinstance(event, ScoreRecord) and (request := self._match(event)) is not None:
                joined.append(Joined(request, False, (event,)))
        return joined

    def forget(self, *, before_s: float, max_ids: int) -> None:
        """Drop held scores received before `before_s`, and the oldest ids beyond `max_ids`.

        Ids of requests assigned since `before_s` are kept beyond `max_ids`, up to what the budget allows:
        scores may still refer to them.
        """
        limit = self._budget.limit(self)
        max_ids = min(max_ids, limit)
        while (held := self._held_ages.oldest()) is not None and held[0] < before_s:
            del self._held[held[1]]
        self._held_ages.tidy(len(self._held))
        while len(self._requests) > max_ids and (oldest := self._ages.oldest()) is not None:
            at_s, id = oldest
            is_young = at_s >= before_s
            if is_young and len(self._requests) <= limit:
                break
            if is_young:
                self.miss(at_s)
            self._scored.pop(self._requests.pop(id).request_id, None)
            self._read_at_s.pop(id, None)
        self._ages.tidy(len(self._requests))
        missing_s = self.missing_until_s
        is_missed = missing_s > 0.0 and missing_s >= before_s
        self.forgotten_after_s = max(0.0, self._newest_s - missing_s) if is_missed else None

    def miss(self, until_s: float) -> None:
        """Note that some requests assigned until then are not known."""
        self.missing_until_s = max(self.missing_until_s, until_s)

    def _assigned_at_s(self, id: str) -> float | None:
        request = self._requests.get(id)
        return self._read_at_s.get(id, request.at_s) if request is not None else None

    def _held_since_s(self, id: str) -> float | None:
        held = self._held.get(id)
        return next(iter(held.values())).at_s if held else None

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
                self._own(id, record)
                # A held score that comes later in the log is joined when it is read again.
                held |= {seq: score for seq, score in self._held.pop(id, {}).items() if seq < record.seq}
        scores = [held[seq] for seq in sorted(held)]
        self._note(record, scores)
        return scores

    def _own(self, id: str, record: RequestRecord) -> None:
        before_s = self._assigned_at_s(id)
        self._requests[id] = record
        if record.at_s > self._now_s:
            self._read_at_s.setdefault(id, self._now_s)
        else:
            self._read_at_s.pop(id, None)
        self._newest_s = max(self._newest_s, min(record.at_s, self._now_s))
        if before_s != self._assigned_at_s(id):
            self._ages.add(id)

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
        # Of one metric the first in the log counts; it is read again after a later one.
        same = next((seq for seq, one in held.items() if one.metric == score.metric), None)
        if same is None and len(held) < SCORES_OF_ONE:
            held[score.seq] = score
        elif same is not None and score.seq < same:
            del held[same]
            held[score.seq] = score
        if len(held) == 1:
            self._held_ages.add(score.id)
        if len(self._held) > HELD_SCORES and (oldest := self._held_ages.oldest()) is not None:
            del self._held[oldest[1]]
        return None
