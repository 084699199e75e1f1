"""Requests that their clients left before the answer, where a percentile is compared.

How long such an answer would have taken is censored: longer than its client waited. And which requests are
left depends on the version: a faster first token keeps long answers that stable's clients abandon, a slower
tail makes more of them leave. A request is *known* to be slow where its client waited longer than the limit;
where it left earlier, it says nothing of its answer. So other channels must agree, in which both arms'
count:

- To roll back, every request that was left counts as slow. Whatever makes clients leave, a canary that is as
  fast and has fewer of them has no more of these.
- To prove, where hardly any client waits for what is to be proven (the limit times the margin), the requests
  that were left late, or failed, must be no more on the canary: `LeftProof`. Else its slow answers would be
  among those that nobody waited for. The same holds for those left at an unknown time, and for answers whose
  time is not recorded (whose number is limited besides: `missingness.Lacking`). Where clients do wait
  so long, slow answers are seen, but perhaps of other clients than those who leave: there each request left
  late counts as slow, beside the answers that are. (Without this, a canary whose p99 was 2.5x was proven
  below 1.2x in 27 of 40 runs.)

What failed is known to be slow, so it hides no tail: the second proof is asked for by how many were left,
failures apart (`LeftShare`). (By both, one request in 4000 that was cancelled beside errors of 0.5 % asked
for a proof that the errors were no more: 12 of 40 twins were proven within 5000 canary requests, and 33
without it.)

Source: bounds for censored outcomes by worst cases: Manski (1990), Nonparametric bounds on treatment effects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.betting.rates import RateProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Flags, Floats, UnitBlock
from evaluation.betting.wealth import NO_ROWS, Bets, NeedsCoin

LATE = 0.5  # of the limit: who waited less did not leave for what is compared
MIN_WAITED_FOR = 0.1  # of stable's answers above the limit, above it times the margin: clients wait so long
TRUE_RATIOS = np.array([0.5, 0.8, 1.0, 1.07])  # of the shares left that a proof is soon reached at
TRUE_PRIOR = np.array([0.3, 1.0, 5.0, 0.5])
FEW_LEFT = 0.25  # of 1 - percentile: so few left on both arms, or so many more, hide no tail


@dataclass(frozen=True, slots=True)
class Left:
    """Which requests were left, and after how long, in the unit of the values; NaN: not known."""

    is_left: Flags
    after: Floats

    def known(self, threshold: Floats, times: float, arm: Flags) -> Floats:
        """1 where the client waited longer than the limit, the canary's divided by `times`; NaN: unknown."""
        waited = np.where(arm, self.after / times, self.after)
        return np.where(self.is_left & (waited > threshold), 1.0, np.nan)

    def late(self, threshold: Floats) -> tuple[Flags, Flags]:
        """Where what has to be proven may be hidden: left late, and left nobody knows when."""
        is_late: Flags = self.is_left & (self.after >= LATE * threshold)
        return is_late, self.is_left & np.isnan(self.after)


def with_left(
    events: Floats,
    left: Left,
    threshold: Floats,
    upper: Floats,
    is_waited_for: Flags,
    times: tuple[float, ...],
    arm: Flags,
) -> tuple[Floats, Floats, Floats]:
    """The indicators of `Exceedance.of` (len(times) x n) of its three channels: with what is known of the
    requests that were left; of a rollback with all of them, of proofs (`LeftProof`) those left alone, at an
    unknown time or late where hardly any client waits so long; and, of proofs, what is known and those left
    late where clients do.

    threshold, upper: n, of a rollback and of proofs. is_waited_for: (len(times) - 1) x n, of the proofs.
    """
    known, second, third = events.copy(), np.zeros_like(events), events.copy()
    second[0] = events[0]
    is_late, is_unknown = left.late(upper)
    for index, factor in enumerate(times):
        limit = upper if index else threshold
        known[index, left.is_left] = left.known(limit, factor, arm)[left.is_left]
        third[index] = known[index]
        if index > 0:
            waits = is_waited_for[index - 1]
            second[index] = np.where(is_unknown | (is_late & ~waits), 1.0, 0.0)
            second[index, np.isnan(events[index]) & ~left.is_left] = np.nan
            third[index, is_late & waits] = 1.0
    second[0, left.is_left] = 1.0
    second[:, np.isnan(threshold)] = third[:, np.isnan(threshold)] = np.nan
    return known, second, third


class LeftProof(RateProof):
    """Promotion: bets that fewer requests are left on the canary than `margin` times stable's, or than
    stable's and `FEW_LEFT` of the percentile's share more. It begins with the first request that was left."""

    __state__ = ("mu", "floor_share", "missing", "units", "events")

    def __init__(self, *, percentile: float, margin: float) -> None:
        self._few = FEW_LEFT * (1.0 - percentile)
        super().__init__(ratio=margin, floor=self._few)
        self._true_ratios, self._true_prior = np.minimum(TRUE_RATIOS, margin**0.4), TRUE_PRIOR
        self.units: Floats = np.zeros(2)  # by arm
        self.events: Floats = np.zeros(2)

    def bets(self, block: UnitBlock) -> Bets:
        """As of a rate, counting both arms' requests."""
        for arm in (0, 1):
            y = block.y[(block.arm == arm) & (block.w > 0.0)]
            self.units[arm] += len(y)
            self.events[arm] = np.add.accumulate(np.concatenate(([self.events[arm]], y)))[-1]
        return super().bets(block)

    @property
    def shares(self) -> tuple[float, float]:
        """Stable's and the canary's shares of such requests."""
        stable, canary = (self.events / np.maximum(self.units, 1.0)).tolist()
        return stable, canary

    @property
    def text(self) -> str:
        """Why it is open, in words."""
        stable, canary = self.shares
        return (
            f"{stable:.1%} of stable's and {canary:.1%} of the canary's requests failed, or were left by "
            "clients who do not wait for what is to be proven, or nobody knows for how long"
        )


class LeftShare(NeedsCoin):
    """The requests that could hide a tail: left late, or nobody knows when. Bets nothing, and counts them as
    `LeftProof` does, by unit, without what failed; in the present stage, where its proof is of a stage."""

    __state__ = ("units", "left", "stage")

    def __init__(self, *, percentile: float, by_stage: bool = True) -> None:
        self.prior: Floats = np.ones(1)
        self._few = FEW_LEFT * (1.0 - percentile)
        self._by_stage = by_stage
        self.units: Floats = np.zeros(2)  # by arm
        self.left: Floats = np.zeros(2)
        self.stage = 0

    def bets(self, block: UnitBlock) -> Bets:
        """None. Counts both arms' units."""
        if self._by_stage and len(block) and block.stage[0] > self.stage:
            self.stage = int(block.stage[0])
            self.units, self.left = np.zeros(2), np.zeros(2)
        for arm in (0, 1):
            y = block.y[(block.arm == arm) & (block.w > 0.0)]
            self.units[arm] += len(y)
            self.left[arm] = np.add.accumulate(np.concatenate(([self.left[arm]], y)))[-1]
        return Bets(NO_ROWS, np.empty((1, 0)), NO_ROWS)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to learn."""

    @property
    def is_needed(self) -> bool:
        """Whether so many were left, of one arm, that they could hide a tail."""
        return bool((self.left > self._few * np.maximum(self.units, 1.0)).any())
