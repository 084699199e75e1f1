"""Guard on requests without an answer: an immediate action, when half of the canary's last 20 units failed,
or were rejected.

Roll back if stable failed less than half as often in the same window and chance does not explain it; else
hold and page, because something that both arms share may be broken. A unit counts once, by its last request:
one client that always fails is one unit, however often it retries. (Counting requests: rolled back on
identical arms in 3-21 % of runs.)

**The same window.** Stable's units since the first of the canary's, all of them: with the last 200 alone,
the end of a shared outage looked like a healthy stable beside a canary that still fails (rolled back in
67-100 % of runs).

**Chance.** The coin decides which of the window's units are the canary's. So, given the window's units, how
they ended, and that its first and its last are the canary's, the failed ones among those between are
hypergeometric. The n-th request of the canary is a look and may spend `20 ALPHA / ((n + 19) (n + 20))` over
all windows and checks: at most `ALPHA` in all, whatever the rate of failures, and whenever it changes (exact
where each request is its own unit and the weight does not change within the window). Where stable's units are
few beside the canary's, as at 90 %, its last 40, 80 or 160 units decide.

Invariant: a guard never promotes, and reads no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from scipy.stats import binom, hypergeom

STABLE_UNITS = 400  # of stable's last units that are known by name
PART, PARTS = 50, 64  # older ones are counted in parts of this many; more parts are merged in pairs
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
    """A unit's last request: its place among all requests, and how it ended."""

    place: int
    error: bool
    rejected: bool


class _Part(NamedTuple):
    """Units of stable that are no longer known by name: the first one's place, and how they ended."""

    place: int
    units: int
    errors: int
    rejected: int


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
    _verdict: GuardVerdict | None = None

    def add(self, *, unit: str, canary: bool, error: bool, rejected: bool = False) -> GuardVerdict | None:
        """Add one settled request of a unit; return the current verdict."""
        last = _Last(self._requests, error, rejected)
        self._requests += 1
        if canary:
            self._add_canary(unit, last)
        else:
            self._add_stable(unit, last)
        return self._verdict

    def verdict(self) -> GuardVerdict | None:
        """The verdict after the canary's last request, a rollback before a hold; None: not tripped."""
        return self._verdict

    def _add_canary(self, unit: str, last: _Last) -> None:
        self._canary.pop(unit, None)  # so that it comes last
        self._canary[unit] = last
        if len(self._canary) > self.limits.units * LONGER[-1]:
            self._canary.popitem(last=False)
        self._looks += 1
        since = next(iter(self._canary.values())).place
        self._older = [part for part in self._older if part.place > since]
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
        if not self._older or self._older[-1].units >= PART:
            self._older.append(_Part(oldest.place, 0, 0, 0))
        place, units, errors, rejections = self._older[-1]
        self._older[-1] = _Part(place, units + 1, errors + oldest.error, rejections + oldest.rejected)
        if len(self._older) > PARTS:
            pairs = zip(self._older[::2], self._older[1::2], strict=False)
            merged = [_Part(a.place, a.units + b.units, a[2] + b[2], a[3] + b[3]) for a, b in pairs]
            self._older = [*merged, *self._older[2 * len(merged) :]]

    def _check(self, name: str, text: str, column: int) -> GuardVerdict | None:
        size = self.limits.units
        hits = self._canary_hits(size, column)
        if hits < self.limits.ratio * size:
            return None
        text = f"{hits} of the canary's last {size} units {text}"
        if not self._stable:
            return GuardVerdict(name, GuardAction.ROLLBACK, f"{text}; stable answered nothing to compare")
        failed, units = self._stable_hits(size, column)
        text += f", stable {failed / units:.0%} in the same window"
        if self._is_canarys_own(column):
            return GuardVerdict(name, GuardAction.ROLLBACK, text)
        why = "both are bad, so the cause is shared"
        if failed / units < hits / size / 2:
            why = "chance may still explain the difference"
        return GuardVerdict(name, GuardAction.HOLD, f"{text}: {why}")

    def _is_canarys_own(self, column: int) -> bool:
        """Whether in one of the windows the canary fails, stable fails less than half as often, and by more
        than chance."""
        sizes = [self.limits.units * times for times in LONGER]
        spent = ALPHA * sizes[0] / ((self._looks + sizes[0] - 1) * (self._looks + sizes[0]))
        limit = spent / (len(sizes) * len(_CHECKS))
        for size in sizes:
            if len(self._canary) < size:
                return False
            hits, (failed, units) = self._canary_hits(size, column), self._stable_hits(size, column)
            if hits < self.limits.ratio * size or failed / units >= hits / size / 2:
                continue
            if not self._has_stable_in(size):
                chance = float(binom.sf(hits - 1, size, (failed + 1) / (units + 1)))
            else:
                chance = self._chance(size, column, failed, units)
            if chance <= limit:
                return True
        return False

    def _chance(self, size: int, column: int, failed: int, units: int) -> float:
        """Probability that the coin gives the canary so many of the window's failures."""
        window = self._last_canary(size)
        inner = sum(last[column] for last in window[1:-1])
        drawn = max(size - 2, 0)
        return float(hypergeom.sf(inner - 1, drawn + units, inner + failed, drawn))

    def _last_canary(self, size: int) -> list[_Last]:
        """The canary's last units, the latest first."""
        return list(islice(reversed(self._canary.values()), size))

    def _canary_hits(self, size: int, column: int) -> int:
        return sum(last[column] for last in self._last_canary(size))

    def _has_stable_in(self, size: int) -> bool:
        since = self._last_canary(size)[-1].place
        return next(reversed(self._stable.values())).place > since

    def _stable_hits(self, size: int, column: int) -> tuple[int, int]:
        """How many of stable's units in the window failed, and how many there are; without any, of its last
        ones before."""
        since = self._last_canary(size)[-1].place
        named = [last[column] for last in self._stable.values() if last.place > since]
        if not named:
            named = [last[column] for last in self._stable.values()]
            return sum(named), len(named)
        older = [part for part in self._older if part.place > since]
        failed = sum(named) + sum(part[column + 1] for part in older)
        return failed, len(named) + sum(part.units for part in older)

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `from_mapping` reads back to an equal guard."""
        verdict = self._verdict
        return {
            "canary_units": [[unit, *last] for unit, last in self._canary.items()],
            "stable_units": [[unit, *last] for unit, last in self._stable.items()],
            "older_units": [list(part) for part in self._older],
            "requests": self._requests,
            "looks": self._looks,
            "verdict": None if verdict is None else [verdict.guard, verdict.action.value, verdict.reason],
        }

    @classmethod
    def from_mapping(cls, raw: Mapping[str, object], limits: GuardLimits | None = None) -> ErrorGuard:
        """The guard whose `to_mapping` returned `raw`. Raises ValueError for malformed state,
        such as that of an earlier release, which counted requests."""
        try:
            arms = [
                OrderedDict((str(unit), _Last(int(place), bool(error), bool(rejected)))
                for unit, place, error, rejected in raw[key])  # type: ignore[attr-defined]
                for key in ("canary_units", "stable_units")
            ]  # fmt: skip
            requests = int(raw["requests"])  # type: ignore[call-overload]
            # The earlier format had none of these: it has looked at most after every request.
            older = [_Part(*map(int, part)) for part in raw.get("older_units", ())]  # type: ignore[attr-defined]
            looks = int(raw.get("looks", requests))  # type: ignore[call-overload]
            verdict = None
            if raw.get("verdict") is not None:
                name, action, reason = map(str, raw["verdict"])  # type: ignore[call-overload]
                verdict = GuardVerdict(name, GuardAction(action), reason)
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"malformed state of an error guard: {exc}; start a new guard") from exc
        return cls(limits or GuardLimits(), arms[0], arms[1], older, requests, looks, verdict)
