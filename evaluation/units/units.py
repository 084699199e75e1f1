"""Units and their draws: which coin a request belongs to, and with which probability it was tossed.

Per-request keys: each request is its own draw, at the logged `w`. Sticky keys: the unit's bucket is fixed,
and each draw reveals in which interval [lo, hi) it lies. At weight `w` the next coin comes up canary with
probability `|[0, w) n [lo, hi)| / (hi - lo)`: for a raise from `v` to `w` that is `(w - v) / (1 - v)` for a
unit last seen on stable, and 1, so no bet, for one seen on the canary. (Betting the plain `w` again
promoted harmful canaries in 54-100 % of runs.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.wealth import Floats, Ints
from evaluation.records import NOT_DRAWN, PER_REQUEST, PINNED, STICKY_KEYS, WORDS_REMEDY, EvidenceError

LEFT_OUT, REQUEST, STICKY, HELD = 0, 1, 2, 3
SWEEP_EVERY = 4096
MOST_CHANCES = 10_000  # remembered
_KINDS = ((PER_REQUEST, REQUEST), (STICKY_KEYS, STICKY), (PINNED, HELD), (NOT_DRAWN, LEFT_OUT))


def kind_of(assigned_by: str) -> int:
    """LEFT_OUT, REQUEST, STICKY or HELD for a record's `assigned_by`. Errors: EvidenceError for another word.

    A word that nobody knows is no sticky key by default: a forced request would count as a draw.
    """
    for words, kind in _KINDS:
        if assigned_by in words:
            return kind
    raise EvidenceError(f"assigned_by {assigned_by!r} is unknown; {WORDS_REMEDY}")


def unit_hash(unit: str) -> int:
    """64 bits of the unit's name; keyed on the unit alone, so a unit keeps its draws when its key's source
    changes."""
    return int.from_bytes(
        hashlib.blake2b(unit.encode(errors="surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def next_probability(w: float, low: float, high: float) -> float:
    """P(canary) at weight `w` of a unit whose bucket is known to lie in [low, high).

    Check: w=0.25, [0.05, 1) gives (0.25 - 0.05) / 0.95.
    """
    return min(max((min(w, high) - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """For each request: P(canary) of its draw, the draw's number, and its place in it (1 is the first; 0:
    not evidence)."""

    w: Floats
    draw: Ints
    place: Ints


class Units:
    """The book of sticky units: one revealed interval each, and the draws whose sessions are still open."""

    __state__ = ("book", "intervals", "open", "contradictions", "sticky_draws", "rows")

    def __init__(self, *, session_requests: int, session_s: float) -> None:
        self._most = session_requests
        self._length_s = session_s
        self.seen: dict[int, int] = {}  # unit -> index of its interval
        self.intervals = []
        self.open: dict[int, tuple[int, float, int, int, float]] = {}  # unit -> draw, start, requests, arm, w
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
        self._places = {interval: place for place, interval in enumerate(intervals)}
        self._chances: dict[tuple[int, float], float] = {}

    @property
    def book(self) -> list[Ints]:
        """Units and the indices of their intervals as two arrays, for a snapshot: 9 bytes a unit instead of
        25."""
        size = len(self.seen)
        return [
            np.fromiter(part, dtype=np.int64, count=size) for part in (self.seen.keys(), self.seen.values())
        ]

    @book.setter
    def book(self, arrays: list[Ints]) -> None:
        units, places = arrays
        self.seen = dict(zip(units.tolist(), places.tolist(), strict=True))

    def resolve(
        self, at_s: Floats, arm: NDArray[np.bool_], w: Floats, kind: Ints, unit: Ints, seq: Ints
    ) -> Drawn:
        """The draws of requests in order of assignment. Arrays of equal length; `unit` matters for sticky
        rows only."""
        drawn = Drawn(w.copy(), seq.copy(), ((kind == REQUEST) & (w < 1.0)).astype(np.int64))
        sticky = np.flatnonzero(kind >= STICKY)
        if len(sticky):
            self._resolve_sticky(sticky, at_s, arm, w, kind, unit, drawn)
        return drawn

    def _resolve_sticky(
        self,
        sticky: Ints,
        at_s: Floats,
        arm: NDArray[np.bool_],
        w: Floats,
        kind: Ints,
        unit: Ints,
        drawn: Drawn,
    ) -> None:
        rows: Sequence[tuple[int, float, int, float, int, int]] = list(
            zip(
                sticky.tolist(),
                at_s[sticky].tolist(),
                arm[sticky].astype(np.int64).tolist(),
                w[sticky].tolist(),
                kind[sticky].tolist(),
                unit[sticky].tolist(),
                strict=True,
            )
        )
        seen, chances = self.seen, self._chances
        for row, at, side, weight, how, key in rows:
            known = seen.get(key)
            # Looked up here, not in a method: most rows are of a unit whose draw is known.
            chance: float | None = 0.5
            if known is not None and (chance := chances.get((known, weight))) is None:
                chance = self._chance(known, weight)
            # A coin was tossed: the unit is new, or the weight now splits what is known of its bucket.
            if how == STICKY and chance is not None and (0.0 < chance < 1.0 or chance != side):
                probability = self._reveal(key, side, weight)
                if probability < 0.0:
                    self.contradictions += 1
                    continue
                self.sticky_draws += 1
                self.open.pop(key, None)
                self.open[key] = (int(drawn.draw[row]), at, 1, side, probability)
                drawn.w[row], drawn.place[row] = probability, 1 if probability < 1.0 else 0
                continue
            held = self.open.get(key)
            if held is None:
                continue
            draw, start, requests, drawn_arm, probability = held
            if requests >= self._most or at > start + self._length_s:
                del self.open[key]
                continue
            if side != drawn_arm:
                self.contradictions += how == STICKY
                continue
            self.open[key] = (draw, start, requests + 1, side, probability)
            drawn.w[row], drawn.draw[row] = probability, draw
            drawn.place[row] = requests + 1 if probability < 1.0 else 0
        self.rows += len(rows)
        if self.rows >= SWEEP_EVERY:
            self.rows = 0
            self._sweep(rows[-1][1])

    def _chance(self, place: int, w: float) -> float:
        """P(canary) at weight `w` of a unit with this interval; remembered, because there are few of both."""
        if len(self._chances) >= MOST_CHANCES:
            self._chances.clear()
        chance = self._chances[place, w] = next_probability(w, *self._intervals[place])
        return chance

    def _reveal(self, key: int, arm: int, w: float) -> float:
        """P(canary) of this draw, its interval narrowed; -1 when the arm contradicts what is known of the
        bucket."""
        known = self.seen.get(key)
        low, high = (0.0, 1.0) if known is None else self._intervals[known]
        probability = next_probability(w, low, high)
        if probability == 1.0 - arm:
            return -1.0
        cut = min(max(w, low), high)
        interval = (low, cut) if arm else (cut, high)
        # Not a search of the list: where the weight changes with every row, so does the interval.
        place = self._places.setdefault(interval, len(self._intervals))
        if place == len(self._intervals):
            self._intervals.append(interval)
        self.seen[key] = place
        return probability

    def _sweep(self, now_s: float) -> None:
        """Forget draws whose sessions have closed. Changes no answer."""
        closed = [k for k, v in self.open.items() if v[2] >= self._most or now_s > v[1] + self._length_s]
        for key in closed:
            del self.open[key]
