"""Units and their draws: which coin toss a request belongs to, and the probability it was tossed with.

Per-request keys: each request is its own draw, at the logged `w`. Sticky keys: the unit's bucket is fixed,
and each draw reveals an interval [lo, hi) that contains it. At weight `w` the next toss comes up canary with
probability `|[0, w) n [lo, hi)| / (hi - lo)`: for a raise from `v` to `w` that is `(w - v) / (1 - v)` for a
unit last seen on stable, and 1, so no bet, for one seen on the canary. (Betting the plain `w` again
promoted harmful canaries in 54-100 % of runs.)

A draw has one session of requests. What the unit asks after it is judged in **later sessions**
(`Drawn.round`, `Drawn.part`, `later_blocks.py`): in each round of ROUND_SESSIONS session lengths one of each
part, by the logged `w` of its first request. It is the same coin, so it is bet in processes of its own, one a
round and part, each with its own share of alpha (`betting/rounds.py`): within one, a unit's coin is bet once,
and its arm is canary with probability `w`, because nothing that the process has seen depended on it. A unit
gets there after its first contact at the current weight, for as long as a session, on both arms alike: also
one on the canary already, whose contact reveals nothing and is not bet on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.records import NOT_DRAWN, PER_REQUEST, PINNED, STICKY_KEYS, WORDS_REMEDY, EvidenceError
from evaluation.units.later_blocks import Place
from evaluation.units.toss_classes import TossClasses

LEFT_OUT, REQUEST, STICKY, HELD = 0, 1, 2, 3  # HELD: by the affinity token of an earlier draw
SWEEP_EVERY = 4096  # sticky rows
ROUND_SESSIONS = 6  # session lengths in a round of later sessions: an hour
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

    position: 1 for the first request of a draw, or of a later session; 0: not evidence. round, part: of a
    later session, from 1 and from 0; round 0: of a draw. fresh: of the unit's first later session of this
    part in its stage. stands: how many requests of its part it stands for. under_way: a draw's first request,
    less than a session after the unit's last one: of a conversation that is going on, which finds a cold
    prefix cache if it has been moved. Known before the coin, so it is no matter of the arm. origin: of a
    toss, and of a later session that of the unit's last toss, as in `TossClasses`; -1: none.
    """

    w: Floats
    draw: Ints
    position: Ints
    round: Ints
    part: Ints
    stands: Ints
    fresh: NDArray[np.bool_]
    under_way: NDArray[np.bool_]
    origin: Ints


@dataclass(slots=True)
class OpenDraw:
    """A draw of a sticky unit whose session is still open.

    `met_s`, `met`: start and requests of the unit's first contact at the current weight; those of the draw,
    unless its weight was raised meanwhile.
    """

    draw: int
    start_s: float
    requests: int
    arm: int
    w: float
    met_s: float
    met: int


@dataclass(slots=True)
class OpenLater:
    """A block of a sticky unit's later requests that is still open. round: 0 where it is not judged."""

    draw: int
    start_s: float
    requests: int
    arm: int
    w: float
    round: int
    part: int
    stands: int


class Units:
    """Ledger of sticky units: one revealed interval each, the open sessions, one number for those that came
    back (`Place`), and the classes of the tosses."""

    __state__ = (
        "book", "intervals", "open", "returned", "open_again", "start_s", "contradictions", "sticky_draws",
        "rows", "last_seen", "tosses",
    )  # fmt: skip

    def __init__(self, *, session_requests: int, session_s: float) -> None:
        self._max_requests = session_requests
        self._length_s = session_s
        self.interval_of: dict[int, int] = {}  # unit -> index of its interval
        self.intervals = []
        self.open_draws: dict[int, OpenDraw] = {}  # by unit
        self.open_later: dict[int, OpenLater] = {}  # by unit
        self.last_later: dict[int, int] = {}  # unit -> `Place` of its last block
        self.seen_s: dict[int, float] = {}  # unit -> time of its last request, while that is recent
        self.tosses = TossClasses()
        self.start_s = float("nan")  # of the first round: the first toss
        self.contradictions = 0
        self.sticky_draws = 0
        self.rows = 0

    @property
    def intervals(self) -> list[tuple[float, float, float]]:
        """The revealed intervals with the weight of the last contact, each once, in the order of their first
        use."""
        return self._intervals

    @intervals.setter
    def intervals(self, intervals: list[tuple[float, float, float]]) -> None:
        self._intervals = intervals
        self._index_of = {interval: index for index, interval in enumerate(intervals)}
        self._cache: dict[tuple[int, float], float] = {}  # P(canary) by interval and weight

    @property
    def book(self) -> list[Ints]:
        """Units and the indices of their intervals as two arrays, for a snapshot: 9 bytes a unit, not 25."""
        return _arrays(self.interval_of)

    @book.setter
    def book(self, arrays: list[Ints]) -> None:
        self.interval_of = _map(arrays)

    @property
    def returned(self) -> list[Ints]:
        """Units and the places of their last blocks as two arrays, for a snapshot."""
        return _arrays(self.last_later)

    @returned.setter
    def returned(self, arrays: list[Ints]) -> None:
        self.last_later = _map(arrays)

    @property
    def open(self) -> dict[int, tuple[object, ...]]:
        """The open draws as plain values, for a snapshot."""
        return {unit: astuple(draw) for unit, draw in self.open_draws.items()}

    @open.setter
    def open(self, rows: dict[int, tuple[object, ...]]) -> None:
        self.open_draws = {unit: OpenDraw(*row) for unit, row in rows.items()}  # type: ignore[arg-type]

    @property
    def last_seen(self) -> list[NDArray[Any]]:
        """The units with a recent request and its time as two arrays, for a snapshot."""
        count = len(self.seen_s)
        units = np.fromiter(self.seen_s.keys(), dtype=np.int64, count=count)
        return [units, np.fromiter(self.seen_s.values(), dtype=np.float64, count=count)]

    @last_seen.setter
    def last_seen(self, arrays: list[NDArray[Any]]) -> None:
        units, times = arrays
        self.seen_s = dict(zip(units.tolist(), times.tolist(), strict=True))

    @property
    def open_again(self) -> dict[int, tuple[object, ...]]:
        """The open later sessions as plain values, for a snapshot."""
        return {unit: astuple(draw) for unit, draw in self.open_later.items()}

    @open_again.setter
    def open_again(self, rows: dict[int, tuple[object, ...]]) -> None:
        self.open_later = {unit: OpenLater(*row) for unit, row in rows.items()}  # type: ignore[arg-type]

    def resolve(self, requests: Assignments, seq: Ints) -> Drawn:
        """The draws of the requests. seq: their sequence numbers, of which a draw takes its first one's."""
        own = (requests.kind == REQUEST) & (requests.w < 1.0)
        none = np.zeros(len(requests), dtype=np.int64)
        position, never = own.astype(np.int64), none > 0
        w, copy = requests.w.copy(), none.copy()
        drawn = Drawn(w, seq.copy(), position, none, copy, none + 1, never, never.copy(), none - 1)
        rows = np.flatnonzero(requests.kind >= STICKY)
        if len(rows):
            self._resolve_sticky(rows, requests.pick(rows), drawn)
        return drawn

    def _resolve_sticky(self, rows: Ints, requests: Assignments, drawn: Drawn) -> None:
        """Write the draws of sticky and held requests into these rows of `drawn`."""
        arms = requests.arm.astype(np.int64)
        known = (rows, requests.at_s, arms, requests.w, requests.kind == STICKY, requests.unit)
        columns = (*known, requests.stage)
        longest, seen = self._length_s, self.seen_s
        for row, at_s, arm, w, is_sticky, unit, stage in zip(*(c.tolist() for c in columns), strict=True):
            # Looked up here, not in a method: most rows are of a unit whose draw is known.
            interval = self.interval_of.get(unit)
            if interval is None:
                is_toss, is_contact = is_sticky, False
            else:
                probability = self._cache.get((interval, w))
                if probability is None:
                    probability = self._probability(interval, w)
                # The weight splits what is known of the bucket, or the arm contradicts it.
                is_toss = is_sticky and (0.0 < probability < 1.0 or probability != arm)
                is_contact = is_sticky and not is_toss and w != self._intervals[interval][2]
            if is_toss:
                drawn.under_way[row] = at_s < seen.get(unit, -math.inf) + longest
                seen[unit] = at_s
                self._toss(row, at_s, arm, w, unit, drawn)
                continue
            seen[unit] = at_s
            if is_contact:
                self._meet(row, at_s, arm, w, unit, drawn)
            held = self.open_draws.get(unit)
            if held is None:
                if interval is not None:
                    self._return(row, at_s, arm, w, unit, stage, drawn)
                    drawn.origin[row] = self.tosses.of(unit)
                continue
            has_met = held.met >= self._max_requests or at_s > held.met_s + longest
            if held.requests >= self._max_requests or at_s > held.start_s + longest:
                if has_met:
                    del self.open_draws[unit]
                    self._return(row, at_s, arm, w, unit, stage, drawn)
                    drawn.origin[row] = self.tosses.of(unit)
                else:
                    held.met += 1
            elif arm != held.arm:
                self.contradictions += is_sticky
            else:
                held.requests += 1
                held.met += 1
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
        self.open_later.pop(unit, None)
        self.open_draws[unit] = OpenDraw(int(drawn.draw[row]), at_s, 1, arm, probability, at_s, 1)
        drawn.w[row], drawn.position[row] = probability, 1 if probability < 1.0 else 0
        if math.isnan(self.start_s) and 0.0 < w < 1.0:
            self.start_s = at_s
        started = not math.isnan(self.start_s)
        number = 1 + int((at_s - self.start_s) // (ROUND_SESSIONS * self._length_s)) if started else 0
        drawn.origin[row] = self.tosses.note(unit, probability, arm, number, w)

    def _meet(self, row: int, at_s: float, arm: int, w: float, unit: int, drawn: Drawn) -> None:
        """Note the first contact at a weight that reveals nothing: it waits like one that does.

        The open session ends, as a toss at the new weight ends stable's: sessions of one arm alone that a
        raise cuts short would make identical versions differ in length.
        """
        low, high, _ = self._intervals[self.interval_of[unit]]
        self.interval_of[unit] = self._index((low, high, w))
        self.open_later.pop(unit, None)
        self.tosses.forget(unit)
        self.open_draws.pop(unit, None)
        self.open_draws[unit] = OpenDraw(int(drawn.draw[row]), at_s, 0, arm, 1.0, at_s, 0)

    def _return(self, row: int, at_s: float, arm: int, w: float, unit: int, stage: int, drawn: Drawn) -> None:
        """Add a request after the unit's draw to its block, which is judged or not."""
        held = self.open_later.get(unit)
        if held is None or held.requests >= self._max_requests or at_s > held.start_s + self._length_s:
            if not 0.0 < w < 1.0 or math.isnan(self.start_s):
                return
            number = 1 + int((at_s - self.start_s) // (ROUND_SESSIONS * self._length_s))
            place = Place.of(self.last_later.get(unit, -1)).next_block(number, stage)
            part, stands = place.judged_part(unit)
            if part >= 0:
                drawn.fresh[row] = not place.judged >> part & 1
                place = replace(place, judged=place.judged | 1 << part)
            self.last_later[unit] = place.number
            held = OpenLater(int(drawn.draw[row]), at_s, 0, arm, w, number if part >= 0 else 0, part, stands)
            self.open_later[unit] = held
        if arm == held.arm:
            held.requests += 1
            if held.round:
                drawn.w[row], drawn.draw[row] = held.w, held.draw
                drawn.position[row], drawn.round[row] = held.requests, held.round
                drawn.part[row], drawn.stands[row] = held.part, held.stands

    def _probability(self, interval: int, w: float) -> float:
        """P(canary) at weight `w` of a unit with this interval; cached, because there are few of both."""
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        low, high, _ = self._intervals[interval]
        probability = self._cache[interval, w] = next_probability(w, low, high)
        return probability

    def _reveal(self, unit: int, arm: int, w: float) -> float | None:
        """P(canary) of this toss; narrows the unit's interval. None: the arm contradicts the bucket."""
        known = self.interval_of.get(unit)
        low, high, _ = (0.0, 1.0, 0.0) if known is None else self._intervals[known]
        probability = next_probability(w, low, high)
        if probability == 1.0 - arm:
            return None
        cut = min(max(w, low), high)
        self.interval_of[unit] = self._index((low, cut, w) if arm else (cut, high, w))
        return probability

    def _index(self, interval: tuple[float, float, float]) -> int:
        """The index of an interval in the list, to which it is added."""
        # Not a search of the list: where the weight changes with every row, so does the interval.
        index = self._index_of.setdefault(interval, len(self._intervals))
        if index == len(self._intervals):
            self._intervals.append(interval)
        return index

    def _sweep(self, now_s: float) -> None:
        """Forget draws whose sessions have closed. Changes no answer."""

        def is_over(start_s: float, requests: int) -> bool:
            return requests >= self._max_requests or now_s > start_s + self._length_s

        draws, later = self.open_draws.items(), self.open_later.items()
        self.seen_s = {unit: at_s for unit, at_s in self.seen_s.items() if now_s < at_s + self._length_s}
        over = [u for u, d in draws if is_over(d.start_s, d.requests) and is_over(d.met_s, d.met)]
        for unit in over:
            del self.open_draws[unit]
        for unit in [unit for unit, session in later if is_over(session.start_s, session.requests)]:
            del self.open_later[unit]


def _arrays(values: dict[int, int]) -> list[Ints]:
    """Keys and values as two arrays."""
    return [np.fromiter(c, dtype=np.int64, count=len(values)) for c in (values.keys(), values.values())]


def _map(arrays: list[Ints]) -> dict[int, int]:
    keys, values = arrays
    return dict(zip(keys.tolist(), values.tolist(), strict=True))
