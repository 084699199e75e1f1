"""Two-sided betting mixture on the difference of two means, and the interval that is its inversion.

For a unit with outcome y in [0, 1], arm A ~ Bernoulli(w), past mean m and variance v of both arms together,

    x = (A - w) * (y - m)            has mean w(1-w) * (difference of the means), for every predictable m
    bet on "B higher":  prod (1 + lam * x),   on "A higher":  prod (1 - lam * x),   lam = delta / v

averaged over 12 sizes delta. Half of alpha is spent on each side: the test ends when one of them reaches
2 / alpha (Ville), at whatever moment one looks.

The bets against "the difference is g" have x - k g in the place of x, k = (A - w)**2, and the same lam. So
on every path the wealth of "B higher than g" falls as g grows: what is excluded is everything below a limit.
The interval is between the two limits. It excludes 0 exactly when the test has ended, by construction, and
it contains the true difference at all times together with probability at least 1 - alpha. It is that of the
units so far, and no intersection of those before: where the difference itself changes in the course of the
test, what was true of its beginning would exclude what is true of the whole. In place of the
wealth at g stands a lower bound that is exact at g = 0 and needs three sums:
log(1 + lam (x - k g)) >= log(1 + lam x) - u g - psi(u) g**2, with u = lam k / (1 + lam x), |g| <= 1 and
psi(u) = -log(1 - u) - u.

Invariant: bets depend on past units only; how units are grouped into blocks changes no bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evaluation.betting.unit_block import Floats

DELTAS: Floats = np.geomspace(0.01, 0.16, 12)
MAX_LOSS = 0.9  # of the wealth, by one unit, against any difference
BLOCK = 4096  # units that are added at once, at 600 bytes each
_POINTS, _ZOOMS = 33, 4  # of the search for a limit: 2 / 32**4 fine


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the difference: it is above `low` and below `high`."""

    low: float
    high: float


class MeanMixture:
    """The running mixture. `peak`: the highest `log_e` so far, by side."""

    def __init__(self, alpha: float) -> None:
        """alpha: probability of a wrong end over all moments, in (0, 1)."""
        self.limit = math.log(2.0 / alpha)
        self.n = 0
        self.peak = np.zeros(2)
        self.ended_at: int | None = None  # units when a side reached its limit; None: none has
        self.side: int | None = None  # 0: B is higher, 1: A is
        self._sums = np.zeros((3, 2, len(DELTAS)))  # of log(1 + lam x), u and psi(u), by side and delta
        self._total, self._square = (
            0.5,
            0.5,
        )  # of y and y**2, with a prior of one unit: mean 0.5, variance 0.25
        self._beyond = 0.0  # by how much more than 0 the end excludes, on its side

    def add(self, y: Floats, is_b: Floats, w: Floats) -> None:
        """Add units in order of assignment: outcomes in [0, 1], arms as 0 and 1, P(B) in (0, 1)."""
        for start in range(0, len(y), BLOCK):
            block = slice(start, start + BLOCK)
            self._add(y[block], is_b[block], w[block])

    def _add(self, y: Floats, is_b: Floats, w: Floats) -> None:
        total = np.cumsum(np.concatenate(([self._total], y)))
        square = np.cumsum(np.concatenate(([self._square], y * y)))
        count = self.n + np.arange(1.0, len(y) + 1.0)
        mean = total[:-1] / count
        variance = np.maximum(square[:-1] / count - mean * mean, 1e-12)
        toss = is_b - w
        x, k = (toss * (y - mean))[:, None], (toss * toss)[:, None]
        # The largest loss against any difference of at most 1, on either side and arm.
        spread = np.maximum(mean, 1.0 - mean)
        worst = np.maximum((1.0 - w) * (spread + 1.0 - w), w * (spread + w))
        lam = np.minimum(DELTAS / variance[:, None], (MAX_LOSS / worst)[:, None])
        up, down = np.log1p(lam * x), np.log1p(-lam * x)
        u_up, u_down = lam * k / (1.0 + lam * x), lam * k / (1.0 - lam * x)
        terms = np.stack(
            (
                np.stack((up, down), 1),
                np.stack((u_up, u_down), 1),
                np.stack((-np.log1p(-u_up) - u_up, -np.log1p(-u_down) - u_down), 1),
            ),
            1,
        )
        sums = np.cumsum(np.concatenate((self._sums[None], terms)), axis=0)
        self._follow(log_mean_exp(sums[1:, 0]))
        self._sums = sums[-1]
        self._total, self._square = float(total[-1]), float(square[-1])
        self.n += len(y)

    def _follow(self, log_e: Floats) -> None:
        """Note the peaks and the end. log_e: units x 2."""
        self.peak = np.maximum(self.peak, log_e.max(axis=0))
        if self.ended_at is not None:
            return
        reached = log_e.max(axis=1) >= self.limit
        if reached.any():
            row = int(np.argmax(reached))
            self.ended_at, self.side = self.n + row + 1, int(np.argmax(log_e[row]))
            # What is above the limit here excludes a little more than 0: log(1 - u g) >= -10 g, as u <= 0.9.
            excess = float(log_e[row].max()) - self.limit
            self._beyond = max(excess / (10.0 * self.ended_at), math.ulp(1.0))

    @property
    def log_e(self) -> Floats:
        """Log wealth of "B is higher" and of "A is higher" now, each started with 1."""
        return log_mean_exp(self._sums[0])

    def bounds(self) -> Bounds:
        """The interval of the units so far; after the end its side stays excluded."""
        low, high = self._excluded(0), -self._excluded(1)
        if self.side is not None:
            low, high = (max(low, self._beyond), high) if self.side == 0 else (low, min(high, -self._beyond))
        return Bounds(low, high)

    def _excluded(self, side: int) -> float:
        """The largest difference excluded from below, -1 for none; for side 1 with its sign turned."""
        exact, slope, curve = self._sums[:, side]
        low, high = -1.0, 1.0
        for _ in range(_ZOOMS):
            g = np.linspace(low, high, _POINTS)[:, None]
            excluded = log_mean_exp(exact - g * slope - g * g * curve) >= self.limit
            if not excluded.any():
                break
            last = int(np.flatnonzero(excluded)[-1])
            low, high = float(g[last, 0]), float(g[min(last + 1, _POINTS - 1), 0])
        return low


def log_mean_exp(logs: Floats) -> Floats:
    """Log of the mean of the exponentials over the last axis."""
    top = logs.max(axis=-1)
    return np.asarray(top + np.log(np.exp(logs - top[..., None]).mean(axis=-1)), dtype=np.float64)
