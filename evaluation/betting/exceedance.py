"""Whether a value is above stable's percentile: the events of a percentile's gate (`rates.py`, `tails.py`).

A request without an answer (infinite) is above it on both arms, as in `latency.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.histogram import StepsNow
from evaluation.betting.latency import MIN_VALUES
from evaluation.betting.left import MIN_WAITED_FOR, Left, with_left
from evaluation.betting.session_limits import Limits, RowOrder, SessionLimits
from evaluation.betting.stable_baseline import FIRST_EPOCH, Stable, epoch_after
from evaluation.betting.tails import (
    MANY,
    TAIL_VALUES,
    HeldLimit,
    Limit,
    RecentValues,
    percentile_bin,
    with_errors,
)
from evaluation.betting.unit_block import Flags, Floats, Ints

MIN_BESIDE = 500  # values of stable's, of which is asked whether ...
MANY_APART = 0.02  # ... so many times as many are of clients that the canary is hardly offered to
LONGEST_WAIT = 512  # rows until the limit of a percentile follows stable's values
#: Where in `Exceedance._limits` the limits of proofs begin: that which is held, of recent values, and
#: two that the percentile may be. And where what follows them does.
UPPERS, WAITED_FOR = (1, 5, 9, 13), 17


class Exceedance:
    """Indicator of values above stable's past percentile; the canary's are divided by a factor first.

    The threshold is that of recent values, frozen for an epoch of the rows counted here, and seeded from
    stable's traffic before the rollout; NaN until it is known. That of proofs may be held higher
    (`tails.HeldLimit`). A session keeps that of its draw (`session_limits.py`).
    """

    __state__ = (
        *("threshold", "upper", "lower", "inside", "own_lower", "own_inside"),
        *("waited_for", "has_left", "stable", "recent", "held", "rows", "until", "steps", "limits"),
        *("many", "may_be"),
        *("apart", "beside", "is_own", "is_stale"),
    )

    def __init__(
        self,
        *,
        percentile: float,
        highest: float = np.inf,
        with_steps: bool = False,
        margins: tuple[float, ...] = (),
        session_s: float = 600.0,
    ) -> None:
        """highest: upper bound of the threshold. with_steps: values may be recorded in steps, as in
        `ShapeProof`. margins: of the proofs. session_s: how long a session may be."""
        self._percentile = percentile
        self._margins = margins
        self.has_left = False  # a client left
        self.waited_for: Floats = np.zeros(len(margins))  # of answers above it, above it times the margin
        self._highest = highest
        self.threshold = float("nan")
        self.upper = float("nan")  # for proofs, see `tails.Limit`
        self.lower = float("nan")
        self.inside = 0.0
        self.own_lower = float("nan")  # the same of recent values alone, whose upper edge is the threshold
        self.own_inside = 0.0
        self.stable = Stable(with_histogram=True, with_steps=with_steps)
        self.steps = StepsNow()
        self.recent = RecentValues(TAIL_VALUES / (1.0 - percentile))
        self.held = HeldLimit(TAIL_VALUES / (1.0 - percentile))
        self.many = RecentValues(MANY * TAIL_VALUES / (1.0 - percentile))
        self.may_be: Floats = np.full((2, 4), np.nan)  # what the percentile may be, as of `tails.Limit`
        self.rows = 0
        self.until = FIRST_EPOCH
        # Requests of stable's since it was last asked whether many are apart: those, and the limit's own.
        self.apart = self.beside = 0
        self.is_own = False  # many are apart
        self.is_stale = False  # what is known of stable is of other clients
        self.limits = SessionLimits(session_s)
        self.limits.set(self._limits())

    def seed(self, values: Floats) -> None:
        """Learn stable's values from before the rollout."""
        self.stable.learn(values)
        self._end_epoch()
        self.limits.set(self._limits())

    def pass_by(self, rows: RowOrder) -> None:
        """Note rows without any value, which are not given otherwise: their sessions may have some later."""
        self.limits.note(rows)

    def of(
        self,
        waited: Floats,
        slowest: Floats,
        arm: NDArray[np.bool_],
        times: tuple[float, ...],
        counted: slice | Ints = slice(None),
        order: RowOrder | None = None,
    ) -> Floats:
        """len(times) x n indicators, by divisor of the canary's values; NaN where the value is missing.

        The first row uses `waited` (rollback: censored values at their limit), the others `slowest` (censored
        values infinite); unanswered requests are infinite in both. counted: the rows that end epochs and
        whose values of stable are learned. order: None: each row is its own unit.
        """
        return self._of(waited, slowest, arm, times, counted, None, order)[0][0]

    def of_channels(
        self,
        waited: Floats,
        slowest: Floats,
        arm: NDArray[np.bool_],
        times: tuple[float, ...],
        counted: slice | Ints,
        left: Left | None,
        apart: Flags | None = None,
        order: RowOrder | None = None,
    ) -> tuple[Floats, ...]:
        """The indicators of the three channels that differ in the requests that were left (`left.py`; None:
        none was), whose values are NaN; of proofs, those of the first one at the limit of recent values
        alone, and those of the second one without what failed (`LeftShare`); and two more of the first one,
        at what the percentile may be. apart: rows that the limit is not of, nor any proof; None: none are."""
        (out, *others), limits = self._of(waited, slowest, arm, times, counted, apart, order)
        if left is None:
            known, third = out, out
            second = np.where((np.arange(len(times)) == 0)[:, None], out, out * 0.0)
        else:
            known, second, third = with_left(
                out, left, limits[0], limits[1], limits[WAITED_FOR:] >= MIN_WAITED_FOR, times, arm
            )
            for index, factor in enumerate(times):
                for of_proof, upper in zip(others, UPPERS[1:], strict=True):
                    of_proof[index, left.is_left] = left.known(limits[upper], factor, arm)[left.is_left]
            for of_proof in others:
                of_proof[:, np.isnan(limits[0])] = np.nan
        alone = second.copy()  # from the beginning: how many were left is known of all requests
        if not self.has_left:  # nothing to prove of clients that left before one has
            second[1:, : None if left is None else int(np.argmax(left.is_left))] = np.nan
            self.has_left = left is not None
        # What failed has no answer either: a canary that answers it may have more that are left.
        second[1:, np.isinf(waited)] += 1.0
        if apart is not None:
            for indicators in (known, second, third, alone, *others):
                indicators[1:, apart] = np.nan
        own, *may_be = others
        return known, second, third, own, alone, *may_be

    def _of(
        self,
        waited: Floats,
        slowest: Floats,
        arm: NDArray[np.bool_],
        times: tuple[float, ...],
        counted: slice | Ints,
        apart: Flags | None,
        order: RowOrder | None,
    ) -> tuple[list[Floats], Floats]:
        """The indicators of `of`, and of proofs at each other limit (`UPPERS`), and the limits of each row
        (`_limits`)."""
        limits = np.full((WAITED_FOR + len(self._margins), len(waited)), np.nan)
        quotients = np.array([slowest / factor for factor in times])
        present = np.arange(len(waited))[counted]
        present = present[~np.isnan(slowest[present])]
        others = present[:0]
        if apart is not None:
            others = present[apart[present] & ~arm[present]]
            present = present[~apart[present]]

        def compare(first: int, end: int) -> None:
            which = slice(first, end)
            self.limits.note(order, which)
            epochs = self.limits.epochs_of(order, which, end - first)
            limits[:, which] = self.limits.edges[:, epochs]
            for steps, has in self.limits.steps_of(epochs):
                rows = first + np.flatnonzero(has)
                for index, factor in enumerate(times[1:], start=1):
                    quotients[index, rows] = steps.divided(slowest[rows], factor)

        start = given = 0
        while start < len(present):
            stop = min(len(present), start + self.until - self.rows)
            rows = present[start:stop]
            last = int(rows[-1])
            compare(given, last + 1)
            given = last + 1
            self.stable.learn(waited[rows][~arm[rows]])
            self.beside += int(np.count_nonzero(~arm[rows]))
            before = int(np.searchsorted(others, rows[-1]))
            self.apart, others = self.apart + before, others[before:]
            self.rows += stop - start
            if self.rows == self.until:
                self._end_epoch()
                self.until += min(epoch_after(self.rows), LONGEST_WAIT)
                first_seq, now_s = (-1, 0.0) if order is None else (order.seq[last] + 1, order.at_s[last])
                self.limits.begin(self._limits(), int(first_seq), float(now_s))
            start = stop
        self.apart += len(others)
        compare(given, len(waited))
        found = [np.empty((len(times), len(waited))) for _ in UPPERS]
        for index, factor in enumerate(times):
            values = waited if index == 0 else slowest
            scaled = np.where(arm, waited / factor if index == 0 else quotients[index], values)
            if index == 0:
                for events in found:
                    events[index] = scaled > limits[0]
            else:
                for events, upper in zip(found, UPPERS, strict=True):
                    events[index] = _events(scaled, arm, *limits[upper : upper + 4])
            is_unknown = np.isnan(limits[0]) | np.isnan(values)
            for events in found:
                events[index, is_unknown] = np.nan
        return found, limits

    def discounted(self, failures: float) -> float:
        """The part of an event that an unanswered request of the canary is, where it may leave `failures`
        times as many unanswered as stable. In (0, 1]; 1 for failures = 1."""
        above = 1.0 - self._percentile
        return above + (1.0 - above) / failures

    def _end_epoch(self) -> None:
        histogram = self.stable.histogram
        if histogram is not None and histogram.total >= MIN_VALUES:
            self._forget_others()
            fresh = self.recent.end_epoch(histogram)
            if not self.recent.weights.any():  # all that was known has been forgotten: no limit yet
                return
            limit = self.recent.limit(self._percentile, histogram)
            self.threshold = min(limit.upper, self._highest)
            values = float(np.add.accumulate(fresh)[-1])
            share = with_errors(self._percentile, values, 1.0)
            own = histogram.range.edges_of(percentile_bin(fresh, share))[1]
            bound = self.recent.lower_bound(self._percentile, histogram)
            self.held.end_epoch(bound, own, values)
            held = min(max(limit.upper, self.held.limit), self._highest)
            self.upper, self.lower, self.inside, _ = limit.moved_to(held)
            _, self.own_lower, self.own_inside, _ = limit.moved_to(self.threshold)
            self.many.end_epoch(histogram)
            may_be = self.many.may_be(self._percentile, histogram)
            self.may_be = np.array([of.moved_to(min(of.upper, self._highest)) for of in may_be])
            above = max(histogram.share_above(self.upper), 1e-9)
            at_margins = [histogram.share_above(self.upper * margin) for margin in self._margins]
            self.waited_for = np.array(at_margins) / above
            proven = max(self._margins, default=1.0)
            self.steps.set(
                histogram.steps(float(min(self.upper, self.threshold, *self.may_be[:, 0])) / proven)
            )

    def _forget_others(self) -> None:
        """Begin anew where the requests that the limit is of have become some clients' alone, or all again:
        what stable answered to others is no reference for them. With the epoch after the one that shows it,
        which is of these alone."""
        if self.is_stale:
            self.is_stale = False
            self.recent.forget()
            self.many.forget()
            self.held = HeldLimit(TAIL_VALUES / (1.0 - self._percentile))
        if self.beside >= MIN_BESIDE:
            is_own = self.apart >= MANY_APART * self.beside
            self.apart = self.beside = 0
            self.is_own, self.is_stale = is_own, is_own != self.is_own

    def _limits(self) -> Limits:
        """The threshold; the four limits of proofs (`UPPERS`); and `waited_for`."""
        held = Limit(self.upper, self.lower, self.inside)
        recent = Limit(self.threshold, self.own_lower, self.own_inside)
        edges = ((self.threshold,), held, recent, *self.may_be, self.waited_for)
        return Limits(np.concatenate(edges), self.steps.get())


def _events(
    scaled: Floats, arm: NDArray[np.bool_], upper: Floats, lower: Floats, inside: Floats, part: Floats
) -> Floats:
    """1 above `upper`, 0 below `lower`, in between the part of an event that `tails.Limit` says. Stable's
    answers count `part` of that."""
    alike = (scaled > lower) & (scaled <= upper)
    events = np.where(alike, np.where(arm, 1.0, inside), (scaled > upper).astype(np.float64))
    counted: Floats = np.where(arm | np.isinf(scaled), events, part * events)
    return counted
