"""Classes of tosses: units drawn with one probability, in one round, at one weight: alike before the coin."""

from __future__ import annotations

import numpy as np

from evaluation.betting.unit_block import Ints
from evaluation.units.later_blocks import BUCKETS, bucket_of

ORIGINS = 2 * BUCKETS  # of one class
MAX_CLASSES = 4096  # distinct probabilities, rounds and weights; tosses of further ones are of no class


class TossClasses:
    """The class of each unit's last toss, together with the unit's bucket and the arm: the toss's origin,
    `(class * BUCKETS + bucket) * 2 + arm`."""

    __state__ = ("keys", "tosses")

    def __init__(self) -> None:
        self.origin_of: dict[int, int] = {}  # by unit
        self.keys = []

    @property
    def keys(self) -> list[tuple[float, int, float]]:
        """P(canary), round and logged weight of each class, in the order of their first use."""
        return self._keys

    @keys.setter
    def keys(self, keys: list[tuple[float, int, float]]) -> None:
        self._keys = keys
        self._class_of = {key: index for index, key in enumerate(keys)}

    @property
    def tosses(self) -> list[Ints]:
        """Units and the origins of their last tosses as two arrays, for a snapshot."""
        known, count = self.origin_of, len(self.origin_of)
        return [np.fromiter(c, dtype=np.int64, count=count) for c in (known.keys(), known.values())]

    @tosses.setter
    def tosses(self, arrays: list[Ints]) -> None:
        units, origins = arrays
        self.origin_of = dict(zip(units.tolist(), origins.tolist(), strict=True))

    def note(self, unit: int, probability: float, arm: int, round_: int, w: float) -> int:
        """Note a toss at the logged weight `w`; returns its origin, -1 where there is no coin or no room."""
        if not 0.0 < probability < 1.0 or round_ < 1:
            self.forget(unit)
            return -1
        key = probability, round_, w
        index = self._class_of.get(key)
        if index is None:
            if len(self._keys) >= MAX_CLASSES:
                self.forget(unit)
                return -1
            index = self._class_of[key] = len(self._keys)
            self._keys.append(key)
        origin = self.origin_of[unit] = (index * BUCKETS + bucket_of(unit)) * 2 + arm
        return origin

    def forget(self, unit: int) -> None:
        """The unit is on the canary whatever its last toss was: it is of no class any more."""
        self.origin_of.pop(unit, None)

    def of(self, unit: int) -> int:
        """The origin of the unit's last toss, or -1."""
        return self.origin_of.get(unit, -1)
