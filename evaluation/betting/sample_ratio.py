"""Tests of the split: the sample ratio (SRM), the canary's fallback rate, and the length of conversations.

With a sample ratio mismatch the logged weights are wrong, and so is every statistic that bets on them:
promotion and statistical rollback freeze; guards, people and deadlines do not. Units are counted, never
requests: counting requests reported a mismatch in 100 of 100 healthy runs with sticky users.

Source: Lindon & Malek, Anytime-Valid Inference for Multinomial Count Data (2022), with a mixture over a grid.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.betting.wealth import Bets, by_weight, ratio_table

ODDS = np.array([0.1, 0.4, 0.7, 0.85, 1.18, 1.4, 2.2, 5.0, 20.0])  # ratios of the odds w / (1 - w)
TURN_TILTS = np.array([-0.8, -0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4, 0.8])  # of the log odds, a turn
SPREAD_TILTS = np.array([-0.6, -0.3, 0.3, 0.6])  # a turn of distance from stable's mean
SHORT_TILTS = np.array([-4.0, -2.0, -1.0, 1.0, 2.0, 4.0])  # times 1 / turns
LEARNT_AFTER = 20.0  # sessions of the canary that the learnt ratio takes to be as stable's
MAX_LEARNT = 8.0
MIN_SESSIONS = 30  # of stable, before turns are bet on
FALLBACK_LAMBDAS = np.array([0.03, 0.1, 0.3, 0.8])


class SampleRatioBet:
    """Null: each unit's arm is canary with probability w. Two-sided, over ratios of the odds."""

    __state__ = ()

    def __init__(self) -> None:
        self.prior: Floats = np.ones(len(ODDS))

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit, with a look after each."""
        rows = np.arange(len(block))
        column = np.zeros(len(block), dtype=np.int64)
        return Bets(rows, by_weight(block, column, _table), rows)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""


def _table(w: float) -> Floats:
    """K x 2 x 1 log factors of a unit, by alternative odds and arm."""
    return ratio_table(w, ODDS[:, None], np.log(ODDS)[:, None])


class FallbackBet:
    """Null: stable serves at most `max_rate` of the requests of a canary unit, in the mean over units.

    `y`: the share of a unit's requests that stable had to serve.
    """

    __state__ = ()

    def __init__(self, *, max_rate: float) -> None:
        self.prior: Floats = np.ones(len(FALLBACK_LAMBDAS))
        self._max_rate = max_rate

    def bets(self, block: UnitBlock) -> Bets:
        """On the canary's units, with a look after each."""
        rows = np.flatnonzero(block.arm)
        bet = 0.9 / self._max_rate * FALLBACK_LAMBDAS[:, None]
        return Bets(rows, np.log1p(bet * (block.y[rows] - self._max_rate)), np.arange(len(rows)))

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""


class TurnsBet:
    """Two-sided: bets that conversations have other lengths on the canary. Null: equally distributed.

    Ratios by the number of turns, divided by their mean over stable's past sessions: longer or shorter ones,
    `exp(tilt * turns)`; more or fewer far from the mean; more or fewer short ones, `exp(tilt / turns)`; and
    one that is learnt from both arms' past sessions. (By longer and shorter ones alone, a canary with as many
    turns in the mean, half of its conversations of 1 turn and half of 5, seemed equal, and was rolled back
    for its first turns, which no prefix cache helps.) Where the lengths differ, a session's mean says nothing
    of an answer if outcomes change with depth.
    """

    __state__ = ("counts", "known")

    def __init__(self, *, max_turns: int) -> None:
        tilts = len(TURN_TILTS) + len(SPREAD_TILTS) + len(SHORT_TILTS)
        self.prior: Floats = np.append(np.ones(tilts), 4.0)
        self.counts: Ints = np.zeros((2, max_turns + 1), dtype=np.int64)  # sessions by arm and turns
        self.known = self.counts

    @property
    def known(self) -> Ints:
        """The counts that the bets of this epoch rest on."""
        return self._known

    @known.setter
    def known(self, counts: Ints) -> None:
        self._known = counts
        self.is_known = int(counts[0].sum()) >= MIN_SESSIONS and bool(counts[:, 2:].any())
        if self.is_known:
            self._log_ratios = _turn_ratios(counts)

    def bets(self, block: UnitBlock) -> Bets:
        """On every session once stable's are known and some have several turns, with a look after each."""
        turns = np.minimum(block.n.astype(np.int64), self.counts.shape[1] - 1)
        place = block.arm * self.counts.shape[1] + turns
        self.counts = self.counts + np.bincount(place, minlength=self.counts.size).reshape(self.counts.shape)
        if not self.is_known:
            none = np.empty(0, dtype=np.int64)
            return Bets(none, np.empty((len(self.prior), 0)), none)
        log_ratios = self._log_ratios
        ratios = np.exp(log_ratios)
        rows = np.arange(len(block))
        return Bets(rows, by_weight(block, turns, lambda w: ratio_table(w, ratios, log_ratios)), rows)

    def end_epoch(self, stable: Stable) -> None:
        """Bet by the sessions so far from now on."""
        self.known = self.counts


def _turn_ratios(counts: Ints) -> Floats:
    """Log ratios by alternative and number of turns, K x turns. counts: sessions by arm and turns."""
    turns = np.arange(counts.shape[1])
    shares = counts[0] / counts[0].sum()
    mean = float(np.add.accumulate(turns * shares)[-1])
    tilted = np.concatenate(
        (
            TURN_TILTS[:, None] * turns,
            SPREAD_TILTS[:, None] * np.abs(turns - mean),
            SHORT_TILTS[:, None] / np.maximum(turns, 1),
        )
    )
    norm = np.add.accumulate(np.exp(tilted) * shares, axis=1)[:, -1]
    usual = (counts[0] + 0.5) / (counts[0].sum() + 0.5 * len(turns))
    learnt = (counts[1] / usual + LEARNT_AFTER) / (counts[1].sum() + LEARNT_AFTER)
    learnt = np.log(np.clip(learnt, 1.0 / MAX_LEARNT, MAX_LEARNT))
    return np.concatenate((tilted - np.log(norm)[:, None], learnt[None, :]))
