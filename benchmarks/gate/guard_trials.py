"""Trials of the error guard: one client that always fails, or a failure of both arms, is no fault of the
canary; a dead canary is found at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.gate.trials import Row, seed_of
from evaluation.guards import ErrorGuard, GuardAction

REQUESTS = 6000


@dataclass(frozen=True, slots=True)
class OneBadClient:
    """Measure: whether the guard rolls back. `heavy`: the failing client's share of all requests."""

    name: str
    heavy: float
    w: float = 0.1
    users: int = 2000

    def __call__(self, rep: int) -> Row:
        """One repetition. Users are sticky; all but the heavy client fail 1 % of their requests."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        user = np.where(rng.random(REQUESTS) < self.heavy, 0, rng.integers(1, self.users, REQUESTS))
        arm = (rng.random(self.users) < self.w)[user]
        error = (user == 0) | (rng.random(REQUESTS) < 0.01)
        guard = ErrorGuard()
        word = "undecided"
        for unit, canary, failed in zip(user.tolist(), arm.tolist(), error.tolist(), strict=True):
            verdict = guard.add(unit=str(unit), canary=canary, w=self.w, error=failed)
            if verdict is not None and verdict.action is GuardAction.ROLLBACK:
                word = "rollback"
                break
        return {"rep": rep, "guard": word}


@dataclass(frozen=True, slots=True)
class SharedFailures:
    """Measure: whether the guard rolls back a canary that fails exactly as stable does.

    `outage`: canary requests that an outage of both arms lasts, all failing, after 150 good ones. `steady`:
    the rate at which both fail at all times. `kind`: error or rejected. `users`: of sticky keys; 0: none.
    """

    name: str
    outage: int = 0
    steady: float = 0.01
    w: float = 0.05
    users: int = 0
    kind: str = "error"
    canary_requests: int = 400

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        n = round(self.canary_requests / self.w)
        unit = rng.integers(0, self.users, n) if self.users else np.arange(n)
        arm = (rng.random(self.users or n) < self.w)[unit]
        start = round(150 / self.w)
        is_down = (np.arange(n) >= start) & (np.arange(n) < start + round(self.outage / self.w))
        failed = (rng.random(n) < self.steady) | is_down
        guard = ErrorGuard()
        word = "undecided"
        for name, canary, bad in zip(unit.tolist(), arm.tolist(), failed.tolist(), strict=True):
            is_error = self.kind == "error"
            error, rejected = bad and is_error, bad and not is_error
            verdict = guard.add(unit=str(name), canary=canary, w=self.w, error=error, rejected=rejected)
            if verdict is not None and verdict.action is GuardAction.ROLLBACK:
                word = "rollback"
                break
        return {"rep": rep, "guard": word}


@dataclass(frozen=True, slots=True)
class DeadCanary:
    """Measure: the canary's requests until the guard rolls back, all failing after `before` good ones."""

    name: str
    w: float
    before: int = 0

    def __call__(self, rep: int) -> Row:
        """One repetition. Every request of the canary fails; 1 % of stable's do."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        guard, drawn = ErrorGuard(), 0
        for number in range(round((self.before + 1000) / self.w)):
            canary = bool(rng.random() < self.w)
            drawn += canary
            error = bool(rng.random() < 0.01) or (canary and drawn > self.before)
            verdict = guard.add(unit=str(number), canary=canary, w=self.w, error=error)
            if verdict is not None and verdict.action is GuardAction.ROLLBACK:
                return {"rep": rep, "guard_at": drawn - self.before}
        return {"rep": rep, "guard_at": None}
