"""Units until a sequential A/B test ends, beside an mSPRT that knows the size of the effect.

`python -m benchmarks.ab_power --runs 200` prints a table. mSPRT: normal mixture of the difference of the
running means, its variance known and its prior tuned to the true effect (Johari, Pekelis, Walsh, 2015). Both
look after every unit, at alpha 0.05, on the same events. Also counts the looks at which interval and verdict
disagree, and the runs whose interval missed the true difference.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from benchmarks.gate.traffic import Floats
from evaluation.ab.mixture import MeanMixture

ALPHA = 0.05
STEP = 512


@dataclass(frozen=True, slots=True)
class Effect:
    """Rates of the two sides, and the units of a run."""

    a: float
    b: float
    units: int


EFFECTS = (Effect(0.10, 0.12, 40_000), Effect(0.50, 0.55, 20_000), Effect(0.02, 0.03, 40_000))


@dataclass(frozen=True, slots=True)
class Runs:
    """Units until each run ended (the horizon, where it did not), and what its intervals did."""

    ours: list[int]
    msprt: list[int]
    disagree: int
    missed: int


def measure(effect: Effect, runs: int) -> Runs:
    """The runs of one effect; seeds 0, 1, 2, ..."""
    found = Runs([], [], 0, 0)
    disagree = missed = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        is_b: Floats = (rng.random(effect.units) < 0.5).astype(np.float64)
        y: Floats = (rng.random(effect.units) < np.where(is_b == 1.0, effect.b, effect.a)).astype(np.float64)
        mixture = MeanMixture(ALPHA)
        for start in range(0, effect.units, STEP):
            part = slice(start, start + STEP)
            mixture.add(y[part], is_b[part], np.full(len(y[part]), 0.5))
            bounds = mixture.bounds()
            excludes = bounds.low > 0.0 or bounds.high < 0.0
            disagree += excludes != (mixture.ended_at is not None)
            if mixture.ended_at is not None:
                break
        missed += not bounds.low <= effect.b - effect.a <= bounds.high
        found.ours.append(mixture.ended_at or effect.units)
        found.msprt.append(msprt_units(y, is_b, effect))
    return Runs(found.ours, found.msprt, disagree, missed)


def msprt_units(y: Floats, is_b: Floats, effect: Effect) -> int:
    """Units until the mSPRT ends; all of them if it does not."""
    n_b = np.cumsum(is_b)
    n_a = np.arange(1.0, len(y) + 1.0) - n_b
    both = np.flatnonzero((n_a > 0) & (n_b > 0))
    difference = np.cumsum(y * is_b)[both] / n_b[both] - np.cumsum(y * (1 - is_b))[both] / n_a[both]
    rate, prior = (effect.a + effect.b) / 2, (effect.b - effect.a) ** 2
    variance = rate * (1 - rate) * (1 / n_a[both] + 1 / n_b[both])
    log_e = np.log(variance / (variance + prior)) / 2
    log_e += prior * difference**2 / (2 * variance * (variance + prior))
    reached = log_e >= math.log(1 / ALPHA)
    return int(both[np.argmax(reached)]) + 1 if reached.any() else len(y)


def main() -> None:
    """Print one row for each effect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs: int = parser.parse_args().runs
    print(
        "| effect | canaryctl, median (p90) | mSPRT, tuned | ratio | interval disagrees | interval missed |"
    )
    print("|---|---|---|---|---|---|")
    for effect in EFFECTS:
        found = measure(effect, runs)
        ours, theirs = float(np.median(found.ours)), float(np.median(found.msprt))
        p90 = float(np.quantile(found.ours, 0.9))
        print(
            f"| {effect.a:g} -> {effect.b:g} | {ours:.0f} ({p90:.0f}) | {theirs:.0f} | {ours / theirs:.2f} "
            f"| {found.disagree} | {found.missed} of {runs} |"
        )


if __name__ == "__main__":
    main()
