"""Under the null, no alternative's factor has a mean above one, whatever the bettor has learned."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluation.betting.latency import ShapeLoss, ShapeProof
from evaluation.betting.rates import EventLoss, RateProof, ShareLoss
from evaluation.betting.sample_ratio import FallbackBet, SampleRatioBet, TurnsBet
from evaluation.betting.scores import PairLoss, ScoreLoss, ScoreProof, pair_harm
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bettor
from evaluation.units.missingness import PresenceBet
from tests.fakes.evidence_maker import unit_block

ROUNDING = 1e-9
weights = st.floats(0.001, 0.95)
rates = st.floats(0.0, 1.0)
shares = st.lists(st.floats(0.01, 1.0), min_size=11, max_size=11).map(lambda s: np.array(s) / sum(s))
SCORES = np.linspace(0.0, 1.0, 11)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def worst_mean(
    bettor: Bettor,
    w: float,
    stable_y: np.ndarray,
    stable_p: np.ndarray,
    canary_y: np.ndarray,
    canary_p: np.ndarray,
    n: float = 1.0,
) -> float:
    """Maximum mean factor over the alternatives: exact, over the coin and both arms' outcomes."""
    arm = np.repeat([False, True], [len(stable_y), len(canary_y)])
    rows, log_factors, _ = bettor.bets(unit_block(arm, w, np.concatenate((stable_y, canary_y)), n=n))
    factors = np.ones((len(bettor.prior), len(arm)))
    factors[:, rows] = np.exp(log_factors)
    return float((factors @ np.concatenate(((1 - w) * stable_p, w * canary_p))).max())


def knowing(bettor: Bettor, stable_y: np.ndarray, *, with_histogram: bool = False) -> Bettor:
    past = Stable(with_histogram=with_histogram)
    past.learn(np.asarray(stable_y, dtype=float))
    bettor.end_epoch(past)
    return bettor


def binary(rate: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0.0, 1.0]), np.array([1.0 - rate, rate])


@pytest.mark.slow
@quick
@given(weights, rates, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_first_requests_gain_nothing_while_the_rate_is_tolerated(
    w: float, stable: float, better: float, tolerance: float
) -> None:
    canary = better * min(1.0, (1.0 + tolerance) * stable)

    assert worst_mean(EventLoss(tolerance=tolerance), w, *binary(stable), *binary(canary)) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(weights, st.floats(0.01, 0.5), st.floats(1.3, 4.0))
def test_first_requests_gain_when_the_rate_is_worse(w: float, stable: float, ratio: float) -> None:
    canary = min(1.0, stable * ratio * 1.2)
    assume(canary > stable * 1.4)

    assert worst_mean(EventLoss(tolerance=0.0), w, *binary(stable), *binary(canary)) > 1.0


@pytest.mark.slow
@quick
@given(weights, shares, shares, st.floats(0.0, 1.0), shares)
def test_shares_of_sessions_gain_nothing_while_their_mean_is_tolerated(
    w: float, stable: np.ndarray, canary: np.ndarray, tolerance: float, past: np.ndarray
) -> None:
    """Whatever the numbers of requests: y is the share of a session's requests with the event."""
    assume(canary @ SCORES <= (1.0 + tolerance) * (stable @ SCORES))
    for bettor in (EventLoss(tolerance=tolerance), ShareLoss(tolerance=tolerance)):
        assert worst_mean(knowing(bettor, past), w, SCORES, stable, SCORES, canary) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(weights, st.integers(0, 9), st.floats(0.0, 0.6))
def test_turns_gain_nothing_while_they_are_equally_distributed(w: float, seed: int, more: float) -> None:
    rng = np.random.default_rng(seed)
    bettor = TurnsBet(max_turns=10)
    past = unit_block(np.zeros(90, dtype=bool), w, np.zeros(90))
    bettor.bets(replace(past, n=rng.integers(1, 11, 90).astype(float)))
    bettor.end_epoch(Stable(with_histogram=False))
    p = rng.dirichlet(np.ones(10))
    n = np.tile(np.arange(1.0, 11.0), 2)
    arm = np.repeat([False, True], 10)
    _, log_factors, _ = bettor.bets(replace(unit_block(arm, w, n), n=n))
    shift = (1 - more) * p + more * np.append(0.0, p[:-1]) / (1 - p[-1])
    equal, longer = (np.exp(log_factors) @ np.concatenate(((1 - w) * p, w * canary)) for canary in (p, shift))

    assert equal.max() <= 1 + ROUNDING
    assert more < 0.1 or longer.max() > 1.0


@pytest.mark.slow
@quick
@given(weights, shares, shares, st.floats(0.0, 0.2), shares)
def test_scores_gain_nothing_while_the_loss_is_tolerated(
    w: float, stable: np.ndarray, canary: np.ndarray, tolerance: float, past: np.ndarray
) -> None:
    assume(canary @ SCORES >= stable @ SCORES - tolerance)
    bettor = knowing(ScoreLoss(tolerance=tolerance, threshold=tolerance + 0.05), past)

    assert worst_mean(bettor, w, SCORES, stable, SCORES, canary) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(weights, shares, shares, st.floats(0.01, 0.9), shares)
def test_a_score_is_not_proven_while_the_loss_reaches_the_margin(
    w: float, stable: np.ndarray, canary: np.ndarray, part: float, past: np.ndarray
) -> None:
    margin = part * float(stable @ SCORES)
    max_mean = float(stable @ SCORES) - margin
    part_kept = min(1.0, max_mean / float(canary @ SCORES))
    canary = part_kept * canary + (1.0 - part_kept) * np.eye(11)[0]  # moved down to the margin
    bettor = knowing(ScoreProof(margin=margin), past)

    assert worst_mean(bettor, w, SCORES, stable, SCORES, canary) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(weights, shares, shares, st.floats(1.0, 5.0), st.floats(0.001, 0.05), st.floats(0.0, 0.1), shares)
def test_a_rate_is_not_proven_while_it_reaches_both_margins(
    w: float,
    stable: np.ndarray,
    canary: np.ndarray,
    ratio: float,
    floor: float,
    rare: float,
    past: np.ndarray,
) -> None:
    none = np.eye(11)[0]
    stable, canary = rare * stable + (1 - rare) * none, rare * canary + (1 - rare) * none
    before, after = float(stable @ SCORES), float(canary @ SCORES)
    short = max(0.0, (max(ratio * before, before + floor) - after) / (1.0 - after))
    canary = (1.0 - short) * canary + short * np.eye(11)[10]  # moved up to the margin
    bettor = knowing(RateProof(ratio=ratio, floor=floor), past)

    assert worst_mean(bettor, w, SCORES, stable, SCORES, canary) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(
    weights,
    shares,
    st.lists(st.floats(0.1, 1.0), min_size=11, max_size=11),
    st.floats(0.0, 0.5),
    st.integers(0, 9),
)
def test_shape_gains_nothing_from_values_within_the_tolerance(
    w: float, p: np.ndarray, better: list[float], tolerance: float, seed: int
) -> None:
    stable = np.sort(np.random.default_rng(seed).lognormal(6.0, 0.8, 11))
    canary = stable * (1.0 + tolerance) * np.array(better)
    past = np.random.default_rng(seed + 1).lognormal(6.0, 0.8, 500)
    bettor = knowing(ShapeLoss(tolerance=tolerance), past, with_histogram=True)

    assert worst_mean(bettor, w, stable, p, canary, p) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(
    weights,
    shares,
    st.lists(st.floats(1.0, 3.0), min_size=11, max_size=11),
    st.floats(1.01, 2.0),
    st.integers(0, 9),
)
def test_shape_is_not_proven_while_values_reach_the_margin(
    w: float, p: np.ndarray, worse: list[float], margin: float, seed: int
) -> None:
    stable = np.sort(np.random.default_rng(seed).lognormal(6.0, 0.8, 11))
    canary = stable * margin * np.array(worse)
    past = np.random.default_rng(seed + 1).lognormal(6.0, 0.8, 500)
    bettor = knowing(ShapeProof(margin=margin), past, with_histogram=True)

    assert worst_mean(bettor, w, stable, p, canary, p) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(weights, rates)
def test_sample_ratio_and_presence_gain_nothing_from_a_fair_coin(w: float, rate: float) -> None:
    for bettor in (SampleRatioBet(), PresenceBet()):
        assert worst_mean(bettor, w, *binary(rate), *binary(rate)) <= 1 + ROUNDING


@quick
@given(st.floats(0.0, 1.0), st.floats(0.01, 0.2))
def test_fallback_gains_nothing_while_the_canary_serves_enough(part: float, limit: float) -> None:
    assert worst_mean(FallbackBet(max_rate=limit), 0.5, *binary(0.0), *binary(part * limit)) <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(shares, st.floats(0.0, 0.3))
def test_pairs_gain_nothing_while_the_mean_difference_is_tolerated(p: np.ndarray, tolerance: float) -> None:
    differences = np.linspace(-1.0, 1.0, 11)
    assume(p @ differences <= tolerance)

    assert (
        worst_mean(PairLoss(tolerance=tolerance, lower_is_better=False), 0.0, differences, p, differences, p)
        <= 1 + ROUNDING
    )


@pytest.mark.slow
@quick
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_pairs_of_a_rate_gain_nothing_while_its_ratio_is_tolerated(
    rate: float, both: float, tolerance: float
) -> None:
    """Lower is better: the canary's event is harm, and the tolerance is relative to stable's."""
    stable = rate * 0.5
    canary = min(1.0, (1.0 + tolerance) * stable)
    shared = both * min(stable, canary)
    cells = {(1, 1): shared, (1, 0): stable - shared, (0, 1): canary - shared}
    cells[0, 0] = 1.0 - sum(cells.values())
    assume(cells[0, 0] >= 0.0)
    y = [pair_harm(*cell, tolerance=tolerance, lower_is_better=True) for cell in cells]
    bettor = PairLoss(tolerance=tolerance, lower_is_better=True)

    _, log_factors, _ = bettor.bets(unit_block(np.ones(4, dtype=bool), 0.0, np.array(y)))

    assert (np.exp(log_factors) @ np.array(list(cells.values()))).max() <= 1 + ROUNDING


@pytest.mark.slow
@quick
@given(
    weights,
    shares,
    st.lists(st.floats(0.1, 1.0), min_size=11, max_size=11),
    st.floats(0.0, 0.3),
    st.floats(1.0, 2.0),
    st.integers(0, 9),
)
def test_a_tolerated_excess_of_failures_is_no_slowness(
    w: float, p: np.ndarray, better: list[float], failed: float, excess: float, seed: int
) -> None:
    stable = np.sort(np.random.default_rng(seed).lognormal(6.0, 0.8, 11))
    bettor = ShapeLoss(tolerance=0.0, failures=excess)
    past = Stable(with_histogram=True)
    past.learn(np.append(np.repeat(stable, np.rint(p * 500).astype(int)), np.full(30, np.inf)))
    bettor.end_epoch(past)
    assume(len(bettor.edges))
    # The bettor's own bins: within them hbar is exact where the masses are stable's own.
    shares_of = np.append(np.rint(p * 500) / np.rint(p * 500).sum() * (1 - failed), failed)
    canary = np.append(shares_of[:-1] / (1 - failed) * (1 - excess * failed), excess * failed)
    values = np.append(stable, np.inf)
    faster = np.append(stable * np.array(better), np.inf)

    assert worst_mean(bettor, w, values, shares_of, values, canary) <= 1 + 1e-3
    assert worst_mean(bettor, w, values, shares_of, faster, shares_of) <= 1 + ROUNDING
