"""Requests that clients left: what is known of them, what they may hide, and that they are no more."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.betting.exceedance import Exceedance
from evaluation.betting.left import Left, LeftProof, LeftShare, with_left
from evaluation.betting.unit_block import UnitBlock
from evaluation.betting.wealth import Channel
from evaluation.stream import Stream

TIMES = (1.1, 1.2)
NAN = float("nan")


def test_what_a_client_that_left_says_depends_on_how_long_it_waited() -> None:
    """The limit is 1000 ms, 1100 of the canary's (1200 for the proof)."""
    after = np.array([100.0, 600.0, 1050.0, 1150.0, 1250.0, NAN, NAN])
    is_left = np.array([True, True, True, True, True, True, False])
    events = np.array([[NAN, NAN, NAN, NAN, NAN, NAN, 0.0]] * 2)
    expected = {
        False: ([NAN, NAN, 1, 1, 1, NAN, 0], [NAN, NAN, 1, 1, 1, NAN, 0]),
        True: ([NAN, NAN, NAN, 1, 1, NAN, 0], [NAN, NAN, NAN, NAN, 1, NAN, 0]),
    }
    for on_canary, of_arm in expected.items():
        arm, limit = np.full(7, on_canary), np.full(7, 1000.0)
        for is_waited_for, hidden in ((False, [0, 1, 1, 1, 1, 1, 0]), (True, [0, 0, 0, 0, 0, 1, 0])):
            waits = np.full((1, 7), is_waited_for)
            known, second, third = with_left(events, Left(is_left, after), limit, limit, waits, TIMES, arm)

            np.testing.assert_array_equal(known, of_arm)
            np.testing.assert_array_equal(second, [[1, 1, 1, 1, 1, 1, 0], hidden])
            np.testing.assert_array_equal(third[1], [NAN, 1, 1, 1, 1, NAN, 0] if is_waited_for else of_arm[1])


def test_nothing_is_known_before_the_limit_is() -> None:
    left = Left(np.array([True]), np.array([1e6]))
    limit, waits = np.array([NAN]), np.zeros((1, 1), dtype=bool)
    indicators = with_left(np.array([[NAN]] * 2), left, limit, limit, waits, TIMES, np.array([True]))

    assert all(np.isnan(of_channel).all() for of_channel in indicators)


def test_the_channels_differ_only_from_the_first_request_that_was_left_on() -> None:
    rng = np.random.default_rng(1)
    values, arm = rng.lognormal(6.0, 0.5, 600), rng.random(600) < 0.3
    is_left = np.zeros(600, dtype=np.bool_)
    is_left[[300, 450]] = True
    values[is_left] = NAN
    after = np.where(is_left, 90.0, NAN)
    whole = Exceedance(percentile=0.99, margins=(1.2,))
    whole.seed(rng.lognormal(6.0, 0.5, 4000))
    once = whole.of_channels(values, values, arm, TIMES, slice(None), Left(is_left, after))

    assert np.isnan(once[1][1, :300]).all()
    assert not np.isnan(once[1][1, 300:]).any()
    np.testing.assert_array_equal(once[0][0, ~is_left], once[1][0, ~is_left])
    assert np.isnan(once[0][:, is_left]).all()
    assert (once[1][0, is_left] == 1.0).all()


def proven(stable: float, canary: float, seed: int, canary_requests: int = 4000) -> bool:
    rng = np.random.default_rng([7, seed])
    rows = 5 * canary_requests
    row, arm = np.arange(rows), rng.random(rows) < 0.2
    y = (rng.random(rows) < np.where(arm, canary, stable)).astype(float)
    channel = Channel(LeftProof(percentile=0.99, margin=1.2), limit=np.log(20.0), min_canary=200)
    stream = Stream(with_histogram=False)
    stream.staged.append(channel)
    zero = np.zeros(rows, dtype=np.int64)
    w = np.full(rows, 0.2)
    stream.feed(UnitBlock(row, arm, w, y, np.ones(rows), row, np.cumsum(arm), row.astype(np.float64), zero))
    return channel.decision.is_reached


@pytest.mark.slow
def test_as_many_left_are_proven_and_a_margin_more_are_not() -> None:
    assert sum(proven(0.05, 0.05, seed, 8000) for seed in range(10)) >= 7
    assert sum(proven(0.025, 0.030, seed) for seed in range(40)) <= 4


def share_of(left: int, units: int, stage: int = 0, into: LeftShare | None = None) -> LeftShare:
    """A quarter of the units are the canary's, and so are all that were left."""
    counted = LeftShare(percentile=0.99) if into is None else into
    row, zero = np.arange(units), np.zeros(units, dtype=np.int64)
    arm = row % 4 == 0
    y = (arm & (np.cumsum(arm) <= left)).astype(float)
    w, at_s = np.full(units, 0.25), row.astype(float)
    counted.bets(UnitBlock(row, arm, w, y, np.ones(units), row, np.cumsum(arm), at_s, zero + stage))
    return counted


def test_more_than_a_quarter_of_the_percentiles_share_of_one_arm_could_hide_a_tail() -> None:
    assert [share_of(left, 4000).is_needed for left in (0, 1, 2, 3, 10)] == [False, False, False, True, True]


def test_what_was_left_in_an_earlier_stage_does_not_thin_out_that_of_this_one() -> None:
    before = share_of(0, 40_000)

    assert not before.is_needed
    assert share_of(10, 4000, stage=1, into=before).is_needed


def test_what_failed_is_no_request_that_was_left() -> None:
    values = np.full(40, 500.0)
    values[[5, 25]] = np.inf
    is_left = np.arange(40) == 15
    values[is_left] = NAN
    arm = np.arange(40) % 2 == 1
    limit = Exceedance(percentile=0.99, margins=(1.2,))
    limit.seed(np.full(4000, 600.0))
    left = Left(is_left, np.where(is_left, 700.0, NAN))
    _, second, _, _, alone, *_ = limit.of_channels(values, values, arm, TIMES, slice(None), left)

    assert np.flatnonzero(second[1] == 1.0).tolist() == [15, 25]  # from the first that was left on
    assert np.flatnonzero(alone[1] == 1.0).tolist() == [15]
