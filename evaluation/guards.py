"""Error guard: an immediate action without statistics, when half of the canary's last 20 requests failed.

Roll back if stable failed less than half as often in the same window; else hold and page, because something
that both arms share is broken.

Invariant: a guard never promotes, and reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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

    error_requests: int = 20  # the window: this many of the canary's last requests
    error_ratio: float = 0.5  # share of failed ones

    def __post_init__(self) -> None:
        if self.error_requests < 1:
            raise ValueError(f"error_requests {self.error_requests} is below 1; use 20")
        if not 0 < self.error_ratio <= 1:
            raise ValueError(f"error_ratio {self.error_ratio} is outside (0, 1]; use 0.5")


@dataclass(slots=True)
class ErrorGuard:
    """Guard on the last requests of both arms, in order of arrival; state bounded by the window.

    The window is the canary's last `error_requests` requests, and those of stable since the first of them.
    Without any of stable in it, stable's last requests before it are used.
    """

    limits: GuardLimits = field(default_factory=GuardLimits)
    # Of each canary request in the window: whether it failed, and stable's totals just before it.
    _canary: deque[tuple[bool, int, int]] = field(default_factory=deque)
    _stable_recent: deque[bool] = field(default_factory=deque)
    _stable_n: int = 0
    _stable_errors: int = 0

    def add(self, *, canary: bool, error: bool) -> GuardVerdict | None:
        """Add one settled request; return the current verdict."""
        size = self.limits.error_requests
        if canary:
            self._canary.append((error, self._stable_n, self._stable_errors))
            if len(self._canary) > size:
                self._canary.popleft()
        else:
            self._stable_n += 1
            self._stable_errors += error
            self._stable_recent.append(error)
            if len(self._stable_recent) > size:
                self._stable_recent.popleft()
        return self.verdict()

    def verdict(self) -> GuardVerdict | None:
        """The current verdict; None: not tripped."""
        if len(self._canary) < self.limits.error_requests:
            return None
        failed = sum(error for error, _, _ in self._canary)
        ratio = failed / len(self._canary)
        if ratio < self.limits.error_ratio:
            return None
        stable_ratio = self._stable_ratio()
        text = f"{failed} of the last {len(self._canary)} canary requests failed"
        if stable_ratio is None:
            return GuardVerdict("errors", GuardAction.ROLLBACK, f"{text}; stable answered nothing to compare")
        text += f", stable {stable_ratio:.0%} in the same window"
        if stable_ratio < ratio / 2:
            return GuardVerdict("errors", GuardAction.ROLLBACK, text)
        return GuardVerdict("errors", GuardAction.HOLD, f"{text}: both are bad, so the cause is shared")

    def _stable_ratio(self) -> float | None:
        _, before_n, before_errors = self._canary[0]
        n = self._stable_n - before_n
        if n > 0:
            return (self._stable_errors - before_errors) / n
        if self._stable_recent:
            return sum(self._stable_recent) / len(self._stable_recent)
        return None

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `from_mapping` reads back to an equal guard."""
        return {
            "canary": [list(row) for row in self._canary],
            "stable_recent": list(self._stable_recent),
            "stable": [self._stable_n, self._stable_errors],
        }

    @classmethod
    def from_mapping(cls, raw: Mapping[str, object], limits: GuardLimits | None = None) -> ErrorGuard:
        """The guard whose `to_mapping` returned `raw`. Raises ValueError for malformed state."""
        try:
            rows = [(bool(e), int(n), int(k)) for e, n, k in raw["canary"]]  # type: ignore[attr-defined]
            recent = [bool(e) for e in raw["stable_recent"]]  # type: ignore[attr-defined]
            total, errors = (int(v) for v in raw["stable"])  # type: ignore[attr-defined]
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"malformed state of an error guard: {exc}; start a new guard") from exc
        return cls(limits or GuardLimits(), deque(rows), deque(recent), total, errors)
