"""Bettor that covariates are equal on both arms, as everything is that is known before the toss.

It bets on all units, with a score or not: a canary that fails on long prompts has shorter ones among its
scores, which is no fault of the covariate.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.covariates import feature
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Bets

LAMBDAS = np.array([-0.9, -0.25, 0.25, 0.9])
LIMIT = 3.0  # standard deviations at which a feature is cut off
NO_BETS = np.empty(0, dtype=np.int64)


class CovariateBalance:
    """Two-sided: for each covariate, bets that its values, or their absence, are more on one arm.

    `log1p(lam (A - w) z)` has mean 1 for every |z| <= 1 that the toss does not know. z: the standardised
    feature (`covariates.py`), a third of it and cut at 1; and whether it is present, less stable's share.
    """

    __state__ = ("centre", "scale", "present")

    def __init__(self, covariates: int) -> None:
        self.prior: Floats = np.ones(2 * covariates * len(LAMBDAS))
        self.centre: Floats = np.zeros(covariates)
        self.scale: Floats = np.zeros(covariates)  # 0: no bet on its values
        self.present: Floats = np.full(covariates, -1.0)  # -1: not known yet

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit once stable's values are known, with a look after each of the canary's."""
        if block.covariates is None or bool((self.present < 0.0).any()):
            return Bets(NO_BETS, np.empty((len(self.prior), 0)), NO_BETS)
        values = feature(block.covariates).T  # p x n
        is_here = ~np.isnan(values)
        scale = np.where(self.scale > 0.0, self.scale, np.inf)
        z = np.where(is_here, (values - self.centre[:, None]) / (LIMIT * scale[:, None]), 0.0)
        absent = is_here - self.present[:, None]
        x = (block.arm - block.w) * np.concatenate((np.clip(z, -1.0, 1.0), absent))
        log_factors = np.log1p(LAMBDAS[:, None, None] * x).reshape(len(self.prior), -1)
        return Bets(np.arange(len(block)), log_factors, np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Standardise by stable's values so far."""
        fit = stable.covariates
        if fit is not None:
            self.centre, self.scale, self.present = (
                fit.centre + np.nan_to_num(fit.origin),
                fit.scale,
                fit.present,
            )
