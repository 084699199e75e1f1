"""Covariates: what is known of a unit before its toss, and the score that stable is expected to reach on it.

A score that a bettor centres on `mu + d(X)` instead of on stable's mean `mu` has less noise, and the bet
stays valid for every d that past units determine: whatever is taken off both arms alike cancels,

    x = (A - w) * (mu + d(X) - y - A * delta0),   E[x] = w (1 - w) (E[y0] - E[y1] - delta0)

since the toss does not know X. Two conditions, kept by construction: lambda and its cap do not depend on X (a
cap for each row rolled back 13 of 150 harmless canaries), and X is of before the toss. What the arm can
change, such as anything of the answer, would be bet on as harm: `CovariateBalance` stops the gate there.

d is a ridge regression on one feature a covariate, `sign(x) log(1 + |x|)` standardised. Missing values (NaN)
have the mean. It is fitted to stable's units of ended epochs, from running sums: 1.4 KiB for 8 covariates.

Source: Deng et al., Improving the sensitivity of online controlled experiments by utilizing pre-experiment
data (2013); the bet is that of Waudby-Smith & Ramdas (`wealth.py`).
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.betting.histogram import Floats, Ints

RIDGE = 10.0  # units: weight of "no effect" for each standardised feature
MIN_UNITS = 50  # of stable, before anything is fitted
REACH = 2.0  # standard deviations of d beyond which it is cut off
SAME = 1e-12  # a covariate whose relative variance is less is constant


def feature(x: Floats) -> Floats:
    """`sign(x) log(1 + |x|)`; NaN where x is missing or infinite. Check: 0 gives 0, 99 gives log(100)."""
    with np.errstate(invalid="ignore"):
        out: Floats = np.sign(x) * np.log1p(np.abs(x))
    return np.where(np.isfinite(out), out, np.nan)


class CovariateFit:
    """Sums of stable's units and the d(X) of the current epoch. `reach`: d is within -reach..reach.

    With u = (which are present, their features less an origin, 1, y), `sums` holds the upper triangle of the
    sum of u u^T. The origin is each covariate's first value: differences from it keep their precision.
    `present`: share of units that have it (-1: too few units to know). `centre` (less the origin) and `scale`
    (0: constant): of the features. `explained`: share of the variance of y, adjusted for the number of
    covariates.
    """

    __state__ = ("sums", "origin", "present", "centre", "scale", "coefficients", "reach", "explained")

    def __init__(self, covariates: int) -> None:
        self._width = 2 * covariates + 2
        self._triangle = np.triu_indices(self._width)
        self.sums: Floats = np.zeros(len(self._triangle[0]))
        self.origin: Floats = np.full(covariates, np.nan)
        self.present: Floats = np.full(covariates, -1.0)
        self.centre: Floats = np.zeros(covariates)
        self.scale: Floats = np.zeros(covariates)
        self.coefficients: Floats = np.zeros(covariates)
        self.reach = 0.0
        self.explained = 0.0

    def adjustment(self, covariates: Floats) -> Floats:
        """d(X) of units, by which their expected score is above the mean. covariates: n x p."""
        total: Floats = np.zeros(len(covariates))
        if self.reach == 0.0:
            return total
        for column in np.flatnonzero(self.coefficients).tolist():
            z = feature(covariates[:, column]) - self.origin[column] - self.centre[column]
            total += self.coefficients[column] * np.where(np.isnan(z), 0.0, z)
        return np.clip(total, -self.reach, self.reach)

    def learn(self, covariates: Floats, y: Floats) -> None:
        """Add stable's units in order. covariates: n x p."""
        if len(y) == 0:
            return
        values = feature(covariates)
        present = ~np.isnan(values)
        is_new = np.isnan(self.origin) & present.any(axis=0)
        if is_new.any():
            first = values[np.argmax(present, axis=0), np.arange(len(self.origin))]
            self.origin = np.where(is_new, first, self.origin)
        values = np.where(present, values - self.origin, 0.0)
        u = np.concatenate((present, values, np.ones((len(y), 1)), y[:, None]), axis=1)
        rows, columns = self._triangle
        products = u[:, rows] * u[:, columns]
        self.sums = np.add.accumulate(np.concatenate((self.sums[None, :], products)), axis=0)[-1].copy()

    def end_epoch(self) -> None:
        """Fit d to the units so far. It is 0 while they are few, or explain nothing."""
        p = len(self.origin)
        here, values, one, y = slice(0, p), slice(p, 2 * p), 2 * p, 2 * p + 1
        sums = np.zeros((self._width, self._width))
        sums[self._triangle] = self.sums
        sums += np.triu(sums, 1).T
        n = float(sums[one, one])
        self.coefficients, self.reach, self.explained = np.zeros(p), 0.0, 0.0
        if n < MIN_UNITS:
            return
        mean = sums[values, one] / np.maximum(sums[here, one], 1.0)
        crossed = sums[values, here] * mean  # a missing value has the mean, which is 0 once centred
        squares = sums[values, values] - crossed - crossed.T + np.outer(mean, mean) * sums[here, here]
        diagonal = np.diagonal(squares)
        is_varied = diagonal > SAME * n * np.maximum(mean * mean, 1.0)
        self.present = np.diagonal(sums)[here] / n
        self.centre = mean
        self.scale = np.sqrt(np.where(is_varied, diagonal, 0.0) / n)
        with_y = sums[values, y] - mean * sums[here, y]
        of_y = float(sums[y, y] - sums[one, y] * sums[one, y] / n)
        used = np.flatnonzero(is_varied)
        if len(used) and n > len(used) + 1.0 and of_y > 0.0:
            self._fit(used, squares[np.ix_(used, used)], with_y[used], of_y, n)

    def _fit(self, used: Ints, squares: Floats, with_y: Floats, of_y: float, n: float) -> None:
        """Fit the features `used`. squares, with_y, of_y: centred sums of products of them and y."""
        scale = self.scale[used]
        gram, target = squares / np.outer(scale, scale), with_y / scale
        weights = np.linalg.solve(gram + RIDGE * np.eye(len(used)), target)
        fitted = float(weights @ gram @ weights)
        residual = max(of_y - 2.0 * float(weights @ target) + fitted, 0.0)
        explained = 1.0 - residual / of_y * (n - 1.0) / (n - len(used) - 1.0)
        if explained > 0.0 and fitted > 0.0:
            self.coefficients[used] = weights / scale
            self.reach = REACH * math.sqrt(fitted / n)
            self.explained = explained
