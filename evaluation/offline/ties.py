"""Order of rows with the same time stamp, which must not depend on the arm.

A log at a resolution of one second leaves the order within a second to the file. If the file is sorted by
arm there, the next row's arm is known before its coin is bet, and twins are INVALID (24 of 24 at 10 s). So
ties keep the file's order unless the arms within them stand in fewer or more runs than chance allows; then
they are ordered by a hash that knows nothing of the arm.

Source: Wald & Wolfowitz, On a test whether two samples are from the same population (1940), over all ties.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.wealth import Floats, Ints

MAX_Z = 3.0
_MIX = np.uint64(0x9E3779B97F4A7C15)


def blind_order(at_s: Floats, arm: NDArray[np.bool_], has_coin: NDArray[np.bool_], key: Ints) -> Ints | None:
    """Order of the rows in which ties do not depend on the arm; None: the given order is such an order.

    at_s: seconds, in order. key: what a tie may be ordered by, the same for all rows of a unit; 0: the row's
    own place in the file, hashed. Rows without a coin keep their place relative to their own key.
    """
    if not bool((at_s[1:] == at_s[:-1]).any()) or abs(runs_z(at_s, arm, has_coin)) <= MAX_Z:
        return None
    rows = np.arange(len(at_s), dtype=np.uint64)
    name = np.where(key != 0, key.astype(np.uint64), _mixed(rows + np.uint64(1)))
    order: Ints = np.lexsort((rows, _mixed(name), at_s))
    return order


def runs_z(at_s: Floats, arm: NDArray[np.bool_], has_coin: NDArray[np.bool_]) -> float:
    """Standard score of the number of arm changes within ties: 0 by chance, far below where sorted by arm."""
    rows = np.flatnonzero(has_coin)
    if len(rows) < 2:
        return 0.0
    side, tie = arm[rows], np.cumsum(np.diff(at_s[rows], prepend=at_s[rows[0]]) != 0.0)
    size = np.bincount(tie).astype(np.float64)
    canary = np.bincount(tie, weights=side.astype(np.float64))
    mixed = 2.0 * canary * (size - canary)
    changes = float(((side[1:] != side[:-1]) & (tie[1:] == tie[:-1])).sum())
    many = size > 1.0
    mixed, size = mixed[many], size[many]
    expected = float((mixed / size).sum())
    variance = float((mixed * (mixed - size) / (size**2 * (size - 1.0))).sum())
    return (changes - expected) / variance**0.5 if variance > 0.0 else 0.0


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each value (splitmix64)."""
    x = values * _MIX
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)
