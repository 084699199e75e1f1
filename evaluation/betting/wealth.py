"""Wealth processes: bets on the router's own coin that stay small unless the canary is worse.

One form for every bettor. For an arm `A ~ Bernoulli(w)` and a unit's outcome z, the factor is

    h_A(z) on the canary,   (1 - w * h_S(z)) / (1 - w) on stable,   0 <= h < 1/w

and has mean at most one if and only if `E1[h_A] <= E0[h_S]`: predictable h, whatever z is. With a ratio
`r(z) >= 0` that grows with badness, `h = r / (w * r + 1 - w)`, and stable's factor is `1 / (w * r + 1 - w)`.
So the product is a supermartingale that starts at 1 and, by Ville's inequality, ever reaches 1/alpha with
probability at most alpha; so is a mixture over K alternatives. Whatever both arms share (drift, load, heavy
users) cancels: only the coin is random. A unit with several requests has the mean of its requests' factors.

Invariant: every function returns the same bits however its rows are cut into blocks. Sums run in row order
(`np.add.accumulate`, never the pairwise `np.sum`), and everything else is element by element.

Source: Ville (1939); Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, Ints, UnitBlock

#: A process for late onset starts each time so many of the canary's units have settled.
RESTART_EVERY = 64
NO_ROWS: Ints = np.empty(0, dtype=np.int64)


class Wealth:
    """Wealth of a mixture of K alternatives with restarts for late onset, and its maximum so far (log).

    The first process has 1 - `restart_share` of the prior, restart k has `restart_share / (k (k + 1))`. The
    mixture over start times needs no list of them: for each alternative, the sum over starts of
    `share * exp(-lw at the start)` is one number, stored as `log_starts`. Shares not yet started count as
    wealth 1 each.
    """

    __state__ = ("log_prior", "lw", "log_starts", "restarts", "log_e", "peak")

    def __init__(self, prior: Floats, *, restart_share: float) -> None:
        self.log_prior: Floats = np.log(prior / np.add.accumulate(prior)[-1])
        self._share = restart_share
        self.lw: Floats = np.zeros(len(prior))
        self.log_starts: Floats = np.full(len(prior), np.log(1.0 - restart_share))
        self.restarts = 0
        self.log_e = 0.0
        self.peak = 0.0

    def bet(self, log_factors: Floats, looks: Ints, starts: Ints = NO_ROWS) -> Floats:
        """Add log factors (K x n) in order; return the log wealth after each row in `looks` (ascending).

        starts: number of these bets before each restart, ascending. Rows between two looks change the wealth,
        but not the peak: looks depend on the data, never on how it is cut into blocks.
        """
        if self._share == 0.0:
            starts = NO_ROWS
        if log_factors.shape[1] == 0 and len(starts) == 0:
            return np.empty(0)
        path = np.empty((len(self.lw), log_factors.shape[1] + 1))
        path[:, 0], path[:, 1:] = self.lw, log_factors
        np.add.accumulate(path, axis=1, out=path)
        begun = self._begin(path, starts)
        self.lw = path[:, -1].copy()
        if len(looks) == 0:
            return np.empty(0)
        started = np.searchsorted(starts, looks, side="right")
        log_e = self._mix(path[:, looks + 1], begun, started)
        self.log_e = float(log_e[-1])
        self.peak = max(self.peak, float(log_e.max()))
        return log_e

    @property
    def now(self) -> float:
        """Log wealth after all bets so far, those since the last look as well."""
        none = np.zeros(1, dtype=np.int64)
        return float(self._mix(self.lw[:, None], self.log_starts[:, None], none)[0])

    def give_up(self) -> None:
        """Lower the wealth to 1 if it is above, as for a bet that was lost on purpose. Without restarts."""
        total = self.now
        if total > 0.0:
            self.lw = self.lw - total
            self.log_e = 0.0

    def reset_prior(self, prior: Floats) -> None:
        """Redistribute the wealth over the alternatives; ignored once anything was won or lost."""
        if not self.lw.any():
            self.log_prior = np.log(prior / np.add.accumulate(prior)[-1])

    def _begin(self, path: Floats, starts: Ints) -> Floats:
        """`log_starts` before and after each restart, K x (1 + restarts)."""
        if len(starts) == 0:
            return self.log_starts[:, None]
        k = self.restarts + np.arange(1, len(starts) + 1)
        parts = np.log(self._share / (k * (k + 1.0))) - path[:, starts]
        begun: Floats = np.logaddexp.accumulate(
            np.concatenate((self.log_starts[:, None], parts), axis=1), axis=1
        )
        self.log_starts = begun[:, -1].copy()
        self.restarts += len(starts)
        return begun

    def _mix(self, lw: Floats, begun: Floats, started: Ints) -> Floats:
        """Log wealth of columns of `lw`, each after `started` of the restarts in `begun`."""
        start = self.log_prior[:, None] + begun
        terms = lw + (start if start.shape[1] == 1 else start[:, started])
        before = self.restarts - (begun.shape[1] - 1)
        if self._share > 0.0:
            idle = np.log(self._share / (before + np.arange(begun.shape[1]) + 1.0))
        else:
            idle = np.full(begun.shape[1], -np.inf)
        log_idle = idle if len(idle) == 1 else idle[started]
        top = np.maximum(np.maximum.reduce(terms, axis=0), log_idle)
        total = np.add.accumulate(np.exp(terms - top), axis=0)[-1] + np.exp(log_idle - top)
        mixed: Floats = top + np.log(total)
        return mixed


class Decision:
    """First row at which a log wealth reached its limit; sticky."""

    __state__ = ("peak", "log_e", "seq", "canary", "at_s")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.peak = 0.0
        self.log_e = 0.0
        self.seq = -1  # -1: not reached
        self.canary = -1
        self.at_s = float("nan")

    @property
    def is_reached(self) -> bool:
        """Whether the limit has been reached."""
        return self.seq >= 0

    def observe(self, log_e: Floats, rows: UnitBlock, looks: Ints) -> None:
        """Record `log_e` at the rows `looks` of a block."""
        if len(log_e) == 0:
            return
        self.log_e = float(log_e[-1])
        self.peak = max(self.peak, float(log_e.max()))
        if self.is_reached or self.peak < self.limit:
            return
        row = int(looks[int(np.argmax(log_e >= self.limit))])
        self.seq, self.canary, self.at_s = int(rows.seq[row]), int(rows.canary[row]), float(rows.at_s[row])


class Bets(NamedTuple):
    """Bets on n rows of a block, and after which of those n bets the wealth is looked at."""

    rows: Ints
    log_factors: Floats  # K x n
    looks: Ints


class Bettor(Protocol):
    """Betting strategy of one test: K alternatives with a prior, and the factors by which they multiply.

    What it bets with is frozen within an epoch, so that every bet is predictable.
    """

    @property
    def prior(self) -> Floats:
        """Weights of the alternatives; normalised by the caller."""

    def bets(self, block: UnitBlock) -> Bets:
        """The bets on a block that lies within one epoch."""

    def end_epoch(self, stable: Stable) -> None:
        """Update what the next epoch bets with. stable: statistics of stable's units so far."""


class NeedsCoin:
    """A bettor that neither looks nor learns in `bets` on units without a coin: they can be passed over."""

    __slots__ = ()


class Refitted(NeedsCoin):
    """One whose `end_epoch` depends on stable's statistics alone, not on epochs that ended before: where
    nothing is bet in between, only the last of several calls matters."""

    __slots__ = ()


class Channel:
    """One bettor, its wealth, and its decision.

    `min_canary`: canary requests before the first look. A proof from a streak of a few dozen would be valid,
    but most wrong proofs are of that kind, and few right ones.
    """

    __state__: tuple[str, ...] = ("wealth", "decision", "bettor", "canary", "last_draw")

    def __init__(
        self, bettor: Bettor, *, limit: float, restart_share: float = 0.0, min_canary: int = 0
    ) -> None:
        self.bettor = bettor
        self.is_idle = False  # its part of alpha stays 0: no need to bet
        self._restart_share = restart_share
        self._min_canary = min_canary
        self.wealth = Wealth(bettor.prior, restart_share=restart_share)
        self.decision = Decision(limit)
        self.canary = 0.0
        self.last_draw = -1

    def bet(self, block: UnitBlock, due: Ints = NO_ROWS) -> None:
        """Bet on a block that lies within one epoch. due: rows after which a late-onset process starts.

        Raises ValueError for a toss that was bet on before, or an earlier one.
        """
        if self.is_idle or len(block) == 0:
            return
        self._follow(block)
        rows, log_factors, looks = self.bettor.bets(block)
        if self.canary < self._min_canary:
            canary = np.add.accumulate(np.where(block.arm, block.n, 0.0)) + self.canary
            looks = looks[canary[rows[looks]] >= self._min_canary]
            self.canary = min(float(canary[-1]), float(self._min_canary))
        if len(rows) or len(due):
            starts = np.searchsorted(rows, due, side="right") if len(due) else NO_ROWS
            log_e = self.wealth.bet(log_factors, looks, starts)
            self.decision.observe(log_e, block, rows[looks])

    def can_skip(self, kind: type[NeedsCoin]) -> bool:
        """Whether the bettor is of this kind, and the channel adds nothing to it."""
        return type(self) is Channel and isinstance(self.bettor, kind)

    def skip(self, block: UnitBlock) -> None:
        """Pass over units without a coin. Raises ValueError as `bet`."""
        if not self.is_idle and len(block):
            self._follow(block)

    def _follow(self, block: UnitBlock) -> None:
        """Note the tosses of a block. Raises ValueError where they do not follow the last one."""
        if block.draw[0] <= self.last_draw:
            raise ValueError(
                f"toss {block.draw[0]} follows toss {self.last_draw}; a coin may be bet once, in order"
            )
        self.last_draw = int(block.draw[-1])

    def end_epoch(self, stable: Stable) -> None:
        """Update what the bettor bets with."""
        if self.is_idle:
            return
        self.bettor.end_epoch(stable)
        self.wealth.reset_prior(self.bettor.prior)

    def reset(self) -> None:
        """Forget the wealth and the decision: a stage began, and its proof counts only its own units."""
        self.wealth = Wealth(self.bettor.prior, restart_share=self._restart_share)
        self.decision = Decision(self.decision.limit)
        self.canary = 0.0


def restarts_in(block: UnitBlock, canary_before: int) -> Ints:
    """Rows of the canary's units that complete another `RESTART_EVERY` of them."""
    rows = np.flatnonzero(block.arm)
    first = RESTART_EVERY - 1 - canary_before % RESTART_EVERY
    return rows[first::RESTART_EVERY]


def by_weight(block: UnitBlock, column: Ints, table: Callable[[float], Floats]) -> Floats:
    """K x n log factors looked up by weight, arm and column.

    `table(w)`: K x 2 x C, by alternative, arm, column. `column`: of each unit; where the block has single
    values, of each value, and a unit has the mean of its values' factors. Distinct weights are few (one a
    stage, or a pair of stages for returning users), so the logarithms are computed once for each.
    """
    weights, which = distinct(block.w)
    tables = np.stack([table(float(w)) for w in weights], axis=1)  # K x W x 2 x C
    alternatives, _, arms, width = tables.shape
    row = (which * arms + block.arm) * width
    flat = tables.reshape(alternatives, -1)
    if block.owner is None:
        log_factors: Floats = np.take(flat, row + column, axis=1)
        return log_factors
    factors = np.take(np.exp(flat), row[block.owner] + column, axis=1)
    total = np.stack([np.bincount(block.owner, weights=f, minlength=len(block)) for f in factors])
    averaged: Floats = np.log(total / block.n)
    return averaged


def ratio_table(w: float, ratios: Floats, log_ratios: Floats) -> Floats:
    """K x 2 x C log factors of `r` on the canary and 1 on stable, over its mean at `w`. ratios: K x C."""
    log_mean = np.log(w * ratios + 1.0 - w)
    return np.stack((-log_mean, log_ratios - log_mean), axis=1)


def distinct(values: Floats) -> tuple[Floats, Ints]:
    """The distinct values, ascending, and the index of each row's; fast when there is only one."""
    if len(values) and bool((values == values[0]).all()):
        return values[:1], np.zeros(len(values), dtype=np.int64)
    unique, which = np.unique(values, return_inverse=True)
    return unique, which.astype(np.int64)
