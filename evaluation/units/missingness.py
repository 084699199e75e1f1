"""Missing values of a metric: too many, more on one arm, or no more at all make it INVALID, with a reason.

A sticky unit tossed one coin, so it is bet on once, with the *share* of its requests that miss the value.
(Each request: twins were INVALID in 32 to 48 of 60 runs.) A request without an answer misses nothing here: it
counts as slowest in latency, and `answered.py` accounts for its score.

Where values may be missing in any share (a judge samples), missing is the common case, and a canary whose
worst answers get no score hardly changes how often: then the rarer case, as known before, is bet on. And
nothing is proven while one arm has fewer values than its coin explains, long before that is certain.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincc, betaln

from evaluation.betting.rates import share_bets
from evaluation.betting.stable_baseline import FIRST_EPOCH, Stable, epoch_after
from evaluation.betting.unit_block import Flags, Floats, Ints, UnitBlock
from evaluation.betting.wealth import Bets, Channel, Refitted
from evaluation.stream import Stream
from evaluation.units.released import Released
from evaluation.units.sessions import Rows

MISSING_ALPHA = 0.002  # a false INVALID only holds; an unnoticed bias rolls back or promotes
RATIOS = np.array([0.1, 0.3, 0.6, 1.6, 3.0, 10.0])
SHARE_RATIOS = np.array([0.3, 0.6, 0.85, 1.2, 1.7, 3.0])  # where either may be the rarer case
MIN_ROWS = 100  # before a share of missing values is reported
WINDOW = 1000  # rows
MIN_SEVERAL = 20  # sessions with several requests and a value
MOST_WITH_SEVERAL = 0.05  # of them, with several values, where conversations have one each
MIN_SILENT = 20  # units in a row without a value before a metric has stopped
LONGEST_PAUSE = 2.0  # times the longest one so far, in units: a metric has stopped
MAX_UNEVEN = 3.0  # standard errors between the arms' shares of values; beyond, nothing is proven meanwhile
SILENCE_ODDS = 1e-6  # probability of such a silence by chance


class PresenceBet(Refitted):
    """Two-sided: bets that values are missing (or present) more often on one arm than its coin explains.

    `y`: the unit's share of requests without (with) a value; the rarer of the two. `1 + d y` on the canary,
    `1 - d y w / (1 - w)` on stable, `d = rho / (w rho + 1 - w) - 1`. For present values w is P(canary) given
    that the value is present.
    """

    __state__ = ()

    def __init__(self, ratios: Floats = RATIOS) -> None:
        self._ratios = ratios
        self.prior: Floats = np.ones(len(ratios))

    def bets(self, block: UnitBlock) -> Bets:
        """On units with a share above 0, with a look after each."""
        return share_bets(block, np.ones(len(block)), self._ratios)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""


class PresentShare:
    """Running mean of the units' shares of present values, updated where an epoch ends.

    Units without an answer count with it: an arm that answers more would else have more values.
    """

    __state__ = ("total", "count", "rows", "until", "share")

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0
        self.rows = 0
        self.until = FIRST_EPOCH
        self.share = math.nan

    def before(self, y: Floats) -> Floats:
        """The mean as known before each unit, in order; NaN until an epoch with values has ended. y: the
        units' shares, NaN where no value is expected."""
        out = np.empty(len(y))
        start = 0
        while start < len(y):
            stop = min(len(y), start + self.until - self.rows)
            part = y[start:stop]
            known = part[~np.isnan(part)]
            out[start:stop] = self.share
            self.total = float(np.add.accumulate(np.concatenate(([self.total], known)))[-1])
            self.count += len(known)
            self.rows += stop - start
            if self.rows == self.until:
                self.until += epoch_after(self.rows)
                self.share = self.total / self.count if self.count else math.nan
            start = stop
        return out


class OneValue:
    """Whether conversations have one value each, as where a judge scores them as a whole.

    Then a longer conversation has a smaller share of values, but misses none. Known before it: where
    an epoch ends, whether hardly any of the sessions with a value and several requests has several values.
    """

    __state__ = ("several", "many", "rows", "until", "is_one")

    def __init__(self) -> None:
        self.several = 0
        self.many = 0
        self.rows = 0
        self.until = FIRST_EPOCH
        self.is_one = False

    def of(self, released: Released, column: int, weights: int) -> Flags | None:
        """Which sessions are of conversations with one value each; None: none is. column: of the values;
        weights: of those of requests without an answer, 0 for the others."""
        has_one = self.before(released.known(column), released.answered(weights))
        return has_one if has_one.any() else None

    def before(self, values: Floats, requests: Floats) -> Flags:
        """For each session, in order, whether those before it have one value each. values, requests: of each
        session, where requests without an answer are none."""
        out = np.zeros(len(values), dtype=np.bool_)
        start = 0
        while start < len(values):
            stop = min(len(values), start + self.until - self.rows)
            part = slice(start, stop)
            out[part] = self.is_one
            self.several += int(np.count_nonzero((values[part] > 0.0) & (requests[part] > 1.0)))
            self.many += int(np.count_nonzero(values[part] > 1.0))
            self.rows += stop - start
            if self.rows == self.until:
                self.until += epoch_after(self.rows)
                self.is_one = self.several >= MIN_SEVERAL and self.many <= MOST_WITH_SEVERAL * self.several
            start = stop
        return out


_STATE = (
    "stream", "rows", "present", "window", "before", "firsts", "firsts_present", "silent", "pause", "last_s",
)  # fmt: skip


class Presence:
    """Counts of present and missing values of one metric, and the test that both arms miss equally many."""

    def __init__(
        self,
        *,
        on_present: bool,
        max_missing: float,
        restart_share: float,
        is_judged: bool,
        is_counted: bool = True,
        is_two_sided: bool = False,
    ) -> None:
        """on_present: bets on present values, not on missing ones. max_missing: share; 1: any. is_counted:
        False for an alarm, whose values may be missing. is_two_sided: bets on the other case too, while it is
        the rarer; not where the arms are sampled differently, as w is then that of a unit with a value."""
        self._is_counted = is_counted
        self.on_present = on_present
        self._is_judged = is_judged  # reported after the answer, by someone who may sample
        self._max_missing = max_missing
        self.stream = Stream(with_histogram=False)
        limit = math.log(1.0 / MISSING_ALPHA)
        self.stream.channels.append(Channel(PresenceBet(), limit=limit, restart_share=restart_share))
        self.shares = Stream(
            with_histogram=False
        )  # of the case that `stream` does not bet on, where it is rarer
        self.present_share = PresentShare()
        self.uneven: Floats = np.zeros(2)  # sum of the canary's excess of values, and its variance
        self._is_two_sided = is_two_sided
        if is_two_sided:
            bettor = PresenceBet(SHARE_RATIOS)
            self.shares.channels.append(Channel(bettor, limit=limit, restart_share=restart_share))
        self.rows = 0
        self.present = 0
        self.window: Ints = np.zeros(3, dtype=np.int64)  # rows, values, units of the present window
        self.before: Ints = np.zeros(3, dtype=np.int64)  # of the one before
        self.firsts = 0  # units
        self.firsts_present = 0  # of them, with a value in their first request
        self.silent = 0  # units since the last value
        self.pause = 0  # the most between two values so far
        self.last_s = math.nan  # when the request of the last value was assigned

    @property
    def __state__(self) -> tuple[str, ...]:
        if not self._is_counted:
            return ()
        more = ("shares", "present_share", "uneven") if self._is_two_sided else ()
        return (*_STATE, *more)

    @property
    def channel(self) -> Channel:
        """The bet on missing values."""
        return self.stream.channels[0]

    @property
    def differs_since(self) -> float:
        """Sequence number of the row that showed a difference between the arms; infinite: none has."""
        channels = (*self.stream.channels, *self.shares.channels)
        return min((float(c.decision.seq) for c in channels if c.decision.is_reached), default=math.inf)

    def feed(self, released: Released, column: int, w: Floats | None, has_one: Flags | None = None) -> None:
        """Bet on sessions, whose indicators are in a column. w: None: their own. has_one: which are of
        conversations with one value each; None: none."""
        share = released.means(column)
        if has_one is not None:
            # Whether it has any: of the shares of missing ones, 1 alone is a conversation without.
            whole = np.ceil(share) if self.on_present else np.floor(share)
            share = np.where(has_one, whole, share)
            self.stream.feed(released.block_of(share, w))
        else:
            self.stream.feed(released.block(column, w))
        if not self._is_two_sided:
            return
        y = share if self.on_present else 1.0 - share
        expected = self.present_share.before(y)
        y = np.where(np.isnan(y) | np.isnan(expected), expected, y)
        is_rarer = expected > 0.5 if self.on_present else expected <= 0.5
        other = 1.0 - y if self.on_present else y
        self.shares.feed(released.whole_block(np.where(is_rarer, other, 0.0)))
        w, beyond = released.w, np.nan_to_num(y - expected)
        terms = np.stack(((released.arm - w) * beyond, w * (1.0 - w) * beyond * beyond))
        self.uneven = np.add.accumulate(np.concatenate((self.uneven[:, None], terms), axis=1), axis=1)[:, -1]

    @property
    def is_uneven(self) -> bool:
        """Whether one arm has fewer values than chance explains, at the weights of the draws."""
        excess, variance = self.uneven.tolist()
        return bool(abs(excess) > MAX_UNEVEN * math.sqrt(variance))

    def indicator(self, present: NDArray[np.bool_], expected: NDArray[np.bool_]) -> Floats:
        """What the sessions sum for the bet: 1 for the rarer case, NaN where no value is expected."""
        return np.where(expected, (present == self.on_present).astype(np.float64), np.nan)

    def count(
        self, present: NDArray[np.bool_], expected: NDArray[np.bool_], firsts: NDArray[np.bool_], at_s: Floats
    ) -> None:
        """Count requests in order, where a value is expected."""
        rows = np.flatnonzero(expected)
        if len(rows) == 0:
            return
        has, is_first = present[rows], firsts[rows]
        last = np.flatnonzero(has)
        if len(last):
            before = np.cumsum(is_first)  # units through each row
            through = before[last]
            pauses = through - is_first[last] - np.concatenate(([-self.silent], through[:-1]))
            self.pause = max(self.pause, int(pauses[0 if self.present else 1 :].max(initial=0)))
        self.rows += len(rows)
        self.present += int(np.count_nonzero(has))
        self._count_windows(has, is_first)
        self.firsts += int(np.count_nonzero(is_first))
        self.firsts_present += int(np.count_nonzero(is_first & has))
        if len(last):
            self.silent, self.last_s = 0, float(at_s[rows[last[-1]]])
            is_first = is_first[last[-1] + 1 :]
        self.silent += int(np.count_nonzero(is_first))

    @property
    def never_arrived(self) -> bool:
        """Whether no value has arrived yet, on either arm."""
        return self.present == 0

    @property
    def has_stopped(self) -> bool:
        """Whether values arrived, and so many units in a row have none that it is no chance, nor one of the
        pauses of a judge that works in batches."""
        if self.present == 0 or self.silent < max(MIN_SILENT, LONGEST_PAUSE * self.pause):
            return False
        share = (self.firsts_present + 1.0) / (self.firsts + 2.0)
        return self.silent * math.log1p(-share) <= math.log(SILENCE_ODDS)

    def reason(self) -> str | None:
        """Why the metric is INVALID now; None: it is not."""
        if math.isfinite(self.differs_since):
            cause = "values are missing differently by arm"
            if self._is_judged:
                cause += "; if the arms are judged at different rates, state both in the gate's `sampling`"
            return cause
        if self.has_stopped:
            return f"stopped arriving: no value in the last {self.silent} units"
        if self.rows < MIN_ROWS:
            return None
        if self.present == 0:
            return f"no value in {self.rows} requests"
        if self._max_missing >= 1.0:
            return None
        return self._too_many_missing()

    def _too_many_missing(self) -> str | None:
        """Whether more than the limit are missing in the present and the previous window, beyond chance.

        After an outage of the grader that affected both arms, the metric is valid again: what came before
        and after is evidence. The windows that begin at window k have `MISSING_ALPHA / (k (k + 1))`, so that
        all looks of a rollout together call a share at the limit too large with at most MISSING_ALPHA.
        """
        rows, present, units = (self.before + self.window).tolist()
        share = 1.0 - present / rows
        if share <= self._max_missing:
            return None
        k = (self.rows - rows) // WINDOW + 1
        limit = math.log(k * (k + 1) / MISSING_ALPHA)
        if self._max_missing > 0.0 and excess_log_e(share, units, self._max_missing) < limit:
            return None
        shown = f"limit {self._max_missing:.0%} (max_missing)"
        return f"{share:.0%} of values missing in the last {rows} requests, {shown}"

    def _count_windows(self, present: NDArray[np.bool_], firsts: NDArray[np.bool_]) -> None:
        start = 0
        while start < len(present):
            stop = min(len(present), start + WINDOW - int(self.window[0]))
            part = slice(start, stop)
            counts = stop - start, np.count_nonzero(present[part]), np.count_nonzero(firsts[part])
            self.window = self.window + np.array(counts, dtype=np.int64)
            if self.window[0] == WINDOW:
                self.before, self.window = self.window, np.zeros(3, dtype=np.int64)
            start = stop


class Lacking:
    """How many answers lack a value that each has, by arm: in the rollout, and in its present stage.

    Where both arms lack as many, the bets on missing values see nothing, and yet the canary's may be its
    slowest answers: with 3 % lost at random on stable, and the slowest 3 % of the canary's, 5 times slower,
    a p99 below 1.2x was proven in 25 of 30 runs.
    """

    __state__ = ("answers", "without", "stage")

    def __init__(self) -> None:
        self.answers: Floats = np.zeros((2, 2))  # of the rollout, of the stage; by arm
        self.without: Floats = np.zeros((2, 2))
        self.stage = 0

    def count(self, arm: Flags, stage: Ints, present: Flags) -> None:
        """Count answers in order of assignment."""
        if len(stage) and (last := int(stage.max())) > self.stage:
            self.stage = last
            self.answers[1] = self.without[1] = 0.0
        for scope, rows in enumerate((np.ones(len(arm), dtype=np.bool_), stage == self.stage)):
            for of_arm in (0, 1):
                chosen = rows & (arm == bool(of_arm))
                self.answers[scope, of_arm] += np.count_nonzero(chosen)
                self.without[scope, of_arm] += np.count_nonzero(chosen & ~present)

    def count_drawn(self, rows: Rows, raw: Floats, drawn: Flags) -> None:
        """Count the answers that were drawn for a score, in order of assignment. raw: NaN where it is
        missing."""
        chosen = (drawn | ~np.isnan(raw)) & (rows.w > 0.0)
        self.count(rows.arm[chosen], rows.stage[chosen], ~np.isnan(raw[chosen]))

    def is_above(self, share: float, *, of_stage: bool) -> bool:
        """Whether more than this share of an arm's answers lack it, by more than a standard error: a proof of
        250 answers is not held up by one."""
        few = share * self.answers[int(of_stage)]
        return bool((self.without[int(of_stage)] > few + np.sqrt(few)).any())

    def shares(self, *, of_stage: bool) -> tuple[float, float]:
        """Stable's and the canary's shares of answers that lack it."""
        stable, canary = (self.without[int(of_stage)] / np.maximum(self.answers[int(of_stage)], 1.0)).tolist()
        return stable, canary


def excess_log_e(share: float, units: int, limit: float) -> float:
    """Log wealth against "a unit misses at most `limit` of its values", when `units` of them missed `share`.

    A mixture of the likelihood ratios of all shares p above the limit: the integral of
    `p^k (1-p)^(n-k) / (limit^k (1-limit)^(n-k))`, k = share n, over p, each a product of factors of mean at
    most one (by convexity, where a unit misses a part), so that it may be looked at after each unit. A unit
    counts once, however many requests it has. Check: (1.0, 1, 0.5) gives log(1.5).
    """
    k, rest = share * units, (1.0 - share) * units
    above = betaln(k + 1.0, rest + 1.0) + math.log(max(betaincc(k + 1.0, rest + 1.0, limit), 1e-300))
    return float(above - (k * math.log(limit) + rest * math.log1p(-limit)) - math.log1p(-limit))
