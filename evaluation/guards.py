"""Guards: what needs no statistics. They act at once, and are reported as guards, never as proofs.

- errors: half of the canary's last 20 requests failed, and stable failed less than half as often in the same
  window: roll back. Both bad: hold and page, because something that both share is broken.
- process: a load that failed, a crash loop, a heartbeat that stopped.

Invariant: a guard never promotes, and never reads a clock; ages come in as values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class GuardAction(StrEnum):
    """What to do at once. HOLD blocks only forward moves, and pages."""

    ROLLBACK = "rollback"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """A guard that rang. `guard` is its name, `reason` holds the value and the limit."""

    guard: str
    action: GuardAction
    reason: str


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Where guards ring. Raises ValueError for limits that could never, or would always, ring."""

    error_requests: int = 20  # the window: this many of the canary's latest requests
    error_ratio: float = 0.5  # of them failed
    crash_restarts: int = 3  # within crash_window_s
    crash_window_s: float = 600.0
    heartbeat_s: float = 30.0

    def __post_init__(self) -> None:
        if self.error_requests < 1:
            raise ValueError(f"error_requests {self.error_requests} is below 1; use 20")
        if not 0 < self.error_ratio <= 1:
            raise ValueError(f"error_ratio {self.error_ratio} is outside (0, 1]; use 0.5")
        if self.crash_restarts < 1 or self.crash_window_s <= 0 or self.heartbeat_s <= 0:
            raise ValueError("crash_restarts, crash_window_s and heartbeat_s must be above 0; use 3, 600, 30")


@dataclass(frozen=True, slots=True)
class ProcessSight:
    """What the fleet says of the canary's processes. `restarts_s`: times of its restarts."""

    now_s: float
    restarts_s: tuple[float, ...] = ()
    load_error: str | None = None  # None: it has not failed to load
    heartbeat_s: float | None = None  # time of the last sign of life; None: not serving yet


def check_process(sight: ProcessSight, limits: GuardLimits | None = None) -> GuardVerdict | None:
    """The first process guard that rings, or None."""
    limits = limits or GuardLimits()
    if sight.load_error is not None:
        return GuardVerdict("load", GuardAction.ROLLBACK, f"the canary did not load: {sight.load_error}")
    recent = sum(at > sight.now_s - limits.crash_window_s for at in sight.restarts_s)
    if recent >= limits.crash_restarts:
        reason = f"{recent} restarts in {limits.crash_window_s:g} s, limit {limits.crash_restarts}"
        return GuardVerdict("crash loop", GuardAction.ROLLBACK, reason)
    if sight.heartbeat_s is not None and sight.now_s - sight.heartbeat_s > limits.heartbeat_s:
        silent = sight.now_s - sight.heartbeat_s
        reason = f"no sign of life for {silent:.0f} s, limit {limits.heartbeat_s:g} s"
        return GuardVerdict("heartbeat", GuardAction.ROLLBACK, reason)
    return None


@dataclass(slots=True)
class ErrorGuard:
    """Watches the latest requests of both arms, in the order in which they come; bounded by the window.

    The window is the canary's last `error_requests` requests and whatever stable answered between the first
    of them and now. Where stable answered nothing in it, its own last requests before it are used.
    """

    limits: GuardLimits = field(default_factory=GuardLimits)
    # Of each canary request in the window: did it fail, and stable's totals just before it.
    _canary: deque[tuple[bool, int, int]] = field(default_factory=deque)
    _stable_recent: deque[bool] = field(default_factory=deque)
    _stable_n: int = 0
    _stable_errors: int = 0

    def add(self, *, canary: bool, error: bool) -> GuardVerdict | None:
        """Take one settled request; the guard's verdict now, or None."""
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
        """What the window says: None, roll back, or hold."""
        if len(self._canary) < self.limits.error_requests:
            return None
        failed = sum(error for error, _, _ in self._canary)
        ratio = failed / len(self._canary)
        if ratio < self.limits.error_ratio:
            return None
        stable_ratio = self._stable_ratio()
        seen = f"{failed} of the last {len(self._canary)} canary requests failed"
        if stable_ratio is None:
            return GuardVerdict("errors", GuardAction.ROLLBACK, f"{seen}; stable answered nothing to compare")
        beside = f"{seen}, stable {stable_ratio:.0%} in the same window"
        if stable_ratio < ratio / 2:
            return GuardVerdict("errors", GuardAction.ROLLBACK, beside)
        return GuardVerdict("errors", GuardAction.HOLD, f"{beside}: both are bad, so the cause is shared")

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
        """The guard that made `raw`. Raises ValueError when it cannot be one."""
        try:
            rows = [(bool(e), int(n), int(k)) for e, n, k in raw["canary"]]  # type: ignore[attr-defined]
            recent = [bool(e) for e in raw["stable_recent"]]  # type: ignore[attr-defined]
            total, errors = (int(v) for v in raw["stable"])  # type: ignore[attr-defined]
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"not an error guard's state: {exc}; start the guard anew") from exc
        return cls(limits or GuardLimits(), deque(rows), deque(recent), total, errors)
