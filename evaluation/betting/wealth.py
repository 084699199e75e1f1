"""Wealth processes: bets on the router's own coin that stay small unless the canary is worse.

For an arm `A ~ Bernoulli(w)`, an outcome `y` and a predictable `r(y) >= 0` that grows with badness, the
factor

    (r(y) if A else 1) / (w * r(y) + 1 - w)

has mean at most one while the canary is stochastically no worse. So the product is a supermartingale that
starts at 1 and, by Ville's inequality, ever reaches 1/alpha with probability at most alpha; so is a mixture
over K alternatives. Whatever both arms share (drift, load, heavy users) cancels: only the coin is random.

Invariant: every function returns the same bits however its rows are cut into blocks. Sums run in row order
(`np.add.accumulate`, never the pairwise `np.sum`), and everything else is element by element.

Source: Ville (1939); Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

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
    """Settled units in order: arm, P(canary), outcome, and their position in the rollout.

    `y`: float64 in the metric's unit, never NaN. `n`: requests that `y` averages (1 except for sessions).
    `canary`: canary requests settled up to and including this row. Arrays of equal length, read-only.
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
        """A single unit of the canary whose coin is not bet on, such as a mirrored pair."""
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
    """Wealth of a mixture of K alternatives with restarts for late onset, and its maximum so far (log).

    The mixture over start times needs no list of them: for each alternative, the sum over starts of
    `share * exp(-lw at the start)` is one number, stored as `log_starts`. Shares not yet started count as
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

    def bet(self, log_factors: Floats, looks: Ints) -> Floats:
        """Add log factors (K x n) in order; return the log wealth after each row in `looks` (ascending).

        Rows between two looks change the wealth, but not the peak: looks depend on the data, never on how it
        is cut into blocks.
        """
        if log_factors.shape[1] == 0:
            return np.empty(0)
        path = np.add.accumulate(np.concatenate((self.lw[:, None], log_factors), axis=1), axis=1)[:, 1:]
        self.lw = path[:, -1].copy()
        if len(looks) == 0:
            return np.empty(0)
        log_e = self._mix(path[:, looks])
        self.log_e = float(log_e[-1])
        self.peak = max(self.peak, float(log_e.max()))
        return log_e

    def reset_prior(self, prior: Floats) -> None:
        """Redistribute the wealth over the alternatives; ignored once anything was won or lost."""
        if not self.lw.any():
            self.log_prior = np.log(prior / np.add.accumulate(prior)[-1])

    def restart_if_due(self, canary_units: int) -> None:
        """Start one more process, with the next part of the share, if `canary_units` reach its start."""
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

    def bets(self, block: Block) -> Bets:
        """The bets on a block that lies within one epoch."""

    def end_epoch(self, stable: Stable) -> None:
        """Update what the next epoch bets with. stable: statistics of stable's units so far."""


class Channel:
    """One bettor, its wealth, and its decision.

    `min_canary`: canary requests before the first look. A proof from a streak of a few dozen would be valid,
    but most wrong proofs are of that kind, and few right ones.
    """

    __state__ = ("wealth", "decision", "bettor", "canary")

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

    def bet(self, block: Block) -> None:
        """Bet on a block that lies within one epoch."""
        if self.is_idle:
            return
        rows, log_factors, looks = self.bettor.bets(block)
        if self.canary < self._min_canary:
            canary = np.add.accumulate(np.where(block.arm, block.n, 0.0)) + self.canary
            looks = looks[canary[rows[looks]] >= self._min_canary]
            self.canary = float(canary[-1])
        if len(rows):
            log_e = self.wealth.bet(log_factors, looks)
            self.decision.observe(log_e, block, rows[looks])

    def end_epoch(self, stable: Stable, canary_units: int) -> None:
        """Update the bettor and start a late-onset process if one is due."""
        if self.is_idle:
            return
        self.bettor.end_epoch(stable)
        self.wealth.reset_prior(self.bettor.prior)
        self.wealth.restart_if_due(canary_units)

    def reset(self) -> None:
        """Forget the wealth and the decision: a stage began, and its proof counts only its own units."""
        self.wealth = Wealth(self.bettor.prior, restart_share=self._restart_share)
        self.decision = Decision(self.decision.limit)
        self.canary = 0.0


def by_weight(block: Block, column: Ints, table: Callable[[float], Floats]) -> Floats:
    """K x n log factors looked up by weight, arm and column.

    `table(w)`: K x 2 x C, by alternative, arm, column. Distinct weights are few (one a stage, or a pair of
    stages for returning users), so the logarithms are computed once for each.
    """
    weights, which = distinct(block.w)
    tables = np.stack([table(float(w)) for w in weights], axis=1)  # K x W x 2 x C
    alternatives, _, arms, width = tables.shape
    index = (which * arms + block.arm) * width + column
    log_factors: Floats = np.take(tables.reshape(alternatives, -1), index, axis=1)
    return log_factors


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
