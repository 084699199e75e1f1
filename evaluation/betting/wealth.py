"""Bet on the router's own coin flip: wealth that stays small unless the canary is worse.

For an arm `A ~ Bernoulli(w)`, an outcome `y` and a predictable `r(y) >= 0` that grows with badness, the
factor

    (r(y) if A else 1) / (w * r(y) + 1 - w)

has mean at most one while the canary is stochastically no worse, so the product is a supermartingale from 1
and, by Ville's inequality, ever reaches 1/alpha with probability at most alpha. A mixture over K
alternatives keeps that. Whatever both arms share (drift, load, heavy users) cancels, because only the coin
is random.

Two routes, one answer: every function here gives the same bits however its rows are cut into blocks. Sums
run in row order (`np.add.accumulate`, never the pairwise `np.sum`), and everything else is element by
element.

Source: Ville (1939); Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.stable_baseline import Stable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Restarts begin at this many canary units and then each time the count has grown by 15 %.
FIRST_RESTART = 60
RESTART_GROWTH = 1.15


@dataclass(frozen=True, slots=True)
class Block:
    """Settled units in order: arm, P(canary), outcome, and where they stand in the rollout.

    `y`: float64 in the metric's unit, never NaN. `n`: requests behind `y` (1 but for sessions). `canary`:
    canary requests settled up to and with this row. Arrays of equal length, read-only by agreement.
    """

    arm: NDArray[np.bool_]
    w: Floats
    y: Floats
    n: Floats
    seq: Ints
    canary: Ints
    at_s: Floats
    stage: Ints

    @classmethod
    def one(cls, *, at_s: float, y: float, seq: int, canary: int) -> Block:
        """A single unit on which no coin is bet, such as a mirrored pair; it is the canary's."""
        row, zero = np.array([seq]), np.zeros(1, dtype=np.int64)
        return cls(
            zero == 0, np.zeros(1), np.array([y]), np.ones(1), row, np.array([canary]), np.array([at_s]), zero
        )

    def __len__(self) -> int:
        return len(self.w)

    def pick(self, rows: slice | NDArray[np.bool_] | Ints) -> Block:
        """The chosen rows, in order."""
        return Block(
            self.arm[rows],
            self.w[rows],
            self.y[rows],
            self.n[rows],
            self.seq[rows],
            self.canary[rows],
            self.at_s[rows],
            self.stage[rows],
        )

    def with_w(self, w: Floats) -> Block:
        """The same units at other probabilities."""
        return replace(self, w=w)


class Wealth:
    """A mixture of K bettors with restarts for late onset, and the largest log wealth so far.

    The mixture over start times needs no list of them: for each alternative, the sum over starts of
    `share * exp(-lw at the start)` is one number, kept as `log_starts`. Shares not yet started count as
    wealth 1 each.
    """

    __state__ = ("log_prior", "lw", "log_starts", "idle", "restarts", "next_restart", "log_e", "peak")

    def __init__(self, prior: Floats, *, restart_share: float) -> None:
        self.log_prior: Floats = np.log(prior / np.add.accumulate(prior)[-1])
        self._share = restart_share
        self.lw: Floats = np.zeros(len(prior))
        self.log_starts: Floats = np.full(len(prior), np.log(1.0 - restart_share))
        self.idle = restart_share
        self.restarts = 0
        self.next_restart = float(FIRST_RESTART)
        self.log_e = 0.0
        self.peak = 0.0

    def bet(self, steps: Floats, looks: Ints) -> Floats:
        """Add `steps` (K x n log factors) in order; the log wealth after each row named in `looks`
        (ascending).

        Rows between two looks move the wealth, but not the peak: looks are a function of the data, never of
        the block.
        """
        if steps.shape[1] == 0:
            return np.empty(0)
        path = np.add.accumulate(np.concatenate((self.lw[:, None], steps), axis=1), axis=1)[:, 1:]
        self.lw = path[:, -1].copy()
        if len(looks) == 0:
            return np.empty(0)
        log_e = self._mix(path[:, looks])
        self.log_e = float(log_e[-1])
        self.peak = max(self.peak, float(log_e.max()))
        return log_e

    def take_prior(self, prior: Floats) -> None:
        """Share the wealth out anew, while nothing has been won or lost: every share is still worth what it
        was."""
        if not self.lw.any():
            self.log_prior = np.log(prior / np.add.accumulate(prior)[-1])

    def restart_if_due(self, canary_units: int) -> None:
        """Start one more process, with the next part of the share, once `canary_units` have been seen."""
        if self._share == 0.0 or canary_units < self.next_restart:
            return
        self.restarts += 1
        part = self._share / (
            self.restarts * (self.restarts + 1)
        )  # sums to the share: 1/2 + 1/6 + 1/12 + ...
        self.log_starts = np.logaddexp(self.log_starts, np.log(part) - self.lw)
        self.idle -= part
        while self.next_restart <= canary_units:
            self.next_restart *= RESTART_GROWTH

    def _mix(self, lw: Floats) -> Floats:
        terms = lw + (self.log_prior + self.log_starts)[:, None]
        top = np.maximum.reduce(terms, axis=0)
        if self.idle > 0.0:
            top = np.maximum(top, np.log(self.idle))
        total = np.add.accumulate(np.exp(terms - top), axis=0)[-1]
        if self.idle > 0.0:
            total = total + np.exp(np.log(self.idle) - top)
        mixed: Floats = top + np.log(total)
        return mixed


class Decision:
    """The first row at which a log wealth reached its limit; sticky."""

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
        """True once the limit has been reached."""
        return self.seq >= 0

    def observe(self, log_e: Floats, rows: Block, looks: Ints) -> None:
        """Record `log_e` at the rows `looks` of a block."""
        if len(log_e) == 0:
            return
        self.log_e = float(log_e[-1])
        self.peak = max(self.peak, float(log_e.max()))
        if self.is_reached or self.peak < self.limit:
            return
        row = int(looks[int(np.argmax(log_e >= self.limit))])
        self.seq, self.canary, self.at_s = int(rows.seq[row]), int(rows.canary[row]), float(rows.at_s[row])


class Bettor(Protocol):
    """What a metric bets: alternatives with a prior, frozen statistics, and the log factors of a block."""

    @property
    def prior(self) -> Floats:
        """Weights of the alternatives, of any sum."""

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """(rows, steps, looks): the rows bet on, their K x n log factors, and which of those n are looked
        at."""

    def turn(self, stable: Stable) -> None:
        """An epoch has ended: freeze what the next one bets with."""


class Channel:
    """One bettor, its wealth, and its decision.

    `least_canary`: canary requests before the first look. A proof that rests on a streak of a few dozen is
    legal, but most of the wrong ones are such, and few of the right ones.
    """

    __state__ = ("wealth", "decision", "bettor", "canary")

    def __init__(
        self, bettor: Bettor, *, limit: float, restart_share: float = 0.0, least_canary: int = 0
    ) -> None:
        self.bettor = bettor
        self.is_idle = False  # its part of alpha is 0 for good: no need to bet
        self._restart_share = restart_share
        self._least = least_canary
        self.wealth = Wealth(bettor.prior, restart_share=restart_share)
        self.decision = Decision(limit)
        self.canary = 0.0

    def bet(self, block: Block) -> None:
        """Take a block that lies within one epoch."""
        if self.is_idle:
            return
        rows, steps, looks = self.bettor.steps(block)
        if self.canary < self._least:
            behind = np.add.accumulate(np.where(block.arm, block.n, 0.0)) + self.canary
            looks = looks[behind[rows[looks]] >= self._least]
            self.canary = float(behind[-1])
        if len(rows):
            log_e = self.wealth.bet(steps, looks)
            self.decision.observe(log_e, block, rows[looks])

    def turn(self, stable: Stable, canary_units: int) -> None:
        """An epoch has ended."""
        if self.is_idle:
            return
        self.bettor.turn(stable)
        self.wealth.take_prior(self.bettor.prior)
        self.wealth.restart_if_due(canary_units)

    def begin_again(self) -> None:
        """Forget the wealth and the decision: a stage began, and this proof counts its own units alone."""
        self.wealth = Wealth(self.bettor.prior, restart_share=self._restart_share)
        self.decision = Decision(self.decision.limit)
        self.canary = 0.0


def by_weight(block: Block, column: Ints, table: Callable[[float], Floats]) -> Floats:
    """K x n log factors looked up by weight, arm and column.

    `table(w)` gives K x 2 x C: by alternative, arm, column. Weights are few (one a stage, or a pair of
    stages for users who come back), so the logarithms are taken once for each.
    """
    weights, which = distinct(block.w)
    tables = np.stack([table(float(w)) for w in weights], axis=1)  # K x W x 2 x C
    alternatives, _, arms, width = tables.shape
    index = (which * arms + block.arm) * width + column
    steps: Floats = np.take(tables.reshape(alternatives, -1), index, axis=1)
    return steps


def distinct(values: Floats) -> tuple[Floats, Ints]:
    """The distinct values, ascending, and where each row's is; quick when there is only one."""
    if len(values) and bool((values == values[0]).all()):
        return values[:1], np.zeros(len(values), dtype=np.int64)
    found, which = np.unique(values, return_inverse=True)
    return found, which.astype(np.int64)
