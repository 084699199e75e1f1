"""Guard on requests without an answer: an immediate action, when half of the canary's last 20 units failed,
or were rejected.

Roll back if stable failed less than half as often in the same window and chance does not explain it; else
hold and page, because something that both arms share may be broken. A unit counts once, by its last request:
one client that always fails is one unit, however often it retries. (Counting requests: rolled back on
identical arms in 3-21 % of runs.)

**The same window.** Stable's units since the first of the canary's, all of them: with the last 200 alone,
the end of a shared outage looked like a healthy stable beside a canary that still fails (rolled back in
67-100 % of runs).

**Chance.** The coin decides which of the window's units are the canary's, and treats those of one weight
alike. So, given the window's units, how they ended, how many of each weight are the canary's, and that the
first and the last are, the failed ones among those between are a sum of independent hypergeometrics,
one for each weight: exact under audiences, and after a raise. (One for all weights rolled back identical
arms in up to 40 of 40 runs where clients at a higher weight failed on both.) The n-th request of the canary
is a look and may spend `20 ALPHA / ((n + 19) (n + 20))` over all windows and checks: at most `ALPHA` in all,
whatever the rate of failures, and whenever it changes (exact where each request is its own unit). Where
stable's units are few beside the canary's, as at 90 %, its last 40, 80 or 160 units decide. A window without
any of stable's units compares with those before it, once the coin does not explain that there are none.

**Weights.** At most `WEIGHTS` are told apart. While all of these are in use, units of another one tell
nothing: the chance is then the one given their arms too, so it stays exact. The same holds for units from
before a restart that were stored without their weight.

Invariant: a guard never promotes, and reads no clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, hypergeom

STABLE_UNITS = 400  # of stable's last units that are known by name
PART, PARTS = 50, 64  # older ones are counted in parts of this many; more parts are merged in pairs
WEIGHTS = 16  # that are told apart
UNUSED = 1000  # requests after which a weight that did not occur makes room for another one
UNKNOWN = 0.0  # in place of a weight that is not told apart
LONGER = (1, 2, 4, 8)  # windows, in multiples of the limits' units
ALPHA = 0.001  # of a rollback of identical arms, over a whole rollout


class GuardAction(StrEnum):
    """Immediate action. HOLD blocks promotion, not rollback, and pages."""

    ROLLBACK = "rollback"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """A guard that tripped. `guard`: its name; `reason`: the value and the limit."""

    guard: str
    action: GuardAction
    reason: str


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Where the guard trips. Raises ValueError for limits that never, or always, trip."""

    units: int = 20  # the window: this many of the canary's last units
    ratio: float = 0.5  # share of them that failed, or that were rejected

    def __post_init__(self) -> None:
        if self.units < 1:
            raise ValueError(f"units {self.units} is below 1; use 20")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio {self.ratio} is outside (0, 1]; use 0.5")


class _Last(NamedTuple):
    """A unit's last request: its place among all requests, how it ended, and its weight."""

    place: int
    error: bool
    rejected: bool
    w: float = UNKNOWN


_Ended = tuple[int, int, int]  # how many units there are, failed, and were rejected


class _Part(NamedTuple):
    """Units of stable that are no longer known by name: their places, and how they ended.

    counts: of each weight, how many units there are, failed, and were rejected.
    """

    first: int
    last: int
    counts: dict[float, _Ended]

    @property
    def units(self) -> int:
        return sum(count[0] for count in self.counts.values())

    def joined(self, later: _Part) -> _Part:
        counts = dict(self.counts)
        for w, count in later.counts.items():
            counts[w] = _sum(counts.get(w, (0, 0, 0)), count)
        return _Part(self.first, later.last, counts)

    def without(self, w: float) -> _Part:
        """Its units of that weight as ones of an unknown weight."""
        if w not in self.counts:
            return self
        rest = _Part(self.first, self.last, {key: n for key, n in self.counts.items() if key != w})
        return rest.joined(_Part(self.first, self.last, {UNKNOWN: self.counts[w]}))


class _Window(NamedTuple):
    """How one window ended: units and hits of both arms. Where stable has none in it and so is silent, its
    last ones before it are given."""

    size: int
    hits: int
    stable_units: int
    stable_hits: int
    is_stable_silent: bool


def _sum(a: _Ended, b: _Ended) -> _Ended:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _counted(units: Iterable[tuple[float, int, int]]) -> dict[float, tuple[int, int]]:
    """Units and hits of each weight, from weights, units and hits."""
    counts: dict[float, tuple[int, int]] = {}
    for w, number, hits in units:
        before = counts.get(w, (0, 0))
        counts[w] = before[0] + number, before[1] + hits
    return counts


def coin_chance(canary: Mapping[float, tuple[int, int]], stable: Mapping[float, tuple[int, int]]) -> float:
    """Probability that the coin gives the canary at least so many hits, given the units of each weight.

    canary, stable: units and hits of each weight. Those of weight `UNKNOWN` keep their arms.
    """
    least = sum(hits for _, hits in canary.values())
    ways = np.ones(1)
    for w, (units, hits) in canary.items():
        others, others_hit = stable.get(w, (0, 0))
        if w == UNKNOWN or others == 0:
            least -= hits
            continue
        of_weight = hypergeom.pmf(np.arange(units + 1), units + others, hits + others_hit, units)
        ways = np.convolve(ways, of_weight)
    return min(float(ways[least:].sum()), 1.0) if least > 0 else 1.0


_CHECKS = (("errors", "failed", 1), ("rejections", "were rejected (4xx)", 2))


@dataclass(slots=True)
class ErrorGuard:
    """Guard on the last units of both arms, in order of their last requests; state bounded by the window.

    The window is the canary's last 20 units, and those of stable since the first of them. Without any of
    stable in it, stable's last units before it are used. It is looked at after each request of the canary.
    """

    limits: GuardLimits = field(default_factory=GuardLimits)
    _canary: OrderedDict[str, _Last] = field(default_factory=OrderedDict)
    _stable: OrderedDict[str, _Last] = field(default_factory=OrderedDict)
    _older: list[_Part] = field(default_factory=list)
    _requests: int = 0
    _looks: int = 0
    _weights: dict[float, int] = field(default_factory=dict)  # told apart, and the place of the last request
    _verdict: GuardVerdict | None = None

    def add(
        self, *, unit: str, canary: bool, w: float, error: bool, rejected: bool = False
    ) -> GuardVerdict | None:
        """Add one settled request of a unit; return the current verdict.

        w: probability that the unit was assigned to the canary, in (0, 1]; 1 where no coin assigned it.
        """
        last = _Last(self._requests, error, rejected, self._known(w))
        self._requests += 1
        if canary:
            self._add_canary(unit, last)
        else:
            self._add_stable(unit, last)
        return self._verdict

    def verdict(self) -> GuardVerdict | None:
        """The verdict after the canary's last request, a rollback before a hold; None: not tripped."""
        return self._verdict

    def _known(self, w: float) -> float:
        """The weight if it is told apart from others, else `UNKNOWN`."""
        if not 0.0 < w <= 1.0:
            return UNKNOWN
        if w not in self._weights and len(self._weights) >= WEIGHTS:
            oldest = min(self._weights, key=lambda known: self._weights[known])
            if self._requests - self._weights[oldest] < UNUSED:
                return UNKNOWN
            self._forget(oldest)
        self._weights[w] = self._requests
        return w

    def _forget(self, w: float) -> None:
        """Units of this weight tell nothing any more, on both arms."""
        del self._weights[w]
        for units in (self._canary, self._stable):
            for unit, last in units.items():
                if last.w == w:
                    units[unit] = last._replace(w=UNKNOWN)
        self._older = [part.without(w) for part in self._older]

    def _add_canary(self, unit: str, last: _Last) -> None:
        self._canary.pop(unit, None)  # so that it comes last
        self._canary[unit] = last
        if len(self._canary) > self.limits.units * LONGER[-1]:
            self._canary.popitem(last=False)
        self._looks += 1
        since = next(iter(self._canary.values())).place
        self._older = [part for part in self._older if part.last > since]
        tripped = []
        if len(self._canary) >= self.limits.units:
            tripped = [hit for check in _CHECKS if (hit := self._check(*check)) is not None]
        self._verdict = min(tripped, key=lambda hit: hit.action is GuardAction.HOLD, default=None)

    def _add_stable(self, unit: str, last: _Last) -> None:
        self._stable.pop(unit, None)
        self._stable[unit] = last
        if len(self._stable) <= STABLE_UNITS:
            return
        _, oldest = self._stable.popitem(last=False)
        part = _Part(oldest.place, oldest.place, {oldest.w: (1, int(oldest.error), int(oldest.rejected))})
        if self._older and self._older[-1].units < PART:
            part = self._older.pop().joined(part)
        self._older.append(part)
        if len(self._older) > PARTS:
            pairs = zip(self._older[::2], self._older[1::2], strict=False)
            merged = [a.joined(b) for a, b in pairs]
            self._older = [*merged, *self._older[2 * len(merged) :]]

    def _check(self, name: str, text: str, column: int) -> GuardVerdict | None:
        hits = sum(last[column] for last in self._last_canary(self.limits.units))
        if hits < self.limits.ratio * self.limits.units:
            return None
        if not self._stable:
            said = f"{hits} of the canary's last {self.limits.units} units {text}"
            return GuardVerdict(name, GuardAction.ROLLBACK, f"{said}; stable answered nothing to compare")
        first = self._window(self.limits.units, column)
        decides = self._deciding(first, column)
        shown = decides or first
        share = shown.stable_hits / shown.stable_units
        said = f"{shown.hits} of the canary's last {shown.size} units {text}, stable {share:.0%} "
        said += "before" if shown.is_stable_silent else "in the same window"
        if decides is not None:
            return GuardVerdict(name, GuardAction.ROLLBACK, said)
        why = "both are bad, so the cause is shared"
        if share < shown.hits / shown.size / 2:
            why = "chance may still explain the difference"
            if len({last.w for last in self._last_canary(shown.size)}) > 1:
                why = "chance, or clients at another weight, may still explain the difference"
        return GuardVerdict(name, GuardAction.HOLD, f"{said}: {why}")

    def _deciding(self, first: _Window, column: int) -> _Window | None:
        """The first window in which the canary fails, stable fails less than half as often, and by more than
        chance; None: there is none."""
        sizes = [first.size * times for times in LONGER]
        spent = ALPHA * first.size / ((self._looks + first.size - 1) * (self._looks + first.size))
        limit = spent / (len(sizes) * len(_CHECKS))
        for size in sizes:
            if len(self._canary) < size:
                return None
            window = self._window(size, column)
            rate = window.hits / size
            if rate < self.limits.ratio or window.stable_hits / window.stable_units >= rate / 2:
                continue
            if self._chance(window, column) <= limit:
                return window
        return None

    def _window(self, size: int, column: int) -> _Window:
        """How the canary's last units ended, and those of stable since the first of them."""
        canary = self._last_canary(size)
        since = canary[-1].place
        named = [last[column] for last in self._stable.values() if last.place > since]
        units, hits, is_silent = len(named), sum(map(int, named)), not named
        if is_silent:
            units, hits = len(self._stable), sum(int(last[column]) for last in self._stable.values())
        else:
            for part in self._older:
                if part.first > since:
                    units += part.units
                    hits += sum(count[column] for count in part.counts.values())
        return _Window(size, sum(int(last[column]) for last in canary), units, hits, is_silent)

    def _chance(self, window: _Window, column: int) -> float:
        """Probability of so many hits of the canary without any fault of its own."""
        inner = self._last_canary(window.size)[1:-1]
        if not window.is_stable_silent:
            since = self._last_canary(window.size)[-1].place
            canary = _counted((last.w, 1, int(last[column])) for last in inner)
            return coin_chance(canary, self._stable_by_weight(since, column))
        rate = (window.stable_hits + 1) / (window.stable_units + 1)
        of_rate = float(binom.sf(window.hits - 1, window.size, rate))
        if all(last.w == 1.0 for last in inner):  # no coin gives stable anything
            return of_rate
        of_silence = math.prod(last.w for last in inner if last.w != UNKNOWN)
        return max(of_rate, of_silence)

    def _stable_by_weight(self, since: int, column: int) -> dict[float, tuple[int, int]]:
        """Units and hits of stable after a place. Of a part that begins before it, the hits alone: they make
        the chance larger, and units without one would make it smaller."""
        counts = [(last.w, 1, int(last[column])) for last in self._stable.values() if last.place > since]
        for part in self._older:
            for w, count in part.counts.items():
                if part.first > since:
                    counts.append((w, count[0], count[column]))
                elif part.last > since:
                    counts.append((w, count[column], count[column]))
        return _counted(counts)

    def _last_canary(self, size: int) -> list[_Last]:
        """The canary's last units, the latest first."""
        return list(islice(reversed(self._canary.values()), size))

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `from_mapping` reads back to an equal guard."""
        verdict = self._verdict
        return {
            "canary_units": [[unit, *last] for unit, last in self._canary.items()],
            "stable_units": [[unit, *last] for unit, last in self._stable.items()],
            "older_parts": [
                [part.first, part.last, [[w, list(count)] for w, count in part.counts.items()]]
                for part in self._older
            ],
            "weights": [list(pair) for pair in self._weights.items()],
            "requests": self._requests,
            "looks": self._looks,
            "verdict": None if verdict is None else [verdict.guard, verdict.action.value, verdict.reason],
        }

    @classmethod
    def from_mapping(cls, raw: Mapping[str, object], limits: GuardLimits | None = None) -> ErrorGuard:
        """The guard whose `to_mapping` returned `raw`. Raises ValueError for malformed state, such as that of
        an early release, which counted requests. The one before had no weights: its units are of none that
        is known, and its older ones are forgotten."""
        try:
            arms = [
                OrderedDict((str(unit), _Last(int(place), bool(error), bool(rejected), *map(float, w)))
                for unit, place, error, rejected, *w in raw[key])  # type: ignore[attr-defined]
                for key in ("canary_units", "stable_units")
            ]  # fmt: skip
            requests = int(raw["requests"])  # type: ignore[call-overload]
            older = [
                _Part(int(first), int(last), {float(w): (int(a), int(b), int(c)) for w, (a, b, c) in counts})
                for first, last, counts in raw.get("older_parts", ())  # type: ignore[attr-defined]
            ]
            weights = {float(w): int(place) for w, place in raw.get("weights", ())}  # type: ignore[attr-defined]
            # An earlier format had no looks: it has looked at most after every request.
            looks = int(raw.get("looks", requests))  # type: ignore[call-overload]
            verdict = None
            if raw.get("verdict") is not None:
                name, action, reason = map(str, raw["verdict"])  # type: ignore[call-overload]
                verdict = GuardVerdict(name, GuardAction(action), reason)
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"malformed state of an error guard: {exc}; start a new guard") from exc
        return cls(limits or GuardLimits(), arms[0], arms[1], older, requests, looks, weights, verdict)
