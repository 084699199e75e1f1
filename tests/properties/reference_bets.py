"""Simple twins of all bettors, in plain Python.

Written from the design (the bet, its null, its data), not from the code; only the published constants
(alternatives and priors) are the code's own.
"""

from __future__ import annotations

import math

from evaluation.betting import latency, rates, sample_ratio, scores
from evaluation.betting.histogram import WIDTH
from evaluation.units import missingness
from tests.properties.reference_play import Bet, Past, Unit, bin_of


def odds_factor(unit: Unit, ratio: float) -> float:
    """The core log factor: r on the canary, 1 on stable, over its mean at this coin."""
    return (math.log(ratio) if unit.arm else 0.0) - math.log(unit.w * ratio + 1.0 - unit.w)


class PlainFirstEvents(Bet):
    def __init__(self, tolerance: float) -> None:
        super().__init__(rates.RATIO_PRIOR.tolist())
        self.tolerated = 1.0 + tolerance

    def factors(self, unit: Unit) -> list[float] | None:
        if unit.y == 0.0 or unit.w == 0.0:
            return None
        q0 = unit.w * self.tolerated + 1.0 - unit.w
        return [
            math.log(q0 / (unit.w * self.tolerated * rho + 1.0 - unit.w)) + (math.log(rho) if unit.arm else 0)
            for rho in rates.RATIOS
        ]

    def end_epoch(self, past: Past) -> None:
        if len(past.units) >= rates.KNOWN_UNITS and past.mean(0.0) > rates.NEAR_ZERO:
            self.prior = list(rates.KNOWN_PRIOR)


class PlainSessionCounts(Bet):
    def __init__(self, max_events: int) -> None:
        super().__init__([1.0] * len(rates.SESSION_RATIOS))
        self.max_events = max_events
        self.norm = [1.0] * len(self.prior)

    def count(self, unit: Unit) -> int:
        return min(round(unit.y * unit.n), self.max_events)

    def factors(self, unit: Unit) -> list[float]:
        ratios = [
            rho ** self.count(unit) / norm for rho, norm in zip(rates.SESSION_RATIOS, self.norm, strict=True)
        ]
        return [odds_factor(unit, ratio) for ratio in ratios]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        self.norm = [
            (1.0 + sum(rho ** self.count(unit) for unit in past.units)) / (len(past.units) + 1)
            for rho in rates.SESSION_RATIOS
        ]


class PlainSessionMeans(Bet):
    def __init__(self, tolerance: float) -> None:
        super().__init__([1.0] * len(rates.TOLERANT_LAMBDAS))
        self.tolerated, self.mu = 1.0 + tolerance, 0.05

    def factors(self, unit: Unit) -> list[float]:
        z = unit.y / self.tolerated if unit.arm else unit.y
        cap = 0.9 / max((1.0 - unit.w) * self.mu, unit.w * (1.0 - self.mu))
        return [
            math.log1p(min(lam, cap) * (unit.arm - unit.w) * (z - self.mu)) for lam in rates.TOLERANT_LAMBDAS
        ]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        self.mu = past.mean(0.05)


class PlainRateProof(Bet):
    def __init__(self, ratio: float, floor: float) -> None:
        self.ratio, self.floor, self.mu = ratio, floor, 0.02
        true_ratios, weights = rates.true_ratios(ratio)
        self.true_ratios, self.weights = [float(t) for t in true_ratios], [float(p) for p in weights]
        super().__init__(self.with_floor_share(rates.FLOOR_SHARE))

    def with_floor_share(self, share: float) -> list[float]:
        if self.floor == 0.0:
            return self.weights
        whole = sum(self.weights)
        count = len(rates.FLOOR_LAMBDAS)
        return [(1.0 - share) * p / whole for p in self.weights] + [share / count] * count

    def factors(self, unit: Unit) -> list[float] | None:
        w, y, out = unit.w, unit.y, []
        if y == 0.0 and self.floor == 0.0:
            return None
        for true in self.true_ratios:
            lam = 1.0 - true / self.ratio * (w * self.ratio + 1.0 - w) / (w * true + 1.0 - w)
            stake = -1.0 if unit.arm else w * self.ratio / (1.0 - w)
            out.append(math.log1p(min(max(lam, 0.02), 0.97) * y * stake))
        if self.floor > 0.0:
            x = (1.0 - w) * (self.mu + self.floor - y) if unit.arm else -w * (self.mu - y)
            worst = max((1.0 - w) * (1.0 - self.mu - self.floor), w * self.mu)
            out += [math.log1p(min(lam, 0.9 / worst) * x) for lam in rates.FLOOR_LAMBDAS]
        return out

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1 or unit.y > 0.0

    def end_epoch(self, past: Past) -> None:
        self.mu = past.mean(0.02)
        if len(past.units) >= rates.KNOWN_UNITS:
            needed = self.mu * (self.ratio - 1.0) < self.floor
            share = rates.FLOOR_SHARE_NEEDED if needed else rates.FLOOR_SHARE_SPARE
            self.prior = self.with_floor_share(share)


class PlainScore(Bet):
    """Sign 1: bets that the canary is worse by more than `beyond`; -1 (proof): that it is worse by less."""

    def __init__(self, beyond: float, effect: float, *, proof: bool) -> None:
        self.multiples = scores.PROOF_MULTIPLES if proof else scores.LOSS_MULTIPLES
        super().__init__((scores.PROOF_PRIOR if proof else scores.LOSS_PRIOR).tolist())
        self.beyond, self.effect, self.sign = beyond, effect, -1.0 if proof else 1.0
        self.mu, self.variance = 0.8, 0.04

    def factors(self, unit: Unit) -> list[float]:
        def x(arm: int, y: float) -> float:
            loss = self.mu - y
            return self.sign * ((1.0 - unit.w) * (loss - self.beyond) if arm else -unit.w * loss)

        worst = max(-x(arm, y) for arm in (0, 1) for y in (0.0, 1.0))
        best = self.effect / (self.variance + self.effect**2)
        return [math.log1p(min(best * part, 0.9 / worst) * x(unit.arm, unit.y)) for part in self.multiples]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        self.mu, self.variance = past.mean(0.8), past.variance(0.04)


class PlainPairs(Bet):
    def __init__(self, tolerance: float) -> None:
        super().__init__([1.0] * len(scores.PAIR_LAMBDAS))
        self.tolerance = tolerance

    def factors(self, unit: Unit) -> list[float]:
        cap = 0.9 / (1.0 + self.tolerance)
        return [math.log1p(min(lam, cap) * (unit.y - self.tolerance)) for lam in scores.PAIR_LAMBDAS]


class PlainShape(Bet):
    """Bins at stable's percentiles; ratios from stable's own values, moved by each alternative."""

    def __init__(self, divisor: float, *, proof: bool) -> None:
        self.powers = latency.ShapeProof.POWERS if proof else None
        rollback = (*latency.SCALE_PRIOR, *latency.STRETCH_PRIOR, *latency.TAIL_PRIOR)
        super().__init__([1.0] * len(self.powers) if self.powers else rollback)
        self.divisor = divisor
        self.edges: list[float] = []
        self.ratios: list[list[float]] = []

    def column(self, value: float) -> int:
        return sum(edge < value for edge in self.edges)

    def factors(self, unit: Unit) -> list[float] | None:
        if not self.edges:
            return None
        value = unit.y / self.divisor if unit.arm else unit.y
        position = self.column(value)
        return [odds_factor(unit, row[position]) for row in self.ratios]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        if len(past.logs) < latency.MIN_VALUES:
            return
        self.edges = sorted({past.quantile(share) for share in latency.QUANTILES})
        middles = [math.exp((bin_of(log) + 0.5) * WIDTH) for log in past.logs]
        stable = self.shares(middles)
        if self.powers:
            shares = [self.shares([m / self.divisor**power for m in middles]) for power in self.powers]
            self.ratios = [self.falling(self.over(moved, stable)) for moved in shares]
            return
        p95, p99 = past.quantile(0.95), past.quantile(0.99)
        p99 = max(p99, 1.01 * p95)
        shares = [self.shares([m * scale for m in middles]) for scale in latency.SCALES]
        shares += [
            self.shares([m * times ** self.part(m, p95, p99) for m in middles]) for times in latency.STRETCHES
        ]
        self.ratios = [self.rising(self.over(moved, stable)) for moved in shares]
        for share, times in latency.TAILS:
            start = past.quantile(share)
            edge_bin = bin_of(math.log(start / 1.005))
            above = max(sum(bin_of(log) > edge_bin for log in past.logs) / len(past.logs), latency.SMOOTHING)
            rest = max((1.0 - times * above) / (1.0 - above), latency.MIN_RATIO)
            self.ratios.append(self.rising([times if e > start else rest for e in [*self.edges, math.inf]]))

    @staticmethod
    def part(value: float, start: float, end: float) -> float:
        """Position of `value` between `start` and `end` by logarithm, within 0..1."""
        return min(max(math.log(max(value, start) / start) / math.log(end / start), 0.0), 1.0)

    def shares(self, values: list[float]) -> list[float]:
        columns = len(self.edges) + 1
        out = [latency.SMOOTHING / columns] * columns
        for value in values:
            out[self.column(value)] += 1.0 / len(values)
        return out

    @staticmethod
    def over(moved: list[float], stable: list[float]) -> list[float]:
        return [a / b for a, b in zip(moved, stable, strict=True)]

    @staticmethod
    def clipped(ratios: list[float]) -> list[float]:
        return [min(max(ratio, latency.MIN_RATIO), latency.MAX_RATIO) for ratio in ratios]

    def rising(self, ratios: list[float]) -> list[float]:
        clipped = self.clipped(ratios)
        return [max(clipped[: i + 1]) for i in range(len(clipped))]

    def falling(self, ratios: list[float]) -> list[float]:
        clipped = self.clipped(ratios)
        return [min(clipped[: i + 1]) for i in range(len(clipped))]


class PlainOdds(Bet):
    """Two-sided bet on the coin itself: of all units (`among` None), or of present or missing values."""

    def __init__(self, among: bool | None = None) -> None:
        self.odds = sample_ratio.ODDS if among is None else missingness.RATIOS
        super().__init__([1.0] * len(self.odds))
        self.among = among

    def factors(self, unit: Unit) -> list[float] | None:
        if self.among is not None and (unit.y > 0.0) != self.among:
            return None
        return [odds_factor(unit, ratio) for ratio in self.odds]


class PlainFallback(Bet):
    def __init__(self, max_rate: float) -> None:
        super().__init__([1.0] * len(sample_ratio.FALLBACK_LAMBDAS))
        self.max_rate = max_rate

    def factors(self, unit: Unit) -> list[float] | None:
        if not unit.arm:
            return None
        return [
            math.log1p(0.9 / self.max_rate * lam * (unit.y - self.max_rate))
            for lam in sample_ratio.FALLBACK_LAMBDAS
        ]
