"""Under the null, no alternative's factor has a mean above one, whatever the bettor has learned."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluation.betting.latency import ShapeLoss, ShapeProof
from evaluation.betting.rates import FirstEvents, RateProof, SessionCounts, SessionMeans
from evaluation.betting.sample_ratio import FallbackBet, SampleRatioBet
from evaluation.betting.scores import PairLoss, ScoreLoss, ScoreProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bettor, Block
from evaluation.units.missingness import PresenceBet

ROUNDING = 1e-9
weights = st.floats(0.001, 0.95)
rates = st.floats(0.0, 1.0)
shares = st.lists(st.floats(0.01, 1.0), min_size=11, max_size=11).map(lambda s: np.array(s) / sum(s))
SCORES = np.linspace(0.0, 1.0, 11)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def block(arm: np.ndarray, w: float, y: np.ndarray, n: float = 1.0) -> Block:
    rows, at_s = np.arange(len(y)), np.arange(len(y), dtype=np.float64)
    return Block(arm, np.full(len(y), w), y, np.full(len(y), n), rows, rows, at_s, rows * 0)


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
    rows, log_factors, _ = bettor.bets(block(arm, w, np.concatenate((stable_y, canary_y)), n))
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


@quick
@given(weights, rates, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_first_events_gain_nothing_while_the_rate_is_tolerated(
    w: float, stable: float, better: float, tolerance: float
) -> None:
    canary = better * min(1.0, (1.0 + tolerance) * stable)

    assert worst_mean(FirstEvents(tolerance=tolerance), w, *binary(stable), *binary(canary)) <= 1 + ROUNDING


@quick
@given(weights, st.floats(0.01, 0.5), st.floats(1.3, 4.0))
def test_first_events_gain_when_the_rate_is_worse(w: float, stable: float, ratio: float) -> None:
    canary = min(1.0, stable * ratio * 1.2)
    assume(canary > stable * 1.4)

    assert worst_mean(FirstEvents(tolerance=0.0), w, *binary(stable), *binary(canary)) > 1.0


@quick
@given(weights, shares, shares, st.lists(st.integers(0, 10), min_size=80, max_size=80))
def test_session_counts_gain_nothing_from_a_canary_no_worse(
    w: float, stable: np.ndarray, moved: np.ndarray, past: list[int]
) -> None:
    bettor = SessionCounts(max_events=10)
    bettor.bets(block(np.zeros(80, dtype=bool), 0.0, np.array(past) / 10, 10.0))
    bettor.end_epoch(Stable(with_histogram=False))
    tail = np.minimum(
        np.cumsum(stable[::-1])[::-1], np.cumsum(moved[::-1])[::-1]
    )  # at most stable's, everywhere
    canary = tail - np.append(tail[1:], 0.0)

    assert worst_mean(bettor, w, SCORES, stable, SCORES, canary, n=10.0) <= 1 + ROUNDING


@quick
@given(weights, shares, shares, st.floats(0.05, 1.0), shares)
def test_session_means_gain_nothing_while_the_mean_is_tolerated(
    w: float, stable: np.ndarray, canary: np.ndarray, tolerance: float, past: np.ndarray
) -> None:
    assume(canary @ SCORES <= (1.0 + tolerance) * (stable @ SCORES))
    bettor = knowing(SessionMeans(tolerance=tolerance), past)

    assert worst_mean(bettor, w, SCORES, stable, SCORES, canary) <= 1 + ROUNDING


@quick
@given(weights, shares, shares, st.floats(0.0, 0.2), shares)
def test_scores_gain_nothing_while_the_loss_is_tolerated(
    w: float, stable: np.ndarray, canary: np.ndarray, tolerance: float, past: np.ndarray
) -> None:
    assume(canary @ SCORES >= stable @ SCORES - tolerance)
    bettor = knowing(ScoreLoss(tolerance=tolerance, threshold=tolerance + 0.05), past)

    assert worst_mean(bettor, w, SCORES, stable, SCORES, canary) <= 1 + ROUNDING


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


@quick
@given(weights, rates)
def test_sample_ratio_and_presence_gain_nothing_from_a_fair_coin(w: float, rate: float) -> None:
    for bettor in (SampleRatioBet(), PresenceBet(on_present=True), PresenceBet(on_present=False)):
        assert worst_mean(bettor, w, *binary(rate), *binary(rate)) <= 1 + ROUNDING


@quick
@given(st.floats(0.0, 1.0), st.floats(0.01, 0.2))
def test_fallback_gains_nothing_while_the_canary_serves_enough(part: float, limit: float) -> None:
    assert worst_mean(FallbackBet(max_rate=limit), 0.5, *binary(0.0), *binary(part * limit)) <= 1 + ROUNDING


@quick
@given(shares, st.floats(0.0, 0.3))
def test_pairs_gain_nothing_while_the_mean_difference_is_tolerated(p: np.ndarray, tolerance: float) -> None:
    differences = np.linspace(-1.0, 1.0, 11)
    assume(p @ differences <= tolerance)

    assert worst_mean(PairLoss(tolerance=tolerance), 0.0, differences, p, differences, p) <= 1 + ROUNDING
