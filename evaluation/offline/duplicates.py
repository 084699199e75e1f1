"""Requests that a table tells twice: told again they are no further evidence, and half of it would be a lie.

With `request_id` that alone decides. Without it: a unit of the word `request` is its own request, so its
name comes once. A key may ask twice at the same moment, so its rows are repeats where everything else is
equal as well, one outcome at least being more than yes or no. Where nothing names a request, and where all
outcomes are yes or no, only a table of which every row is repeated can be told from chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.wealth import Floats
from evaluation.offline.arrays import Array

FEW_GROUPS = 20  # fewer different rows may all come an even number of times by chance


def names_again(names: Array, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a name comes again among the chosen rows."""
    again = np.zeros(len(names), dtype=np.bool_)
    rows = np.flatnonzero(chosen)
    some = names[rows]
    if some.dtype.kind in "iuf":
        numbers = some.astype(np.float64) if some.dtype.kind == "f" else some.astype(np.int64)
        if bool((numbers[1:] > numbers[:-1]).all()):
            return again
    if len(set(some.tolist())) == len(some):
        return again
    _, first = np.unique(some, return_index=True)
    again[rows] = True
    again[rows[first]] = False
    return again


def rows_again(at_s: Floats, named: Array | None, others: Sequence[Floats]) -> NDArray[np.bool_]:
    """Where a row comes again at the same moment, of the same name, with the same values of `others`.

    `others`: arm and w, then the outcomes, NaN where missing.
    """
    again = np.zeros(len(at_s), dtype=np.bool_)
    tied = at_s[1:] == at_s[:-1]
    if not tied.any():
        return again
    rows = np.flatnonzero(np.concatenate((tied, [False])) | np.concatenate(([False], tied)))
    keys = [np.ascontiguousarray(column[rows]) + 0.0 for column in (at_s, *others)]  # -0.0 is 0.0
    if named is not None:
        keys.append(np.unique(named[rows], return_inverse=True)[1].astype(np.float64))
    order = np.lexsort(keys)
    same = np.ones(len(rows) - 1, dtype=np.bool_)
    for key in keys:
        one, next_one = key[order[:-1]], key[order[1:]]
        same &= (one == next_one) | (np.isnan(one) & np.isnan(next_one))
    twin = np.concatenate(([False], same))  # as sorted: equal to the one before
    found = np.zeros(len(rows), dtype=np.bool_)
    if len(rows) == len(at_s):
        starts = np.flatnonzero(~twin)
        sizes = np.diff(np.append(starts, len(rows)))
        if len(sizes) >= FEW_GROUPS and np.gcd.reduce(sizes) > 1:
            found |= twin[np.argsort(order)]
    if named is not None:
        telling = np.zeros(len(rows), dtype=np.bool_)
        for column in others[2:]:
            value = column[rows]
            telling |= ~np.isnan(value) & (value != 0.0) & (value != 1.0)
        found |= twin[np.argsort(order)] & telling
    again[rows] = found
    return again
