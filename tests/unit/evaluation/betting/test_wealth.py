"""Wealth processes: factors agree with scipy, mixtures, restarts, decisions, independence of blocks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evaluation.betting.latency import ShapeLoss
from evaluation.betting.rates import RATIO_PRIOR, RATIOS, EventLoss, event_log_factors
from evaluation.betting.sample_ratio import ODDS, SampleRatioBet
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import UnitBlock
from evaluation.betting.wealth import RESTART_EVERY, Bettor, Channel, Decision, Wealth, by_weight, ratio_table
from evaluation.policy.alpha_split import channel_alphas, log_limit
from evaluation.policy.policy import GatePolicy
from evaluation.stream import Stream
from tests.fakes.evidence_maker import unit_block


def factors_of(seed: int, alternatives: int = 4, rows: int = 500) -> np.ndarray:
    return np.random.default_rng(seed).normal(-0.01, 0.1, (alternatives, rows))


def test_the_factors_of_an_event_agree_with_the_formula() -> None:
    arm, w = np.array([0.0, 1.0]), np.full(2, 0.5)

    log_factors = event_log_factors(arm, w, np.ones(2), RATIOS)  # rho: 1.35, 1.8, ...

    assert log_factors[0].tolist() == pytest.approx([math.log(1 / 1.175), math.log(1.35 / 1.175)])


@pytest.mark.parametrize("arm", [False, True])
def test_a_unit_with_many_requests_has_the_mean_of_their_factors(arm: bool) -> None:
    """A share of events is bet on like that many single requests, averaged: the unit counts once."""
    arms = np.array([arm])
    one, none, share = (
        np.exp(EventLoss(tolerance=0.25).bets(unit_block(arms, 0.2, np.array([y]))).log_factors.sum(axis=1))
        for y in (1.0, 0.0, 0.3)
    )

    assert share == pytest.approx(0.3 * one + 0.7 * none, rel=1e-12)


def wealth_of(bettor: Bettor, arm: np.ndarray, y: np.ndarray, w: float) -> float:
    """The mean wealth of a bettor's alternatives after units of one weight."""
    _, log_factors, _ = bettor.bets(unit_block(arm, w, y))
    return float(np.exp(log_factors.sum(axis=1)) @ bettor.prior / np.sum(bettor.prior))


@pytest.mark.parametrize(("w", "tolerance", "canary"), [(0.05, 0.0, 9), (0.3, 0.25, 20), (0.5, 0.0, 2)])
def test_the_wealth_of_first_events_agrees_with_scipys_binomial(
    w: float, tolerance: float, canary: int
) -> None:
    """Lindon & Malek (2022) for two cells: given 40 events, how many are the canary's?"""
    arm = np.arange(40) < canary
    null = w * (1.0 + tolerance) / (w * (1.0 + tolerance) + 1.0 - w)
    odds = w / (1.0 - w) * (1.0 + tolerance) * RATIOS
    ratios = stats.binom.pmf(canary, 40, odds / (1.0 + odds)) / stats.binom.pmf(canary, 40, null)

    got = wealth_of(EventLoss(tolerance=tolerance), arm, np.ones(40), w)

    assert got == pytest.approx(float(ratios @ RATIO_PRIOR / RATIO_PRIOR.sum()), rel=1e-9)


def test_the_wealth_of_the_sample_ratio_agrees_with_scipys_binomial() -> None:
    arm = np.arange(500) < 61
    odds = 0.1 / 0.9 * ODDS
    ratios = stats.binom.pmf(61, 500, odds / (1.0 + odds)) / stats.binom.pmf(61, 500, 0.1)

    assert wealth_of(SampleRatioBet(), arm, np.zeros(500), 0.1) == pytest.approx(
        float(ratios.mean()), rel=1e-9
    )


def test_the_wealth_of_shape_agrees_with_scipys_binomial_of_each_bin() -> None:
    """Given the bin, the canary's odds are the bin's ratio times the coin's: a binomial in each."""
    rng = np.random.default_rng(6)
    past = Stable(with_histogram=True)
    past.learn(rng.lognormal(6.0, 0.5, 4000))
    bettor = ShapeLoss(tolerance=0.0)
    bettor.end_epoch(past)
    y, arm = rng.lognormal(6.1, 0.5, 300), rng.random(300) < 0.2
    position = np.array([sum(edge < value for edge in bettor.edges) for value in y])
    logs = np.zeros(len(bettor.prior))
    for column in range(len(bettor.edges) + 1):
        n, k = int((position == column).sum()), int(arm[position == column].sum())
        odds = 0.2 / 0.8 * np.exp(bettor.log_ratios[:, column])
        logs += stats.binom.logpmf(k, n, odds / (1.0 + odds)) - stats.binom.logpmf(k, n, 0.2)
    expected = np.exp(logs) @ bettor.prior / np.sum(bettor.prior)

    assert wealth_of(bettor, arm, y, 0.2) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("w", [0.01, 0.05, 0.5])
def test_under_scipys_binomial_the_wealth_of_events_has_mean_one(w: float) -> None:
    bettor, counts = EventLoss(tolerance=0.5), np.arange(31)
    null = w * 1.5 / (w * 1.5 + 1.0 - w)
    wealth = [wealth_of(bettor, np.arange(30) < k, np.ones(30), w) for k in counts]

    assert float(stats.binom.pmf(counts, 30, null) @ wealth) == pytest.approx(1.0, rel=1e-9)


def test_the_wealth_of_a_mixture_is_the_mean_of_its_alternatives() -> None:
    log_factors = factors_of(1)
    prior = np.array([1.0, 2.0, 3.0, 4.0])
    wealth = Wealth(prior, restart_share=0.0)

    log_e = wealth.bet(log_factors, np.array([499]))

    assert log_e[0] == pytest.approx(math.log(np.exp(log_factors.sum(axis=1)) @ prior / 10))


def test_restarts_equal_a_list_of_processes() -> None:
    share, due = 0.3, np.array([64, 128, 192, 256, 320])
    log_factors = factors_of(2, rows=400)
    wealth = Wealth(np.ones(4), restart_share=share)

    got = wealth.bet(log_factors, np.arange(400), due)
    starts = [
        (1 - share, 0),
        *((share / (k * (k + 1)), start) for k, start in enumerate(due.tolist(), start=1)),
    ]
    idle = 1 - sum(part for part, _ in starts)
    whole = idle + sum(part * np.exp(log_factors[:, start:].sum(axis=1)).mean() for part, start in starts)

    assert got[-1] == pytest.approx(math.log(whole))


@pytest.mark.slow
def test_a_process_starts_with_every_64_units_of_the_canary_whatever_the_blocks() -> None:
    arm = np.random.default_rng(1).random(3000) < 0.3
    found = []
    for size in (1, 7, 3000):
        stream = Stream(with_histogram=False)
        stream.channels.append(Channel(SampleRatioBet(), limit=5.0, restart_share=0.3))
        for start in range(0, 3000, size):
            part = arm[start : start + size]
            stream.feed(unit_block(part, 0.3, np.zeros(len(part)), first=start))
        wealth = stream.channels[0].wealth
        found.append((wealth.restarts, wealth.peak, wealth.log_e, wealth.log_starts.tobytes()))

    assert found[0] == found[1] == found[2]
    assert found[0][0] == int(arm.sum()) // RESTART_EVERY > 10


def test_a_restarted_wealth_finds_late_harm_that_a_single_process_misses() -> None:
    log_factors = np.concatenate((np.full((1, 600), -0.05), np.full((1, 200), 0.1)), axis=1)
    found = {}
    for share in (0.0, 0.3):
        wealth = Wealth(np.ones(1), restart_share=share)
        wealth.bet(log_factors, np.arange(800), np.arange(64, 800, 64))
        found[share] = wealth.peak > log_limit(0.01)

    assert found == {0.0: False, 0.3: True}


def test_a_channel_refuses_to_bet_a_coin_twice() -> None:
    """Requests of one user that each came as a unit would be this: the same toss again."""
    channel = Channel(SampleRatioBet(), limit=5.0)
    arm = np.array([True, False])
    channel.bet(unit_block(arm, 0.5, np.zeros(2), first=4))

    for first in (4, 5, 3):
        with pytest.raises(ValueError, match="a coin may be bet once"):
            channel.bet(unit_block(arm, 0.5, np.zeros(2), first=first))
    with pytest.raises(ValueError, match="a toss is in a block twice"):
        replace(unit_block(arm, 0.5, np.zeros(2)), draw=np.array([1, 1]))


@pytest.mark.parametrize("cuts", [[1], [499], [3, 7, 250, 251], list(range(1, 500))])
def test_blocks_do_not_change_a_bit(cuts: list[int]) -> None:
    log_factors = factors_of(3, alternatives=9)
    whole, parts = Wealth(np.ones(9), restart_share=0.2), Wealth(np.ones(9), restart_share=0.2)
    expected = whole.bet(log_factors, np.arange(500))

    got = [parts.bet(part, np.arange(part.shape[1])) for part in np.split(log_factors, cuts, axis=1)]

    assert np.array_equal(np.concatenate(got), expected)


def test_the_prior_can_change_only_before_the_first_bet() -> None:
    wealth = Wealth(np.ones(2), restart_share=0.0)
    wealth.reset_prior(np.array([3.0, 1.0]))
    wealth.bet(np.array([[0.1], [-0.1]]), np.array([0]))
    wealth.reset_prior(np.array([1.0, 99.0]))

    assert np.exp(wealth.log_prior).tolist() == pytest.approx([0.75, 0.25])


def test_a_decision_names_the_first_row_at_its_limit_and_keeps_it() -> None:
    places, values = np.arange(4), np.arange(4, dtype=np.float64)
    rows = UnitBlock(places, places > 0, values, values, values, places, places, values, places)
    decision = Decision(limit=2.0)
    decision.observe(np.array([1.0, 2.5, 9.0, 0.0]), rows, np.arange(4))
    decision.observe(np.array([5.0]), rows, np.array([3]))

    assert (decision.seq, decision.canary, decision.at_s, decision.peak) == (1, 1, 1.0, 9.0)


def test_by_weight_equals_the_table_of_each_row() -> None:
    rng = np.random.default_rng(4)
    arm, w = rng.random(50) < 0.5, rng.choice([0.05, 0.1, 0.5], 50)
    ratios = np.array([[0.5, 2.0], [0.1, 7.0]])
    column = rng.integers(0, 2, 50)

    def table(weight: float) -> np.ndarray:
        return ratio_table(weight, ratios, np.log(ratios))

    got = by_weight(unit_block(arm, w, w), column, table)

    assert np.array_equal(
        got, np.stack([table(x)[:, int(a), c] for a, x, c in zip(arm, w, column, strict=True)], axis=1)
    )


@pytest.mark.parametrize(
    ("sticky", "expected"), [(False, (0.002, 0.0, 0.0, 0.0)), (True, (0.0009, 0.0009, 0.0, 0.0002))]
)
def test_a_gate_never_spends_more_than_its_part_of_alpha(
    sticky: bool, expected: tuple[float, float, float, float]
) -> None:
    policy = GatePolicy.default()

    parts = channel_alphas(policy, policy.gate("quality"), sticky=sticky)

    assert (parts.first, parts.session, parts.pairs, parts.later) == pytest.approx(expected)


@pytest.mark.slow
def test_an_epoch_ends_after_its_own_rows_whatever_the_blocks() -> None:
    ends = []
    for size in (1, 7, 3003):
        stream = Stream(with_histogram=False)
        for start in range(0, 3003, size):
            stream.feed(unit_block(np.zeros(size, dtype=bool), 0.5, np.full(size, 0.5), first=start))
        ends.append((stream.rows, stream.until))

    assert ends == [(3003, 3406)] * 3
