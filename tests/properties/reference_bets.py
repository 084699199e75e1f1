"""Simple twins of all bettors, in plain Python.

Written from the design (the bet, its null, its data), not from the code; only the published constants
(alternatives and priors) are the code's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.betting import latency, rates, sample_ratio, scores
from evaluation.betting.histogram import WIDTH
from evaluation.policy.gates import Gate
from evaluation.units import missingness
from tests.properties.reference_play import Bet, Past, Unit, bin_of


def odds_factor(unit: Unit, ratio: float) -> float:
    """The core log factor: r on the canary, 1 on stable, over its mean at this coin."""
    return (math.log(ratio) if unit.arm else 0.0) - math.log(unit.w * ratio + 1.0 - unit.w)


def mean_factor(unit: Unit, log_factor_of: Callable[[float], float]) -> float:
    """A unit's log factor: of the mean of the factors of its requests."""
    factors = [math.exp(log_factor_of(value)) for value in unit.values]
    return math.log(sum(factors) / len(factors))


class PlainEvents(Bet):
    """`missing_as`: the part of an event that a request without a value counts."""

    def __init__(self, tolerance: float, missing_as: float = 0.0) -> None:
        super().__init__(rates.RATIO_PRIOR.tolist())
        self.tolerated, self.missing_as = 1.0 + tolerance, missing_as

    def factors(self, unit: Unit) -> list[float] | None:
        y = unit.weight * (unit.y + self.missing_as * unit.missing)
        if y == 0.0 or unit.w == 0.0:
            return None
        q0 = unit.w * self.tolerated + 1.0 - unit.w
        out = []
        for rho in rates.RATIOS:
            event = q0 / (unit.w * self.tolerated * rho + 1.0 - unit.w) * (rho if unit.arm else 1.0)
            out.append(math.log(1.0 + y * (event - 1.0)))
        return out

    def end_epoch(self, past: Past) -> None:
        events = sum(past.outcomes(self.missing_as))
        if len(past.units) >= rates.KNOWN_UNITS and events > rates.NEAR_ZERO * len(past.units):
            self.prior = list(rates.KNOWN_PRIOR)


class PlainShares(Bet):
    def __init__(self, tolerance: float, missing_as: float = 0.0) -> None:
        super().__init__([1.0] * len(rates.SHARE_LAMBDAS))
        self.tolerated, self.mu, self.missing_as = 1.0 + tolerance, 0.05, missing_as

    def factors(self, unit: Unit) -> list[float]:
        y = unit.y + self.missing_as * unit.missing
        z = y / self.tolerated if unit.arm else y
        cap = 0.9 / max((1.0 - unit.w) * self.mu, unit.w * (1.0 - self.mu))
        x = unit.weight * (unit.arm - unit.w) * (z - self.mu)
        return [math.log1p(min(lam, cap) * x) for lam in rates.SHARE_LAMBDAS]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        self.mu = past.mean(0.05, self.missing_as)


class PlainRateProof(Bet):
    """`missing_as` 1: a request without a value has the event; stable's margin is of known values alone."""

    def __init__(self, ratio: float, floor: float, missing_as: float = 0.0) -> None:
        self.ratio, self.floor, self.mu = ratio, floor, 0.02
        self.missing_as, self.lost = missing_as, 0.0
        true_ratios, weights = rates.true_ratios(ratio)
        self.true_ratios, self.weights = [float(t) for t in true_ratios], [float(p) for p in weights]
        super().__init__(self.with_floor_share(rates.FLOOR_SHARE))

    def with_floor_share(self, share: float, *, rare: bool = False) -> list[float]:
        if self.floor == 0.0:
            return self.weights
        whole = sum(self.weights)
        floors = rates.RARE_PRIOR if rare else [1.0 / len(rates.FLOOR_LAMBDAS)] * len(rates.FLOOR_LAMBDAS)
        return [(1.0 - share) * p / whole for p in self.weights] + [share * float(p) for p in floors]

    def factors(self, unit: Unit) -> list[float] | None:
        w, lost, out = unit.w, self.missing_as * unit.missing, []
        if unit.y + lost == 0.0 and self.floor == 0.0:
            return None
        hidden = max(-unit.gap, 0.0)
        ratio, floor = max(self.ratio * (1.0 - hidden / self.mu), 0.0), self.floor - hidden
        known = self.mu * (1.0 - self.lost)  # events of known values, by request
        mean, least = known + self.lost, 0.001 if self.lost else 0.02
        null = (self.ratio * known + self.lost) / mean if self.lost else self.ratio
        for true in self.true_ratios:
            alternative = (true * known + self.lost) / mean if self.lost else true
            lam = 1.0 - alternative / null * (w * null + 1.0 - w) / (w * alternative + 1.0 - w)
            stake = -(unit.y + lost) if unit.arm else (ratio * unit.y + lost) * w / (1.0 - w)
            out.append(math.log1p(min(max(lam, least), 0.97) * stake))
        if self.floor > 0.0:
            z = unit.y + lost
            x = (1.0 - w) * (mean + floor - z) if unit.arm else -w * (mean + floor * lost - z)
            worst = max((1.0 - w) * (1.0 - mean - floor), w * mean)
            noise = (
                self.mu * (1.0 - self.mu) * (1.0 - self.lost) / (mean * (1.0 - mean)) if self.lost else 1.0
            )
            out += [math.log1p(min(noise * lam, 0.9 / worst) * x) for lam in rates.FLOOR_LAMBDAS]
        return out

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1 or unit.y + self.missing_as * unit.missing > 0.0

    def end_epoch(self, past: Past) -> None:
        self.lost = self.missing_as * past.share("missing")
        self.mu = past.mean(0.02) / (1.0 - self.lost)
        if len(past.units) >= rates.KNOWN_UNITS:
            needed = self.mu * (self.ratio - 1.0) < self.floor
            share = rates.FLOOR_SHARE_NEEDED if needed else rates.FLOOR_SHARE_SPARE
            rare = needed and self.mu + self.lost < rates.RARE * self.floor
            self.prior = self.with_floor_share(share, rare=rare)


class PlainTail(PlainRateProof):
    """The proof of a percentile, looked at while the share of stable's requests above its limit is within 1/4
    and 1.5 of what it should be, give or take a standard error; all of its units in the stage again each
    time."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(1.0, 0.0, missing_as=1.0)
        self.percentile = gate.percentile or 0.0
        self.counted: list[Unit] = []

    def factors(self, unit: Unit) -> list[float] | None:
        self.counted = [one for one in self.counted if one.stage == unit.stage]
        if not unit.arm and unit.w > 0.0:
            self.counted.append(unit)
        return super().factors(unit)

    def is_fitting(self, errors: float) -> bool:
        due = (1.0 - self.percentile) * sum(unit.n * (1.0 - unit.missing) for unit in self.counted)
        events = sum(unit.n * unit.y for unit in self.counted)
        return due / 4.0 - errors * math.sqrt(due) <= events <= due * 1.5 + errors * math.sqrt(due)

    def looks(self, unit: Unit) -> bool:
        return super().looks(unit) and self.is_fitting(1.0)

    def gives_up(self) -> bool:
        return not self.is_fitting(2.0)

    def end_epoch(self, past: Past) -> None:
        if not self.is_fitting(2.0):
            self.counted = []
        super().end_epoch(past)


def feature(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x) if math.isfinite(x) else math.nan


@dataclass
class PlainFit:
    """Ridge regression of stable's past scores, all of them again at the end of each epoch."""

    mean: list[float] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    reach: float = 0.0
    explained: float = 0.0

    @classmethod
    def to(cls, past: Past) -> PlainFit:
        units = [unit for unit in past.units if unit.x]
        if len(units) < 50:
            return cls()
        features = [[feature(x) for x in column] for column in zip(*(u.x for u in units), strict=True)]
        present = [[f for f in column if not math.isnan(f)] for column in features]
        mean = [sum(column) / len(column) for column in present]
        n, p, level = len(units), len(features), sum(unit.y for unit in units) / len(units)
        scale = [
            math.sqrt(sum((f - m) ** 2 for f in column) / n) for column, m in zip(present, mean, strict=True)
        ]
        z = np.array(
            [
                [0.0 if math.isnan(f) else (f - m) / s for f in column]
                for column, m, s in zip(features, mean, scale, strict=True)
            ]
        )
        y = np.array([unit.y - level for unit in units])
        weights = np.linalg.solve(z @ z.T + 10.0 * np.eye(p), z @ y)
        fitted = weights @ z
        explained = 1.0 - float(((y - fitted) ** 2).sum() / (y**2).sum()) * (n - 1) / (n - p - 1)
        if explained <= 0.0:
            return cls(mean, scale)
        return cls(mean, scale, weights.tolist(), 2.0 * math.sqrt(float((fitted**2).sum()) / n), explained)

    def standard(self, x: list[float]) -> list[float]:
        values = [(feature(one) - m) / s for one, m, s in zip(x, self.mean, self.scale, strict=True)]
        return [0.0 if math.isnan(value) else value for value in values]

    def of(self, x: list[float]) -> float:
        if not self.weights:
            return 0.0
        total = sum(w * z for w, z in zip(self.weights, self.standard(x), strict=True))
        return min(max(total, -self.reach), self.reach)


class PlainBalance(Bet):
    """Two-sided bets on each covariate and on its presence."""

    LAMBDAS = (-0.9, -0.25, 0.25, 0.9)

    def __init__(self, covariates: int) -> None:
        super().__init__([1.0] * (covariates * 2 * len(self.LAMBDAS)))
        self.fit, self.shares = PlainFit(), [0.0] * covariates

    def factors(self, unit: Unit) -> list[float] | None:
        if not self.fit.mean:
            return None
        z = [min(max(value / 3.0, -1.0), 1.0) for value in self.fit.standard(unit.x)]
        absent = [float(math.isfinite(x)) - share for x, share in zip(unit.x, self.shares, strict=True)]
        return [
            math.log1p(lam * (unit.arm - unit.w) * value) for lam in self.LAMBDAS for value in (*z, *absent)
        ]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        units = past.units
        if len(units) >= 50:
            varied = [Unit(0, 0.0, float(index % 2), x=unit.x) for index, unit in enumerate(units)]
            self.fit = PlainFit.to(Past(varied))
            self.shares = [
                sum(math.isfinite(unit.x[j]) for unit in units) / len(units) for j in range(len(self.shares))
            ]


class PlainScore(Bet):
    """Sign 1: bets that the canary is worse by more than `beyond`; -1 (proof): that it is worse by less.

    A request without a score counts 0, or, `as_mean`, as the upper limit of stable's mean score. A margin is
    one of scores: for stable's requests without any, it does not count.
    """

    def __init__(self, beyond: float, effect: float, *, proof: bool, as_mean: bool = False) -> None:
        self.multiples = scores.PROOF_MULTIPLES if proof else scores.LOSS_MULTIPLES
        super().__init__((scores.PROOF_PRIOR if proof else scores.LOSS_PRIOR).tolist())
        self.beyond, self.effect, self.sign = beyond, effect, -1.0 if proof else 1.0
        self.mu, self.variance, self.counted = 0.8, 0.04, 1.0
        self.as_mean, self.missing_as = as_mean, float(as_mean)
        self.fit = PlainFit()

    def factors(self, unit: Unit) -> list[float]:
        low, high = max(self.mu - self.fit.reach, 0.0), min(self.mu + self.fit.reach, 1.0)

        def x(arm: int, y: float, centre: float, counted: float = 1.0) -> float:
            loss = centre - y
            if arm:
                return self.sign * (1.0 - unit.w) * (loss - self.beyond)
            return -self.sign * unit.w * (loss - self.beyond * (1.0 - counted))

        lows = [-x(arm, y, c) for arm in (0, 1) for y in (0.0, 1.0) for c in (low, high)]
        if self.as_mean:  # the greatest of stable's is then a request without a score
            lows += [-x(0, self.missing_as, c, 0.0) for c in (low, high)]
        worst, effect = max(lows), self.effect * self.counted
        best = effect / (self.variance + effect**2)
        centre = min(max(self.mu + self.fit.of(unit.x), low), high)
        y = unit.y + self.missing_as * unit.missing
        outcome = unit.weight * x(unit.arm, y, centre, unit.counted if self.sign < 0.0 else 1.0)
        return [math.log1p(min(best * part, 0.9 / worst) * outcome) for part in self.multiples]

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        if self.as_mean:
            self.missing_as = past.highest_score()
        self.counted = past.share("counted") if self.sign < 0.0 else 1.0
        self.mu = past.mean(0.8, self.missing_as)
        self.fit = PlainFit.to(past)
        self.variance = max(past.variance(0.04, self.missing_as) * (1.0 - self.fit.explained), 0.0004)


class PlainPairs(Bet):
    def __init__(self, tolerance: float, most: float) -> None:
        """most: the largest gain of the canary beyond the tolerance."""
        super().__init__([1.0] * len(scores.PAIR_LAMBDAS))
        self.tolerance, self.cap = tolerance, 0.9 / most

    def factors(self, unit: Unit) -> list[float]:
        return [math.log1p(min(lam, self.cap) * (unit.y - self.tolerance)) for lam in scores.PAIR_LAMBDAS]


class PlainShape(Bet):
    """Bins at stable's percentiles; ratios from stable's own values, moved by each alternative. An unanswered
    request is slowest; of the canary's, the excess that is tolerated is discounted."""

    def __init__(self, divisor: float, *, proof: bool, failures: float = 1.0) -> None:
        self.powers = latency.ShapeProof.POWERS if proof else None
        rollback = (*latency.SCALE_PRIOR, *latency.STRETCH_PRIOR, *latency.TAIL_PRIOR)
        super().__init__([1.0] * len(self.powers) if self.powers else rollback)
        self.divisor, self.failures = divisor, failures
        self.edges: list[float] = []
        self.ratios: list[list[float]] = []
        self.mass: list[float] = []  # of stable's answers

    def column(self, value: float) -> int:
        return sum(edge < value for edge in self.edges)

    def factors(self, unit: Unit) -> list[float] | None:
        if not self.edges:
            return None
        return [mean_factor(unit, lambda y, row=row: self.factor(unit, row, y)) for row in self.ratios]  # type: ignore[misc]

    def factor(self, unit: Unit, row: list[float], y: float) -> float:
        if unit.arm and math.isinf(y) and self.failures > 1.0:
            h = [ratio / (unit.w * ratio + 1.0 - unit.w) for ratio in row]
            mean = sum(a * b for a, b in zip(h, self.mass, strict=True))
            return math.log(mean + (h[-1] - mean) / self.failures)
        return odds_factor(unit, row[self.column(y / self.divisor if unit.arm else y)])

    def looks(self, unit: Unit) -> bool:
        return unit.arm == 1

    def end_epoch(self, past: Past) -> None:
        if len(past.logs) < latency.MIN_VALUES:
            return
        edges = {past.quantile(share) for share in latency.QUANTILES}
        if self.powers:
            edges.add(min(edges) / math.sqrt(self.divisor))
        self.edges = sorted(edges)
        middles = [math.exp((bin_of(log) + 0.5) * WIDTH) for log in past.logs]
        stable = self.shares(middles)
        self.mass = [share / sum(stable) for share in stable]
        if self.powers:
            shares = [self.shares([m / self.divisor**power for m in middles]) for power in self.powers]
            self.ratios = [self.falling(self.over(moved, stable), past) for moved in shares]
            return
        p95, p99 = past.quantile(0.95), past.quantile(0.99)
        p99 = max(p99, 1.01 * p95)
        shares = [self.shares([m * scale for m in middles]) for scale in latency.SCALES]
        shares += [
            self.shares([m * times ** self.part(m, p95, p99) for m in middles]) for times in latency.STRETCHES
        ]
        self.ratios = [self.rising(self.over(moved, stable), past) for moved in shares]
        for share, times in latency.TAILS:
            start = past.quantile(share)
            edge_bin = bin_of(math.log(start / 1.005))
            above = max(sum(bin_of(log) > edge_bin for log in past.logs) / len(past.logs), latency.SMOOTHING)
            rest = max((1.0 - times * above) / (1.0 - above), latency.MIN_RATIO)
            tail = [times if e > start else rest for e in [*self.edges, math.inf]]
            self.ratios.append(self.rising(tail, past))

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

    def with_unanswered(self, ratios: list[float], past: Past) -> tuple[list[float], list[float]]:
        """Ratios and masses, with the unanswered in the last bin, which no alternative moves."""
        share = past.unanswered_share()
        mass = [m * (1.0 - share) for m in self.mass]
        ratios = self.clipped(ratios)
        ratios[-1] = (ratios[-1] * mass[-1] + share) / (mass[-1] + share)
        mass[-1] += share
        return ratios, mass

    def rising(self, ratios: list[float], past: Past) -> list[float]:
        return pooled(*self.with_unanswered(ratios, past))

    def falling(self, ratios: list[float], past: Past) -> list[float]:
        ratios, mass = self.with_unanswered(ratios, past)
        return pooled(ratios[::-1], mass[::-1])[::-1]


def pooled(ratios: list[float], mass: list[float]) -> list[float]:
    """Isotonic regression by pooling adjacent violators: neighbours that fall share their weighted mean."""
    pools: list[list[float]] = []  # ratio, mass, bins
    for ratio, weight in zip(ratios, mass, strict=True):
        pools.append([ratio, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            last, before = pools.pop(), pools.pop()
            total = last[1] + before[1]
            mean = (last[0] * last[1] + before[0] * before[1]) / total
            pools.append([mean, total, last[2] + before[2]])
    return [ratio for ratio, _, bins in pools for _ in range(int(bins))]


class PlainOdds(Bet):
    """Two-sided bet on the coin itself, of all units."""

    def __init__(self) -> None:
        super().__init__([1.0] * len(sample_ratio.ODDS))

    def factors(self, unit: Unit) -> list[float] | None:
        return [odds_factor(unit, ratio) for ratio in sample_ratio.ODDS]


class PlainPresence(Bet):
    """Two-sided bet on the share of a unit's requests without (or with) a value."""

    def __init__(self) -> None:
        super().__init__([1.0] * len(missingness.RATIOS))

    def factors(self, unit: Unit) -> list[float] | None:
        if unit.y == 0.0 or unit.w == 0.0:
            return None
        out = []
        for rho in missingness.RATIOS:
            d = rho / (unit.w * rho + 1.0 - unit.w) - 1.0
            out.append(math.log(1.0 + (d * unit.y if unit.arm else -d * unit.y * unit.w / (1.0 - unit.w))))
        return out


class PlainTurns(Bet):
    """Longer or shorter on the canary, further from the mean or nearer, more or fewer short ones; and the
    ratio of both arms' lengths so far, which begins as 1."""

    def __init__(self, max_turns: int) -> None:
        tilts = (sample_ratio.TURN_TILTS, sample_ratio.SPREAD_TILTS, sample_ratio.SHORT_TILTS)
        super().__init__([1.0] * sum(len(of_kind) for of_kind in tilts) + [4.0])
        self.max_turns = max_turns
        self.canary: list[int] = []
        self.ratios: dict[int, list[float]] = {}  # by the number of turns

    def turns(self, unit: Unit) -> int:
        return int(min(unit.n, self.max_turns))

    def factors(self, unit: Unit) -> list[float] | None:
        if unit.arm:
            self.canary.append(self.turns(unit))
        if not self.ratios:
            return None
        return [odds_factor(unit, ratio) for ratio in self.ratios[self.turns(unit)]]

    def end_epoch(self, past: Past) -> None:
        stable = [self.turns(unit) for unit in past.units]
        if len(stable) < sample_ratio.MIN_SESSIONS or all(n == 1 for n in stable + self.canary):
            return
        mean = sum(stable) / len(stable)
        shapes: list[Callable[[int], float]] = []
        for tilt in sample_ratio.TURN_TILTS.tolist():
            shapes.append(lambda n, tilt=tilt: math.exp(tilt * n))  # type: ignore[misc]
        for tilt in sample_ratio.SPREAD_TILTS.tolist():
            shapes.append(lambda n, tilt=tilt: math.exp(tilt * abs(n - mean)))  # type: ignore[misc]
        for tilt in sample_ratio.SHORT_TILTS.tolist():
            shapes.append(lambda n, tilt=tilt: math.exp(tilt / max(n, 1)))  # type: ignore[misc]
        norms = [sum(map(shape, stable)) / len(stable) for shape in shapes]
        self.ratios = {
            n: [*(shape(n) / norm for shape, norm in zip(shapes, norms, strict=True)), self.learnt(n, stable)]
            for n in range(self.max_turns + 1)
        }

    def learnt(self, n: int, stable: Sequence[int]) -> float:
        usual = (stable.count(n) + 0.5) / (len(stable) + 0.5 * (self.max_turns + 1))
        before = sample_ratio.LEARNT_AFTER
        ratio = (self.canary.count(n) / usual + before) / (len(self.canary) + before)
        return min(max(ratio, 1.0 / sample_ratio.MAX_LEARNT), sample_ratio.MAX_LEARNT)


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
