"""Guard on requests without an answer: an immediate action without statistics, when half of the canary's last
20 units failed, or were rejected.

Roll back if stable failed less than half as often in the same window; else hold and page, because something
that both arms share is broken. A unit counts once, by its last request: one client that always fails is one
unit, however often it retries. (Counting requests: rolled back on identical arms in 3-21 % of runs.)

Invariant: a guard never promotes, and reads no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

STABLE_UNITS = 200  # of stable's last units that are kept to compare with


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


_CHECKS = (("errors", "failed", 1), ("rejections", "were rejected (4xx)", 2))


@dataclass(slots=True)
class ErrorGuard:
    """Guard on the last units of both arms, in order of their last requests; state bounded by the window.

    The window is the canary's last 20 units, and those of stable since the first of them. Without any of
    stable in it, stable's last units before it are used.
    """

    limits: GuardLimits = field(default_factory=GuardLimits)
    _canary: OrderedDict[str, _Last] = field(default_factory=OrderedDict)
    _stable: OrderedDict[str, _Last] = field(default_factory=OrderedDict)
    _requests: int = 0

    def add(self, *, unit: str, canary: bool, error: bool, rejected: bool = False) -> GuardVerdict | None:
        """Add one settled request of a unit; return the current verdict."""
        units, size = (self._canary, self.limits.units) if canary else (self._stable, STABLE_UNITS)
        units.pop(unit, None)  # so that it comes last
        units[unit] = _Last(self._requests, error, rejected)
        self._requests += 1
        if len(units) > size:
            units.popitem(last=False)
        return self.verdict()

    def verdict(self) -> GuardVerdict | None:
        """The current verdict, a rollback before a hold; None: not tripped."""
        if len(self._canary) < self.limits.units:
            return None
        tripped = [
            hit for name, text, field in _CHECKS if (hit := self._check(name, text, field)) is not None
        ]
        return min(tripped, key=lambda hit: hit.action is GuardAction.HOLD, default=None)

    def _check(self, name: str, text: str, field: int) -> GuardVerdict | None:
        hits = sum(bool(last[field]) for last in self._canary.values())
        ratio = hits / len(self._canary)
        if ratio < self.limits.ratio:
            return None
        text = f"{hits} of the canary's last {len(self._canary)} units {text}"
        stable_ratio = self._stable_ratio(field)
        if stable_ratio is None:
            return GuardVerdict(name, GuardAction.ROLLBACK, f"{text}; stable answered nothing to compare")
        text += f", stable {stable_ratio:.0%} in the same window"
        if stable_ratio < ratio / 2:
            return GuardVerdict(name, GuardAction.ROLLBACK, text)
        return GuardVerdict(name, GuardAction.HOLD, f"{text}: both are bad, so the cause is shared")

    def _stable_ratio(self, field: int) -> float | None:
        since = next(iter(self._canary.values())).place
        window = [last for last in self._stable.values() if last.place > since] or list(self._stable.values())
        return sum(bool(last[field]) for last in window) / len(window) if window else None

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `from_mapping` reads back to an equal guard."""
        return {
            "canary_units": [[unit, *last] for unit, last in self._canary.items()],
            "stable_units": [[unit, *last] for unit, last in self._stable.items()],
            "requests": self._requests,
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
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"malformed state of an error guard: {exc}; start a new guard") from exc
        return cls(limits or GuardLimits(), arms[0], arms[1], requests)
