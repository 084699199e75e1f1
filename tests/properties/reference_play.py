"""Deliberately simple twin of a channel on one stream: one unit at a time, no arrays, only lists.

Every process of the mixture is computed separately, and all of stable's past again at the end of each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.betting.histogram import WIDTH
from evaluation.betting.wealth import RESTART_EVERY


@dataclass
class Unit:
    """One row of a stream: a unit with one outcome, the mean of its `n` requests. `values`: of each of them.
    `seq`, `canary`: position. `gap`: the canary's answered share less stable's, before this unit. `x`: the
    covariates of its first request."""

    arm: int
    w: float
    y: float
    n: float = 1.0
    seq: int = 0
    canary: int = 0
    stage: int = 0
    values: list[float] = field(default_factory=list)
    gap: float = 0.0
    missing: float = 0.0  # part of its requests without a value, which count 0 in `y`
    counted: float = 1.0  # part of its requests for which a margin counts
    weight: float = 1.0  # of the unit's bet
    x: list[float] = field(default_factory=list)  # covariates
    row: int = 0  # its first request
    silent: float = 0.0  # share of its requests without an answer

    def __post_init__(self) -> None:
        self.values = self.values or [self.y]


def bin_of(log_value: float) -> int:
    return math.floor(log_value / WIDTH)


@dataclass
class Past:
    """All of stable's units so far, read only at the end of an epoch."""

    units: list[Unit] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)  # of the finite values
    unanswered: int = 0  # the others

    def learn(self, unit: Unit) -> None:
        if unit.weight < 1.0:  # it has no value at all, and no whole bet
            return
        self.units.append(unit)
        finite = [value for value in unit.values if math.isfinite(value)]
        self.logs += [math.log(max(value, 1e-9)) for value in finite]
        self.unanswered += len(unit.values) - len(finite)

    def unanswered_share(self) -> float:
        return self.unanswered / max(self.unanswered + len(self.logs), 1)

    def outcomes(self, missing_as: float) -> list[float]:
        return [unit.y + missing_as * unit.missing for unit in self.units]

    def mean(self, before: float, missing_as: float = 0.0) -> float:
        return (sum(self.outcomes(missing_as)) + before) / (len(self.units) + 1)

    def variance(self, before: float, missing_as: float = 0.0) -> float:
        ys = self.outcomes(missing_as)
        if len(ys) < 30:
            return before
        mean = sum(ys) / len(ys)
        return max(sum(y * y for y in ys) / len(ys) - mean * mean, before / 100.0)

    def share(self, name: str) -> float:
        """Mean over the units of `missing` or `counted`."""
        parts = [float(getattr(unit, name)) for unit in self.units]
        return sum(parts) / len(parts) if parts else float(name == "counted")

    def highest_score(self) -> float:
        """Three standard errors above the mean of what has a score; 1 while there is little."""
        scored = sum(1.0 - unit.missing for unit in self.units)
        if scored < 30:
            return 1.0
        mean = sum(unit.y for unit in self.units) / scored
        variance = max(sum(unit.y**2 for unit in self.units) / scored - mean**2, 0.0)
        return min(mean + 3.0 * math.sqrt(variance / scored), 1.0)

    def quantile(self, share: float) -> float:
        """Upper edge of the 1 % bin in which the sorted list has the quantile."""
        bins = sorted(bin_of(log) for log in self.logs)
        return math.exp((bins[max(math.ceil(share * len(bins)), 1) - 1] + 1) * WIDTH)


class Bet:
    """Bet on single units: log factors by alternative. None: no bet on the unit."""

    def __init__(self, prior: Sequence[float]) -> None:
        self.prior = list(prior)

    def factors(self, unit: Unit) -> list[float] | None:
        raise NotImplementedError

    def looks(self, unit: Unit) -> bool:
        return True

    def gives_up(self) -> bool:
        """Whether to give up what was won, at the end of an epoch."""
        return False

    def end_epoch(self, past: Past) -> None:
        """Update what the next epoch bets with."""


class Wealth:
    """Every process separately: the first, and each that started later, with its part of the prior."""

    def __init__(self, prior: Sequence[float], share: float) -> None:
        self.prior, self.share = list(prior), share
        self.processes = [(1.0 - share, [0.0] * len(self.prior))]
        self.idle = share
        self.has_bet = False

    def bet(self, factors: list[float]) -> None:
        self.has_bet = self.has_bet or any(factors)  # before the canary, at w = 0, each of them is 0
        for _, lw in self.processes:
            for k, factor in enumerate(factors):
                lw[k] += factor

    def log_e(self) -> float:
        total = sum(self.prior)
        parts = [
            part * sum(p / total * math.exp(x) for p, x in zip(self.prior, lw, strict=True))
            for part, lw in self.processes
        ]
        return math.log(self.idle + sum(parts))

    def give_up(self) -> None:
        won = max(self.log_e(), 0.0)
        self.processes = [(part, [x - won for x in lw]) for part, lw in self.processes]

    def restart(self, canary_units: int) -> None:
        if self.share and canary_units % RESTART_EVERY == 0:
            count = len(self.processes)
            part = self.share / (count * (count + 1))
            self.processes.append((part, [0.0] * len(self.prior)))
            self.idle -= part


@dataclass
class Played:
    """`peak` and `last` log wealth; `canary`, `seq` of the unit that first reached the limit, else None."""

    peak: float = 0.0
    last: float = 0.0
    canary: int | None = None
    seq: int | None = None


def epoch_ends(rows: int, longest: int = 4096) -> set[int]:
    ends, end = set(), 64
    while end <= rows:
        ends.add(end)
        end += min(max(end // 5, 64), longest)
    return ends


def play_rounds(units: Sequence[Unit], bet: Bet, *, limit: float, min_stable: int) -> Played:
    """One channel that starts anew with each stage of its units and then needs `limit + log(k (k + 1))`, in
    the k-th. Nothing is bet before so many outcomes of stable are known at the end of an epoch."""
    past, wealth, played = Past(), Wealth(bet.prior, 0.0), Played()
    ends, stage, rounds, is_known = epoch_ends(len(units)), 0, 0, min_stable == 0
    for count, unit in enumerate(units, start=1):
        if unit.stage != stage:
            stage, rounds, wealth = unit.stage, rounds + 1, Wealth(bet.prior, 0.0)
            played = Played() if played.canary is None else played
        factors = bet.factors(unit)
        if is_known and played.canary is None and factors is not None:
            wealth.bet(factors)
            if bet.looks(unit):
                played.last = wealth.log_e()
                played.peak = max(played.peak, played.last)
                if played.last >= limit + math.log(rounds * (rounds + 1)):
                    played.canary, played.seq = unit.canary, unit.seq
        if not unit.arm:
            past.learn(unit)
        if count in ends:
            bet.end_epoch(past)
            is_known = is_known or sum(len(known.values) for known in past.units) >= min_stable
            if not wealth.has_bet:
                wealth.prior = list(bet.prior)
    return played


def play(
    units: Sequence[Unit],
    bet: Bet,
    *,
    limit: float,
    share: float = 0.0,
    min_canary: int = 0,
    staged: bool = False,
    seed: Sequence[float] = (),
) -> Played:
    """One channel over its stream. share: prior of restarts; min_canary: canary requests before the first
    look; staged: reset with each stage; seed: stable's values from before."""
    past, wealth, played = Past(), Wealth(bet.prior, share), Played()
    for value in seed:
        past.learn(Unit(0, 0.0, value))
    if seed:
        bet.end_epoch(past)
        wealth = Wealth(bet.prior, share)
    ends, stage, canary_requests, canary_units = epoch_ends(len(units)), 0, 0.0, 0
    for count, unit in enumerate(units, start=1):
        if staged and unit.stage != stage:
            stage, canary_requests, wealth, played = unit.stage, 0.0, Wealth(bet.prior, share), Played()
        canary_requests += unit.n * unit.arm
        canary_units += unit.arm
        factors = bet.factors(unit)
        if factors is not None:
            wealth.bet(factors)
            if bet.looks(unit) and canary_requests >= min_canary:
                played.last = wealth.log_e()
                played.peak = max(played.peak, played.last)
                if played.last >= limit and played.canary is None:
                    played.canary, played.seq = unit.canary, unit.seq
        if unit.arm:
            wealth.restart(canary_units)
        else:
            past.learn(unit)
        if count in ends:
            if bet.gives_up():
                wealth.give_up()
            bet.end_epoch(past)
            if not wealth.has_bet:
                wealth.prior = list(bet.prior)
    return played
