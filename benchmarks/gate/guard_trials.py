"""Trial of the error guard: one client that always fails, on whichever arm, is not the version's fault."""

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
            verdict = guard.add(unit=str(unit), canary=canary, error=failed)
            if verdict is not None and verdict.action is GuardAction.ROLLBACK:
                word = "rollback"
                break
        return {"rep": rep, "guard": word}
