"""Sampled answers and their verdicts: how many have none, by arm, and whether those are too many.

Rules:
1. An answer is sampled before it exists, on both arms alike. Whatever comes of it then, it stays sampled.
2. It has a verdict, or is missing: the judge gave none, or none in time. A missing verdict is never a tie.
3. A sampled request without an answer (error, rejection, the client left) has nothing to judge. Other gates
   count it, and the score's own test takes it as the worst; here it is only shown.
4. Too many: more than the limit in the newest one to two windows of an arm, beyond chance, at whatever moment
   one looks (`units/missingness.py`). Chance takes them for independent: a burst is too many at once.
5. It ends when `RECOVERED` answers of the arm in a row have verdicts: then the windows begin anew. (With the
   windows alone, 40 missing ones in a row made the gate INVALID for 156 more verdicts, 100 for 535; at a
   weight of 5 % and a share of 20 % a verdict of the canary comes once in 100 requests.) A judge that misses
   20 % has such a run once in 300,000 answers. What was missing still counts as the worst in the proofs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from evaluation.units.missingness import MISSING_ALPHA, excess_log_e

WINDOW = 500  # sampled answers
RECOVERED = 50  # in a row with verdicts, and the judge is there again
MAX_CAUSES = 8


@dataclass(slots=True)
class ArmVerdicts:
    """Of one arm. windows: answers and missing verdicts of the present window and of the one before. streak:
    verdicts since the last one that is missing."""

    verdicts: int = 0
    missing: int = 0
    unanswered: int = 0
    windows: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    streak: int = 0

    def add(self, *, is_missing: bool) -> None:
        """One more sampled answer whose verdict has come, or can no longer come."""
        if is_missing:
            self.missing += 1
        else:
            self.verdicts += 1
        if self.windows[0] == WINDOW:
            self.windows = [0, 0, *self.windows[:2]]
        self.windows[0] += 1
        self.windows[1] += is_missing
        self.streak = 0 if is_missing else self.streak + 1
        if self.streak == RECOVERED:
            self.windows = [0, 0, 0, 0]

    def excess(self, limit: float) -> tuple[float, int] | None:
        """Share of missing verdicts and number of answers of the newest windows; None: not above the limit.

        limit: share from 0 to 1. The windows that begin at window k have `MISSING_ALPHA / (k (k + 1))`.
        """
        n, missing = self.windows[0] + self.windows[2], self.windows[1] + self.windows[3]
        share = missing / n if n else 0.0
        if limit >= 1.0 or share <= limit:
            return None
        k = (self.verdicts + self.missing - n) // WINDOW + 1
        if limit > 0.0 and excess_log_e(share, n, limit) < math.log(k * (k + 1) / MISSING_ALPHA):
            return None
        return share, n


@dataclass(slots=True)
class SampledVerdicts:
    """Of both arms. causes: why verdicts are missing, in fixed words."""

    arms: tuple[ArmVerdicts, ArmVerdicts] = field(default_factory=lambda: (ArmVerdicts(), ArmVerdicts()))
    causes: dict[str, int] = field(default_factory=dict)

    def add(self, arm: int, cause: str | None) -> None:
        """One more answer of an arm. cause: why it has no verdict; None: it has one."""
        self.arms[arm].add(is_missing=cause is not None)
        if cause is not None and (cause in self.causes or len(self.causes) < MAX_CAUSES):
            self.causes[cause] = self.causes.get(cause, 0) + 1

    def too_many(self, limit: float) -> str | None:
        """Which arm's verdicts are missing too often, with figures; None: neither's."""
        for name, arm in zip(("stable", "the canary"), self.arms, strict=True):
            found = arm.excess(limit)
            if found is not None:
                share, n = found
                return (
                    f"{share:.0%} of the last {n} sampled answers of {name} have no verdict, "
                    f"at most {limit:.0%} may be (max_missing)"
                )
        return None
