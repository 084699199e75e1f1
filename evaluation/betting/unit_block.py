"""UnitBlock: settled units in order, the only thing that a bettor takes. A coin is bet once a channel.

The router tosses one coin for a unit (a request, or a sticky key) and not for each of its requests. So a
block holds one row a toss, numbered by `draw`, and refuses a number twice; a channel refuses a block that
does not continue after the last toss it has bet on (`wealth.Channel`). What a unit's requests had in common
is one outcome: their mean `y`, or, for bettors that look up single values, their `values`.

Made by `units/` (`Rows.firsts`, `Released.block`), by mirrored pairs and by tests; never from requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


_ONES: Floats = np.ones(1 << 15)
_ONES.setflags(write=False)


def ones(n: int) -> Floats:
    """Ones, read-only: the number of requests of units with one each."""
    return _ONES[:n] if n <= len(_ONES) else np.ones(n)


@dataclass(frozen=True, slots=True)
class UnitBlock:
    """Units in the order of their tosses. Arrays of equal length, read-only.

    `draw`: number of the toss, strictly ascending. `w`: P(canary) of the toss. `y`: outcome, the mean over
    the unit's `n` requests that have one, in the metric's unit, never NaN. `seq`, `canary`, `at_s`: position
    in the rollout, canary requests settled by then, and time of the unit's last request. `gap`: the canary's
    share of answered units less stable's, before this unit; None: every unit has the metric. `values` and
    `owner`: the single values and the row of each one's unit; None: `y` is the only value. `failed`: the part
    of `y` that is of requests without an answer, which count 0 in it (1 in the proof of a percentile).
    `weight`: part of a whole unit's bet, in (0, 1]. None: none failed; 1. `covariates`: n x p, known before
    the toss, NaN where missing; None: none
    are used. `adjustment`: by how much they raise the unit's expected outcome above stable's mean
    (`covariates.py`); None: not at all.
    Raises ValueError where a toss is repeated.
    """

    draw: Ints
    arm: Flags
    w: Floats
    y: Floats
    n: Floats
    seq: Ints
    canary: Ints
    at_s: Floats
    stage: Ints
    gap: Floats | None = None
    values: Floats | None = None
    owner: Ints | None = None
    failed: Floats | None = None
    weight: Floats | None = None
    covariates: Floats | None = None
    adjustment: Floats | None = None
    is_checked: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.is_checked and len(self.draw) > 1 and not bool((self.draw[1:] > self.draw[:-1]).all()):
            raise ValueError("a toss is in a block twice, or out of order; give one row for each unit")

    @classmethod
    def one(cls, *, draw: int, at_s: float, y: float, seq: int, canary: int) -> UnitBlock:
        """A single unit of the canary whose coin is not bet on, such as a mirrored pair."""
        zero = np.zeros(1, dtype=np.int64)
        return cls(
            draw=np.array([draw]),
            arm=zero == 0,
            w=np.zeros(1),
            y=np.array([y]),
            n=np.ones(1),
            seq=np.array([seq]),
            canary=np.array([canary]),
            at_s=np.array([at_s]),
            stage=zero,
        )

    def __len__(self) -> int:
        return len(self.w)

    def pick(self, rows: slice) -> UnitBlock:
        """The units of a slice, in order."""
        start, stop, _ = rows.indices(len(self))
        if start == 0 and stop == len(self):
            return self
        values, owner = self.values, self.owner
        if values is not None and owner is not None:
            inside = (owner >= start) & (owner < stop)
            values, owner = values[inside], owner[inside] - start
        return UnitBlock(
            self.draw[rows],
            self.arm[rows],
            self.w[rows],
            self.y[rows],
            self.n[rows],
            self.seq[rows],
            self.canary[rows],
            self.at_s[rows],
            self.stage[rows],
            None if self.gap is None else self.gap[rows],
            values,
            owner,
            None if self.failed is None else self.failed[rows],
            None if self.weight is None else self.weight[rows],
            None if self.covariates is None else self.covariates[rows],
            None if self.adjustment is None else self.adjustment[rows],
            is_checked=True,
        )

    @property
    def more_answers(self) -> Floats | float:
        """By how much the canary's share of answered units exceeds stable's; 0 where it does not."""
        return 0.0 if self.gap is None else np.maximum(self.gap, 0.0)

    def with_covariates(self, covariates: Floats) -> UnitBlock:
        """The same units with their covariates, n x p."""
        return replace(self, covariates=covariates, is_checked=True)

    def with_adjustment(self, adjustment: Floats) -> UnitBlock:
        """The same units with what their covariates are expected to add."""
        return replace(self, adjustment=adjustment, is_checked=True)

    def stable_values(self) -> Floats:
        """Stable's values: the single ones where the block has them, else one a unit."""
        if self.values is None or self.owner is None:
            return self.y[~self.arm]
        return self.values[~self.arm[self.owner]]
