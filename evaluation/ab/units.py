"""Units of a recorded A/B test: each counts once, with the mean of its answers, on the side it was drawn to.

A sticky user asks more than once, and any of the answers may be graded, so the first alone would leave out
most of what is known (an error only in later turns; a grade only at the end). Every value of a unit's whole
draw is a valid outcome of that unit, and the mean keeps the scale. A unit that is drawn again at another
split counts with its first draw; of A before a raise and of B after it, or the reverse at a lower one, is no
contradiction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.units.units import HELD, LEFT_OUT, REQUEST

MAX_CROSSINGS = 10  # units on both sides by accident; more, and above MAX_SHARE of all, are a broken split
MAX_SHARE = 0.01
NAMED = 3  # units shown by name


@dataclass(frozen=True, slots=True)
class AbUnits:
    """Units in order of assignment, as arrays of equal length. `y`: NaN where no answer has an outcome."""

    row: NDArray[np.intp]  # of its first request
    is_b: NDArray[np.bool_]
    w: Floats
    y: Floats
    answers: Ints  # with an outcome
    crossed: tuple[str, ...]  # names of units seen on both sides of the same draw
    rows_left_out: int  # without a coin, or of units whose draw is not in the file

    def crossing(self) -> str | None:
        """Which units are on both sides, in one line; None: none is."""
        if not self.crossed:
            return None
        more = len(self.crossed) - NAMED
        names = ", ".join(self.crossed[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"{len(self.crossed)} of {len(self.row)} units are on both sides: {names}"

    @property
    def is_broken(self) -> bool:
        """Whether so many units are on both sides that the split was not by these units."""
        return len(self.crossed) > max(MAX_CROSSINGS, MAX_SHARE * len(self.row))


def units_of_rows(
    names: Sequence[str] | NDArray[np.generic] | None,
    is_b: NDArray[np.bool_],
    w: Floats,
    kind: Ints,
    y: Floats,
) -> AbUnits:
    """The units of rows in order of assignment. names: None: each request is its own unit.

    kind: as `evaluation.units.units.kind_of`. y: outcomes, NaN where missing.
    """
    rows = len(is_b)
    own = np.arange(rows, dtype=np.int64)
    if names is None:
        code = own
    else:
        _, known = np.unique(np.asarray(names), return_inverse=True)
        code = np.where(kind == REQUEST, own + int(known.max(initial=0)) + 1, known)
    coin = (kind != LEFT_OUT) & (w > 0.0) & (w < 1.0)
    kept = np.flatnonzero(coin)
    _, first, unit = np.unique(code[kept], return_index=True, return_inverse=True)
    first = kept[first]
    is_drawn = kind[first] != HELD  # else its draw is not in the file
    start = first[unit]  # each kept row's unit, by its first row
    side, raised, lowered = is_b[start], w[kept] > w[start], w[kept] < w[start]
    same_draw = (kind[kept] == HELD) | (w[kept] == w[start])
    is_moved = ((raised & ~side) | (lowered & side)) & (kind[kept] != HELD)  # as the same bucket says
    crosses = (is_b[kept] != side) & ~is_moved
    redrawn = np.zeros(len(first), dtype=np.int64) + rows
    np.minimum.at(redrawn, unit[~same_draw], kept[~same_draw])
    counted = same_draw & (is_b[kept] == side) & (kept < redrawn[unit]) & ~np.isnan(y[kept])
    total = np.bincount(unit[counted], weights=y[kept[counted]], minlength=len(first))
    answers = np.bincount(unit[counted], minlength=len(first))
    mean = np.divide(total, answers, out=np.full(len(first), np.nan), where=answers > 0)
    order = np.flatnonzero(is_drawn)[np.argsort(first[is_drawn], kind="stable")]
    both = np.unique(unit[crosses])
    crossed = () if names is None else tuple(str(np.asarray(names)[first[u]]) for u in both[is_drawn[both]])
    chosen = first[order]
    return AbUnits(
        chosen,
        is_b[chosen],
        w[chosen],
        mean[order],
        answers[order].astype(np.int64),
        crossed,
        int(rows - np.isin(unit, order).sum()),
    )
