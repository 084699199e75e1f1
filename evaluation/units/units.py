"""Units and their draws: which coin toss a request belongs to, and the probability it was tossed with.

Per-request keys: each request is its own draw, at the logged `w`. Sticky keys: the unit's bucket is fixed,
and each draw reveals an interval [lo, hi) that contains it. At weight `w` the next toss comes up canary with
probability `|[0, w) n [lo, hi)| / (hi - lo)`: for a raise from `v` to `w` that is `(w - v) / (1 - v)` for a
unit last seen on stable, and 1, so no bet, for one seen on the canary. (Betting the plain `w` again
promoted harmful canaries in 54-100 % of runs.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.records import NOT_DRAWN, PER_REQUEST, PINNED, STICKY_KEYS, WORDS_REMEDY, EvidenceError

LEFT_OUT, REQUEST, STICKY, HELD = 0, 1, 2, 3  # HELD: by the affinity token of an earlier draw
SWEEP_EVERY = 4096  # sticky rows
MAX_CACHED = 10_000  # probabilities
_KINDS = ((PER_REQUEST, REQUEST), (STICKY_KEYS, STICKY), (PINNED, HELD), (NOT_DRAWN, LEFT_OUT))


def kind_of(assigned_by: str) -> int:
    """LEFT_OUT, REQUEST, STICKY or HELD for a record's `assigned_by`. Errors: EvidenceError for another word.

    An unknown word is not taken for a sticky key: a forced request would then count as a draw.
    """
    for words, kind in _KINDS:
        if assigned_by in words:
            return kind
    raise EvidenceError(f"assigned_by {assigned_by!r} is unknown; {WORDS_REMEDY}")


def unit_hash(unit: str) -> int:
    """64-bit hash of the unit's name alone, so that a unit keeps its draws when its key's source changes."""
    return int.from_bytes(
        hashlib.blake2b(unit.encode(errors="surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def next_probability(w: float, low: float, high: float) -> float:
    """P(canary) at weight `w` of a unit whose bucket is known to lie in [low, high).

    Check: w=0.25, [0.05, 1) gives (0.25 - 0.05) / 0.95.
    """
    return min(max((min(w, high) - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Assignments:
    """Requests as the router assigned them, in order of assignment. Arrays of equal length.

    `w`: P(canary) as logged. `kind`: see `kind_of`. `unit`: hash of the unit; matters for sticky keys and
    tokens only. `fell_back`: 1 where stable answered for the canary, NaN where unknown.
    """

    at_s: Floats
    arm: NDArray[np.bool_]
    w: Floats
    kind: Ints
    unit: Ints
    stage: Ints
    fell_back: Floats

    def __len__(self) -> int:
        return len(self.at_s)

    def pick(self, rows: slice | Ints) -> Assignments:
        """The chosen requests, in order."""
        return Assignments(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Drawn:
    """For each request: P(canary) of its draw, the number of the draw, and its position in the draw.

    position: 1 for the first request of a draw; 0: not evidence.
    """

    w: Floats
    draw: Ints
    position: Ints


@dataclass(slots=True)
class OpenDraw:
    """A draw of a sticky unit whose session is still open."""

    draw: int
    start_s: float
    requests: int
    arm: int
    w: float


class Units:
    """Ledger of sticky units: one revealed interval each, and the draws whose sessions are still open."""

    __state__ = ("book", "intervals", "open", "contradictions", "sticky_draws", "rows")

    def __init__(self, *, session_requests: int, session_s: float) -> None:
        self._max_requests = session_requests
        self._length_s = session_s
        self.interval_of: dict[int, int] = {}  # unit -> index of its interval
        self.intervals = []
        self.open_draws: dict[int, OpenDraw] = {}  # by unit
        self.contradictions = 0
        self.sticky_draws = 0
        self.rows = 0

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """The revealed intervals, each once, in the order of their first use."""
        return self._intervals

    @intervals.setter
    def intervals(self, intervals: list[tuple[float, float]]) -> None:
        self._intervals = intervals
        self._index_of = {interval: index for index, interval in enumerate(intervals)}
        self._cache: dict[tuple[int, float], float] = {}  # P(canary) by interval and weight

    @property
    def book(self) -> list[Ints]:
        """Units and the indices of their intervals as two arrays, for a snapshot: 9 bytes a unit, not 25."""
        size, columns = len(self.interval_of), (self.interval_of.keys(), self.interval_of.values())
        return [np.fromiter(column, dtype=np.int64, count=size) for column in columns]

    @book.setter
    def book(self, arrays: list[Ints]) -> None:
        units, indices = arrays
        self.interval_of = dict(zip(units.tolist(), indices.tolist(), strict=True))

    @property
    def open(self) -> dict[int, tuple[int, float, int, int, float]]:
        """The open draws as plain values, for a snapshot."""
        return {unit: (d.draw, d.start_s, d.requests, d.arm, d.w) for unit, d in self.open_draws.items()}

    @open.setter
    def open(self, rows: dict[int, tuple[int, float, int, int, float]]) -> None:
        self.open_draws = {unit: OpenDraw(*row) for unit, row in rows.items()}

    def resolve(self, requests: Assignments, seq: Ints) -> Drawn:
        """The draws of the requests. seq: their sequence numbers, of which a draw takes its first one's."""
        own = (requests.kind == REQUEST) & (requests.w < 1.0)
        drawn = Drawn(requests.w.copy(), seq.copy(), own.astype(np.int64))
        rows = np.flatnonzero(requests.kind >= STICKY)
        if len(rows):
            self._resolve_sticky(rows, requests.pick(rows), drawn)
        return drawn

    def _resolve_sticky(self, rows: Ints, requests: Assignments, drawn: Drawn) -> None:
        """Write the draws of sticky and held requests into these rows of `drawn`."""
        arms = requests.arm.astype(np.int64)
        columns = (rows, requests.at_s, arms, requests.w, requests.kind == STICKY, requests.unit)
        for row, at_s, arm, w, is_sticky, unit in zip(*(column.tolist() for column in columns), strict=True):
            # Looked up here, not in a method: most rows are of a unit whose draw is known.
            interval = self.interval_of.get(unit)
            if interval is None:
                is_toss = is_sticky
            else:
                probability = self._cache.get((interval, w))
                if probability is None:
                    probability = self._probability(interval, w)
                # The weight splits what is known of the bucket, or the arm contradicts it.
                is_toss = is_sticky and (0.0 < probability < 1.0 or probability != arm)
            held = None if is_toss else self.open_draws.get(unit)
            if is_toss:
                self._toss(row, at_s, arm, w, unit, drawn)
            elif held is None:
                continue
            elif held.requests >= self._max_requests or at_s > held.start_s + self._length_s:
                del self.open_draws[unit]
            elif arm != held.arm:
                self.contradictions += is_sticky
            else:
                held.requests += 1
                drawn.w[row], drawn.draw[row] = held.w, held.draw
                drawn.position[row] = held.requests if held.w < 1.0 else 0
        self.rows += len(rows)
        if self.rows >= SWEEP_EVERY:
            self.rows = 0
            self._sweep(at_s)

    def _toss(self, row: int, at_s: float, arm: int, w: float, unit: int, drawn: Drawn) -> None:
        """Open the draw of a new toss, unless its arm contradicts what is known of the bucket."""
        probability = self._reveal(unit, arm, w)
        if probability is None:
            self.contradictions += 1
            return
        self.sticky_draws += 1
        self.open_draws.pop(unit, None)  # so that the new one comes last
        self.open_draws[unit] = OpenDraw(int(drawn.draw[row]), at_s, 1, arm, probability)
        drawn.w[row], drawn.position[row] = probability, 1 if probability < 1.0 else 0

    def _probability(self, interval: int, w: float) -> float:
        """P(canary) at weight `w` of a unit with this interval; cached, because there are few of both."""
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        probability = self._cache[interval, w] = next_probability(w, *self._intervals[interval])
        return probability

    def _reveal(self, unit: int, arm: int, w: float) -> float | None:
        """P(canary) of this toss; narrows the unit's interval. None: the arm contradicts the bucket."""
        known = self.interval_of.get(unit)
        low, high = (0.0, 1.0) if known is None else self._intervals[known]
        probability = next_probability(w, low, high)
        if probability == 1.0 - arm:
            return None
        cut = min(max(w, low), high)
        interval = (low, cut) if arm else (cut, high)
        # Not a search of the list: where the weight changes with every row, so does the interval.
        index = self._index_of.setdefault(interval, len(self._intervals))
        if index == len(self._intervals):
            self._intervals.append(interval)
        self.interval_of[unit] = index
        return probability

    def _sweep(self, now_s: float) -> None:
        """Forget draws whose sessions have closed. Changes no answer."""
        closed = [
            unit
            for unit, draw in self.open_draws.items()
            if draw.requests >= self._max_requests or now_s > draw.start_s + self._length_s
        ]
        for unit in closed:
            del self.open_draws[unit]
