"""Which requests are of clients that the canary is hardly offered to: stable's percentile is not of them.

A stage may offer the canary to an audience alone, and to all others at 0.01 %, or not at all. What is
compared is then the audience's requests, and where the others are slower or faster, a limit taken of all is
no percentile of these: with others 3 times as slow a p99 was never proven, and with others 3 times as fast
what was proven was the audience's p84. So a request is apart where its weight, as logged, is less than a
hundredth of the largest one in its stage so far, which is known before its coin.

Where the others are so many that most of the canary's requests are theirs all the same, what is compared is
of them too, and nothing is apart. While no request at all has the larger weight (a canary that is withdrawn
for a time), nothing is learned of that.

While few sessions begin so (a router that has not heard of a stage yet), nothing is apart. Nor do requests of
sessions that began before the canary show anything: they have the weight of their draw.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.unit_block import Flags, Floats, Ints
from evaluation.units.sessions import Rows

APART = 0.01  # of the largest weight
WINDOW = 500  # first requests, by which it is known of the next ones whether some clients are apart
MIN_SHARE = 0.01  # of them


class Offered:
    """The largest weight of the present stage so far, and how many of the last first requests were below a
    hundredth of it. Requests from before the canary are not apart."""

    __state__ = ("stage", "largest", "seen", "low", "low_w", "other_w", "is_offered_to_some")

    def __init__(self) -> None:
        self.stage = 0
        self.largest = 0.0
        self.seen = 0  # first requests in the present window
        self.low = 0  # of them
        self.low_w = self.other_w = (
            0.0  # requests of the canary that are expected of those, and of the others
        )
        self.is_offered_to_some = False  # by the last window

    def apart(self, rows: Rows) -> Flags | None:
        """Which of the requests, in order of assignment, are apart; None: none is."""
        is_low = np.zeros(len(rows), dtype=np.bool_)
        is_counted = rows.firsts.copy()
        starts = np.flatnonzero(np.diff(rows.stage, prepend=-1) != 0).tolist()
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            if (stage := int(rows.stage[start])) > self.stage:
                self.stage, self.largest = stage, 0.0
            if stage == self.stage:
                largest = self._largest(rows.logged_w[start:stop])
                is_low[start:stop] = rows.logged_w[start:stop] < APART * largest
                is_counted[start:stop] &= largest > 0.0
            else:
                is_counted[start:stop] = False
        return self._known(is_low, np.flatnonzero(is_counted), rows.logged_w)

    def _largest(self, w: Floats) -> Floats:
        """The largest weight up to each request."""
        largest: Floats = np.maximum.accumulate(np.append(self.largest, w))[1:]
        self.largest = float(largest[-1])
        return largest

    def _known(self, is_low: Flags, counted: Ints, w: Floats) -> Flags | None:
        """The low ones in windows after one with many. counted: the first requests."""
        out, given = np.zeros(len(is_low), dtype=np.bool_), 0
        while len(counted):
            part, counted = counted[: WINDOW - self.seen], counted[WINDOW - self.seen :]
            stop = int(part[-1]) + 1
            out[given:stop] = is_low[given:stop] & self.is_offered_to_some
            given = stop
            self.seen += len(part)
            self.low += int(np.count_nonzero(is_low[part]))
            self.low_w = _plus(self.low_w, w[part][is_low[part]])
            self.other_w = _plus(self.other_w, w[part][~is_low[part]])
            if self.seen == WINDOW:
                if self.low < WINDOW:
                    self.is_offered_to_some = self.low >= MIN_SHARE * WINDOW and self.low_w < self.other_w
                self.seen = self.low = 0
                self.low_w = self.other_w = 0.0
        out[given:] = is_low[given:] & self.is_offered_to_some
        return out if out.any() else None


def _plus(total: float, w: Floats) -> float:
    """The sum, one by one: the same however the rows are cut."""
    return float(np.add.accumulate(np.append(total, w))[-1])
