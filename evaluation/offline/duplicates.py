"""Duplicate requests of a table, which would count as evidence twice.

With `request_id`, a repeated id is a duplicate. Without it: a unit assigned by `request` is its own request,
so a repeated unit is one. A sticky key may send two requests at the same moment, so its rows are duplicates
only where all else is equal too, and at least one outcome is not just 0 or 1. Where nothing names a request,
or all outcomes are 0 or 1, only a table that repeats every row is distinguishable from chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats
from evaluation.offline.arrays import Array

MIN_COPIES = 3  # fewer rows may agree to the microsecond by chance
RESOLUTION_MS = 0.0005  # seconds since 1970 as floats are exact to 0.0002 ms
MIN_GROUPS = 20  # fewer distinct rows may all be repeated by chance


def repeated_names(names: Array, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the chosen rows repeat the name of an earlier one."""
    repeated = np.zeros(len(names), dtype=np.bool_)
    rows = np.flatnonzero(chosen)
    picked = names[rows]
    if picked.dtype.kind in "iuf":
        numbers = picked.astype(np.float64) if picked.dtype.kind == "f" else picked.astype(np.int64)
        if bool((numbers[1:] > numbers[:-1]).all()):
            return repeated
    if len(set(picked.tolist())) == len(picked):
        return repeated
    _, first = np.unique(picked, return_index=True)
    repeated[rows] = True
    repeated[rows[first]] = False
    return repeated


def repeated_rows(at_s: Floats, names: Array | None, others: Sequence[Floats]) -> NDArray[np.bool_]:
    """Which rows repeat an earlier one: same moment, same name, same values of `others`.

    `others`: arm and w, then the outcomes, NaN where missing.
    """
    return _copies(at_s, names, others)


def renamed_copies(at_s: Floats, others: Sequence[Floats]) -> NDArray[np.bool_]:
    """Which rows equal an earlier one in all but their id: start to the microsecond, arm and values.

    `others`: as for `repeated_rows`. Starts in whole milliseconds say nothing, as requests may share them;
    nor do fewer than `MIN_COPIES` rows, or outcomes that are all 0 or 1.
    """
    thousandths = at_s * 1000.0
    is_exact = np.abs(thousandths - np.round(thousandths)) > RESOLUTION_MS
    if not is_exact.any():
        return np.zeros(len(at_s), dtype=np.bool_)
    copies = _copies(at_s, np.zeros(len(at_s)), others) & is_exact
    return copies if int(copies.sum()) >= MIN_COPIES else np.zeros(len(at_s), dtype=np.bool_)


def _copies(at_s: Floats, names: Array | None, others: Sequence[Floats]) -> NDArray[np.bool_]:
    repeated = np.zeros(len(at_s), dtype=np.bool_)
    tied = at_s[1:] == at_s[:-1]
    if not tied.any():
        return repeated
    rows = np.flatnonzero(np.concatenate((tied, [False])) | np.concatenate(([False], tied)))
    keys = [np.ascontiguousarray(column[rows]) + 0.0 for column in (at_s, *others)]  # makes -0.0 equal 0.0
    if names is not None:
        keys.append(np.unique(names[rows], return_inverse=True)[1].astype(np.float64))
    order = np.lexsort(keys)
    same = np.ones(len(rows) - 1, dtype=np.bool_)
    for key in keys:
        before, after = key[order[:-1]], key[order[1:]]
        same &= (before == after) | (np.isnan(before) & np.isnan(after))
    is_copy = np.concatenate(([False], same))  # in sorted order: equals the row before
    sizes = np.diff(np.append(np.flatnonzero(~is_copy), len(rows)))
    is_copy = is_copy[np.argsort(order)]
    every_row_repeats = len(rows) == len(at_s) and len(sizes) >= MIN_GROUPS and np.gcd.reduce(sizes) > 1
    is_distinctive = np.full(len(rows), every_row_repeats, dtype=np.bool_)
    if names is not None:
        for column in others[2:]:
            value = column[rows]
            is_distinctive |= ~np.isnan(value) & (value != 0.0) & (value != 1.0)
    repeated[rows] = is_copy & is_distinctive
    return repeated
