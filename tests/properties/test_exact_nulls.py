"""Exact, not simulated: P(decision) and mean wealth of each channel over all sequences of a few units.

Within one epoch a channel's wealth depends only on the counts of each (arm, outcome), so all sequences of `N`
units are covered by enumerating those counts. At the edge of its null a channel decides with probability at
most alpha and its wealth has mean at most one; further beyond it decides sooner, in distribution.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from evaluation.betting.exceedance import Exceedance
from evaluation.betting.latency import ShapeLoss, ShapeProof
from evaluation.betting.rates import EventLoss, RateProof, ShareLoss
from evaluation.betting.sample_ratio import FallbackBet, SampleRatioBet
from evaluation.betting.scores import PairLoss, ScoreLoss, ScoreProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bettor
from evaluation.units.missingness import PresenceBet
from tests.fakes.evidence_maker import unit_block

N = 14
ALPHA = 0.2
W = 0.4
Law = dict[tuple[int, float], float]  # (arm, outcome) -> probability


def law(stable: dict[float, float], canary: dict[float, float], w: float = W) -> Law:
    on_stable = {(0, y): (1.0 - w) * p for y, p in stable.items()}
    return on_stable | {(1, y): w * p for y, p in canary.items()}


def events(stable: float, canary: float, w: float = W) -> Law:
    """Shares of bad answers, 0 or 1."""
    return law({0.0: 1.0 - stable, 1.0: stable}, {0.0: 1.0 - canary, 1.0: canary}, w)


def knowing(bettor: Bettor, past: np.ndarray) -> Bettor:
    stable = Stable(with_histogram=True)
    stable.learn(past)
    bettor.end_epoch(stable)
    return bettor


PAST = np.repeat([200.0, 240.0], [50, 50])


def slower(times: float) -> Law:
    """Stable takes 200 or 240 ms, the canary `times` as long."""
    return law({200.0: 0.5, 240.0: 0.5}, {200.0 * times: 0.5, 240.0 * times: 0.5})


def exceeding(times: float, allowed: float, *, proof: bool) -> Law:
    """These as indicators of a percentile gate: above stable's past median, the canary's divided first."""
    values = slower(times)
    out: Law = defaultdict(float)
    for (arm, y), p in values.items():
        gate = Exceedance(percentile=0.5)
        gate.seed(PAST)
        indicator = gate.of(np.array([y]), np.array([y]), np.array([arm == 1]), (allowed, allowed))[
            int(proof), 0
        ]
        out[arm, float(indicator)] += p
    return out


def pairs(mean: float) -> Law:
    """Differences of -1, 0 and 1, all on stable's arm: the coin does not matter."""
    return {(0, -1.0): 0.3 - mean / 2, (0, 0.0): 0.4, (0, 1.0): 0.3 + mean / 2}


def counts(tail: float) -> Law:
    """Sessions of ten requests with no event or three; `tail`: more with three on the canary."""
    return law({0.0: 0.8, 0.3: 0.2}, {0.0: 0.8 - tail, 0.3: 0.2 + tail})


#: By channel: a new bettor, and the law of one unit by harm (1: the edge of the null; more: further beyond).
Channel = tuple[Callable[[], Bettor], Callable[[float], Law]]
CHANNELS: dict[str, Channel] = {
    "first requests": (lambda: EventLoss(tolerance=0.25), lambda h: events(0.2, 0.25 * h)),
    "shares of sessions": (lambda: ShareLoss(tolerance=0.0), lambda h: counts(0.2 * (h - 1.0))),
    "scores": (lambda: ScoreLoss(tolerance=0.05), lambda h: events(0.7, 0.7 - 0.05 * h)),
    "shape": (lambda: knowing(ShapeLoss(tolerance=0.1), PAST), lambda h: slower(1.1 * h)),
    "percentile": (lambda: EventLoss(tolerance=0.0), lambda h: exceeding(1.1 * h, 1.1, proof=False)),
    "pairs": (lambda: PairLoss(tolerance=0.05, lower_is_better=False), lambda h: pairs(0.05 * h)),
    "served rate": (lambda: FallbackBet(max_rate=0.1), lambda h: events(0.0, 0.1 * h)),
    "sample ratio": (SampleRatioBet, lambda h: events(0.5, 0.5, w=W * (1.0 + 0.2 * (h - 1.0)))),
    "presence": (PresenceBet, lambda h: events(0.2, 0.2 + 0.2 * (h - 1.0))),
    "rate proof, by ratio": (lambda: RateProof(ratio=3.0, floor=0.001), lambda h: events(0.2, 0.6 / h)),
    "rate proof, by floor": (lambda: RateProof(ratio=1.2, floor=0.3), lambda h: events(0.1, 0.4 / h)),
    "score proof": (lambda: ScoreProof(margin=0.2), lambda h: events(0.6, 0.4 + 0.2 * (h - 1.0))),
    "shape proof": (lambda: knowing(ShapeProof(margin=1.3), PAST), lambda h: slower(1.3 / h)),
    "percentile proof": (
        lambda: RateProof(ratio=1.0, floor=0.0),
        lambda h: exceeding(1.3 / h, 1.3, proof=True),
    ),
}
HARMS = (1.0, 1.3, 1.8, 4.0)


def decided_by(bettor: Bettor, unit: Law) -> tuple[list[float], float]:
    """P(decided by n) for n = 1..N, and the maximum over alternatives of the mean wealth after N units."""
    cells = [cell for cell, p in unit.items() if p > 0.0]
    size = len(cells)
    arm, y = np.array([a == 1 for a, _ in cells]), np.array([v for _, v in cells])
    rows, log_factors, looks = bettor.bets(unit_block(arm, W, y, n=10.0))
    factors = np.zeros((len(bettor.prior), size))
    factors[:, rows] = log_factors
    is_look = np.isin(np.arange(size), rows[looks])
    log_prior = np.log(bettor.prior / np.sum(bettor.prior))

    def log_e(counts: tuple[int, ...]) -> float:
        return float(np.logaddexp.reduce(log_prior + factors @ np.array(counts)))

    undecided: dict[tuple[int, ...], float] = {(0,) * size: 1.0}
    every = dict(undecided)
    decided, total = [], 0.0
    for _ in range(N):
        still: dict[tuple[int, ...], float] = defaultdict(float)
        after: dict[tuple[int, ...], float] = defaultdict(float)
        for state, chance in every.items():
            for cell in range(size):
                to = tuple(c + (i == cell) for i, c in enumerate(state))
                after[to] += chance * unit[cells[cell]]
        values = {state: log_e(state) for state in after}
        for state, chance in undecided.items():
            for cell in range(size):
                to = tuple(c + (i == cell) for i, c in enumerate(state))
                if is_look[cell] and values[to] >= math.log(1.0 / ALPHA):
                    total += chance * unit[cells[cell]]
                else:
                    still[to] += chance * unit[cells[cell]]
        undecided, every = still, after
        decided.append(total)
    states, chances = np.array(list(every)), np.array(list(every.values()))
    return decided, float((np.exp(factors @ states.T) @ chances).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANNELS)
def test_at_the_edge_of_its_null_a_channel_has_mean_at_most_one_and_rarely_decides(name: str) -> None:
    make, unit = CHANNELS[name]
    decided, mean_wealth = decided_by(make(), unit(1.0))

    assert mean_wealth <= 1.0 + 1e-9
    assert decided[-1] <= ALPHA


@pytest.mark.calibration
@pytest.mark.parametrize("name", CHANNELS)
def test_the_further_beyond_its_null_the_sooner_a_channel_decides(name: str) -> None:
    make, unit = CHANNELS[name]
    decided = [decided_by(make(), unit(harm))[0] for harm in HARMS]

    assert (np.diff(np.array(decided), axis=0) >= -1e-12).all()
    assert decided[-1][-1] > decided[0][-1]
