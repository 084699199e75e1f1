"""Units of a recorded A/B test: each counts once, with the mean of its answers, on the side it was drawn to.

A sticky user asks more than once, and any of the answers may be graded, so the first alone would leave out
most of what is known (an error only in later turns; a grade only at the end). Every value of a unit's whole
draw is a valid outcome of that unit, and the mean keeps the scale.

Means compare answers only where both sides have as many. A mean of several is spread less than one answer,
so that ranks of means tell identical answers apart; and where outcomes change with depth, so do means
(cluster sizes are informative). So where units of one side have other numbers of answers, each unit counts
with its first one, as in a live test. Rejected: the ratio of the sides' totals with the delta method (Deng,
Knoblich & Lu, 2018). It weighs a unit by a number that the version changes, so deeper conversations, or more
questions of those who fail more, name a winner as well.

A unit that is drawn again at another split counts with its first draw; of A before a raise and of B after it,
or the reverse at a lower one, is no contradiction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.units.units import HELD, LEFT_OUT, REQUEST

MAX_CROSSINGS = 10  # units on both sides by accident; more, and above MAX_SHARE of all, are a broken split
MAX_SHARE = 0.01
NAMED = 3  # units shown by name
DOUBT = 0.025  # level of each of three tests at which unlike numbers of answers are likely enough
SURE = 0.00005  # ... at which answers of other turns are sure
MIN_VARIANCE = 5.0  # of B's units with so many answers, by the coin; rarer numbers are taken together


@dataclass(frozen=True, slots=True)
class AbUnits:
    """Units in order of assignment, as arrays of equal length. `y`: NaN where no answer has an outcome."""

    row: NDArray[np.intp]  # of its first request
    is_b: NDArray[np.bool_]
    w: Floats
    y: Floats
    answers: Ints  # with an outcome
    by_first: bool  # y is of the first answer, as the sides have unlike numbers of them; else the mean
    is_graded_unlike: bool  # the answers that count are surely of other turns on one side
    crossed: tuple[str, ...]  # names of units seen on both sides of the same draw
    rows_left_out: int  # without a coin, or of units whose draw is not in the file

    def crossing(self) -> str | None:
        """Which units are on both sides, in one line; None: none is."""
        if not self.crossed:
            return None
        more = len(self.crossed) - NAMED
        names = ", ".join(self.crossed[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"{len(self.crossed)} of {len(self.row)} units are on both sides: {names}"

    def graded_unlike(self) -> str | None:
        """Why the answers that count cannot be compared, in one line; None: they can be."""
        if not self.is_graded_unlike:
            return None
        if not self.by_first:
            return (
                "the answers with an outcome are of other turns on one side; grade the same answers of both"
            )
        return "the first answer with an outcome comes later on one side; grade the same answers of both"

    @property
    def has_means(self) -> bool:
        """Whether an outcome is the mean of several."""
        return not self.by_first and bool((self.answers > 1).any())

    def how_counted(self) -> str | None:
        """What of a unit's answers counts, in one line; None: units have one each."""
        if not (self.answers > 1).any():
            return None
        has = self.answers > 0
        if not self.by_first:
            mean = float(self.answers[has].mean())
            return f"a unit counts once, with the mean of its answers ({mean:.3g} each on average)"
        a, b = (float(self.answers[has & (self.is_b == side)].mean()) for side in (False, True))
        return (
            f"units of A have other numbers of answers than B's ({a:.3g} and {b:.3g} on average), so that "
            "means are not comparable: a unit counts with its first answer alone"
        )

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
    of_draw = same_draw & (is_b[kept] == side) & (kept < redrawn[unit])
    counted = of_draw & ~np.isnan(y[kept])
    total = np.bincount(unit[counted], weights=y[kept[counted]], minlength=len(first))
    answers = np.bincount(unit[counted], minlength=len(first))
    mean = np.divide(total, answers, out=np.full(len(first), np.nan), where=answers > 0)
    order = np.flatnonzero(is_drawn)[np.argsort(first[is_drawn], kind="stable")]
    both = np.unique(unit[crosses])
    crossed = () if names is None else tuple(str(np.asarray(names)[first[u]]) for u in both[is_drawn[both]])
    chosen = first[order]
    by_first = numbers_differ(is_b[chosen], w[chosen], answers[order])
    having, place = np.unique(unit[counted], return_index=True)
    if by_first:
        mean[having] = y[kept[counted][place]]
    from_start = _places(unit[of_draw])
    ways = [from_start] if by_first else [from_start, _places(unit[of_draw][::-1])[::-1]]
    is_graded_unlike = True
    for places in ways:
        of_counted = places[counted[of_draw]].astype(np.float64)
        turns = np.zeros((2, len(first)))
        turns[0, having] = of_counted[place]
        turns[1] = np.bincount(unit[counted], weights=of_counted, minlength=len(first))
        turns[1] /= np.maximum(answers, 1)
        unlike = (
            numbers_differ(is_b[chosen], w[chosen], turn[order], level=SURE)
            for turn in (turns[:1] if by_first else turns)
        )
        is_graded_unlike = is_graded_unlike and any(unlike)
    return AbUnits(
        chosen,
        is_b[chosen],
        w[chosen],
        mean[order],
        answers[order].astype(np.int64),
        by_first,
        is_graded_unlike,
        crossed,
        int(rows - np.isin(unit, order).sum()),
    )


def _places(unit: NDArray[np.intp]) -> Ints:
    """The place of each row among those of its unit, from 1. Check: of 7, 3, 7 they are 1, 1, 2."""
    order = np.argsort(unit, kind="stable")
    of_one = unit[order]
    places = np.empty(len(unit), dtype=np.int64)
    places[order] = np.arange(len(unit)) - np.searchsorted(of_one, of_one) + 1
    return places


def numbers_differ(
    is_b: NDArray[np.bool_], w: Floats, answers: Ints | Floats, *, level: float = DOUBT
) -> bool:
    """Whether units of the two sides are likely, by three tests at `level` each, to have other numbers of
    answers: higher or lower ones, or ones farther from the middle, by their ranks, which are the usual ways;
    and, by the chi-square of each number's units, any others. Units without an answer are left out.

    By the coin: (B - w) times any function of a unit's number has mean 0 if the side does not change it, at
    any splits and drift that both sides share.
    """
    has = answers > 0
    side, chance, number = is_b[has], w[has], answers[has]
    known, which, counts = np.unique(number, return_inverse=True, return_counts=True)
    if len(known) < 2:
        return False
    rank = ((np.cumsum(counts) - counts / 2.0) / len(number))[which]
    for feature in (rank, np.abs(rank - 0.5)):
        off = feature - feature.mean()
        variance = float((chance * (1.0 - chance) * off * off).sum())
        z = NormalDist().inv_cdf(1.0 - level / 2.0)
        if variance > 0.0 and abs(float(((side - chance) * off).sum())) > z * np.sqrt(variance):
            return True
    variances = np.bincount(which, weights=chance * (1.0 - chance)).astype(np.float64)
    excesses = np.bincount(which, weights=side - chance).astype(np.float64)
    return _exceeds_chance(excesses, variances, level)


def _exceeds_chance(excess: Floats, variance: Floats, level: float) -> bool:
    """Whether B's excesses of units, by number of answers, are more unlike each other than chance at `level`.

    Neighbouring numbers are taken together until the variance of each is `MIN_VARIANCE`. The quantile of
    the chi-square is that of Wilson and Hilferty (1931). Check: at 0.05 with one degree of freedom 3.75.
    """
    begins, inside = [0], 0.0
    for number, more in enumerate(variance.tolist()):
        if inside >= MIN_VARIANCE and variance[number:].sum() >= MIN_VARIANCE:
            begins.append(number)
            inside = 0.0
        inside += more
    freedom = len(begins) - 1
    if freedom == 0:
        return False
    excesses, variances = np.add.reduceat(excess, begins), np.add.reduceat(variance, begins)
    chi_square = float((excesses**2 / variances).sum() - excesses.sum() ** 2 / variances.sum())
    spread = 2.0 / (9.0 * freedom)
    limit = freedom * (1.0 - spread + NormalDist().inv_cdf(1.0 - level) * spread**0.5) ** 3
    return bool(chi_square > limit)
