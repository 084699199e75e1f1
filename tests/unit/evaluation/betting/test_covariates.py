"""Covariates: the fit, its independence of how rows are cut, and the bets it is used for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.betting.covariate_balance import CovariateBalance
from evaluation.betting.covariates import MIN_UNITS, RIDGE, CovariateFit, feature
from evaluation.betting.scores import ScoreLoss, ScoreProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats
from evaluation.snapshot import Stateful, write
from tests.fakes.evidence_maker import unit_block


def data(n: int = 300, *, seed: int = 1, missing: float = 0.0) -> tuple[Floats, Floats]:
    """Two covariates (one skewed, one signed) and a score that both explain."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 2))
    y = np.clip(0.7 - 0.1 * z[:, 0] + 0.05 * z[:, 1] + 0.1 * rng.standard_normal(n), 0.0, 1.0)
    x = np.stack((np.exp(6.0 + z[:, 0]), np.sinh(z[:, 1])), axis=1)
    x[rng.random((n, 2)) < missing] = np.nan
    return x, y


def fitted(x: Floats, y: Floats) -> CovariateFit:
    fit = CovariateFit(x.shape[1])
    fit.learn(x, y)
    fit.end_epoch()
    return fit


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_fit_is_a_ridge_regression_on_standardised_features_with_missing_ones_at_the_mean(
    missing: float,
) -> None:
    x, y = data(missing=missing)
    f = feature(x)
    centred = np.nan_to_num(f - np.nanmean(f, axis=0))
    scale = centred.std(axis=0)
    z = centred / scale
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(2), z.T @ (y - y.mean()))
    d = z @ weights
    reach = 2.0 * d.std()

    fit = fitted(x, y)

    assert fit.adjustment(x) == pytest.approx(np.clip(d, -reach, reach), abs=1e-12)
    residual = ((y - y.mean() - d) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert fit.explained == pytest.approx(1.0 - residual * 299 / 297, rel=1e-9)
    assert fit.explained > 0.2


@pytest.mark.parametrize("cuts", [[1], [7, 8, 100], list(range(1, 300))])
def test_sums_have_the_same_bits_however_rows_are_cut(cuts: list[int]) -> None:
    x, y = data(missing=0.2)
    cut = CovariateFit(2)
    for part_x, part_y in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        cut.learn(part_x, part_y)
    cut.end_epoch()

    assert write(cut, digest="") == write(fitted(x, y), digest="")


@pytest.mark.parametrize("x", [np.full(300, 7.0), np.full(300, np.nan), np.full(300, np.inf)])
def test_a_constant_or_missing_covariate_changes_nothing_to_the_last_bit(x: Floats) -> None:
    _, y = data()
    fit = fitted(x[:, None], y)
    stable, plain = Stable(with_histogram=False, covariates=1), Stable(with_histogram=False)
    for one in (stable, plain):
        one.learn(y)
    stable.covariates = fit
    block = unit_block(np.arange(100) % 4 == 0, 0.25, y[:100])
    with_x = block.with_covariates(x[:100, None]).with_adjustment(fit.adjustment(x[:100, None]))

    for make in (lambda c: ScoreLoss(tolerance=0.02, covariates=c), lambda c: ScoreProof(margin=0.1)):
        bettor, other = make(True), make(False)
        bettor.end_epoch(stable)
        other.end_epoch(plain)
        assert bettor.bets(with_x).log_factors.tobytes() == other.bets(block).log_factors.tobytes()


def test_few_units_fit_nothing() -> None:
    x, y = data(MIN_UNITS - 1)

    assert fitted(x, y).reach == 0.0


def test_huge_values_are_cut_off_and_stay_finite() -> None:
    x, y = data()
    x[::50, 0] = 1e300
    x[::70, 1] = -1e300
    fit = fitted(x, y)
    d = fit.adjustment(np.array([[1e308, -1e308], [0.0, 0.0], [np.nan, np.inf]]))

    assert np.isfinite(d).all()
    assert np.abs(d).max() <= fit.reach
    assert d[2] == 0.0


def balance(difference: float, *, present: float = 1.0) -> float:
    """Greatest log wealth over 4000 units whose covariate is larger on the canary."""
    rng = np.random.default_rng(4)
    n = 4000
    arm = rng.random(n) < 0.2
    x = rng.lognormal(6.0, 0.8, n) * np.exp(difference * arm)
    x[arm & (rng.random(n) > present)] = np.nan
    stable = Stable(with_histogram=False, covariates=1)
    stable.covariates = fitted(x[~arm][:500, None], np.zeros(500))
    bettor = CovariateBalance(1)
    bettor.end_epoch(stable)
    bets = bettor.bets(unit_block(arm, 0.2, np.zeros(n)).with_covariates(x[:, None]))
    lw = np.cumsum(bets.log_factors, axis=1)
    return float((np.logaddexp.reduce(lw, axis=0) - math.log(len(lw))).max())


def test_the_balance_finds_a_covariate_that_the_arm_changes_and_no_other() -> None:
    assert balance(0.0) < 3.0
    assert balance(0.3) > math.log(1 / 0.002)
    assert balance(0.0, present=0.7) > math.log(1 / 0.002)


def test_the_state_of_bettors_without_covariates_is_what_it_was() -> None:
    bettors: list[tuple[Stateful, Stateful]] = [
        (ScoreLoss(tolerance=0.0), ScoreLoss(tolerance=0.0, covariates=True)),
        (ScoreProof(margin=0.05), ScoreProof(margin=0.05, covariates=True)),
    ]
    for plain, other in bettors:
        assert tuple(plain.__state__) == ("mu", "bet")
        assert tuple(other.__state__) == ("mu", "bet", "reach")
