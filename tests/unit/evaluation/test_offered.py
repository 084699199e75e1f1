"""A canary that is offered to an audience, where other clients are slower or faster: what is compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from evaluation.betting.exceedance import Exceedance
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.offered import WINDOW, Offered
from evaluation.units.sessions import Rows
from tests.fakes.evidence_maker import Columns

BEFORE = 4000  # requests of stable before the canary
STAFF = 0.1  # of the requests


def offered_to_staff(
    seed: int, *, others: float, w_others: float, slower: float = 1.0, slow: float = 1.0, canary: int = 3000
) -> Columns:
    """Half of the staff's requests are the canary's; those of others take `others` times as long.

    slower: factor of the slowest share `slow` of the canary's answers to the staff.
    """
    rng = np.random.default_rng([67, seed])
    rows = BEFORE + int(canary / (STAFF * 0.5))
    is_staff = rng.random(rows) < STAFF
    w = np.where(np.arange(rows) < BEFORE, 0.0, np.where(is_staff, 0.5, w_others))
    arm = (rng.random(rows) < w).astype(int)
    z = rng.standard_normal(rows)
    is_slow = (arm == 1) & is_staff & (z > np.quantile(z, 1.0 - slow))
    return {
        "t_s": np.arange(rows) / 10.0,
        "unit": np.arange(rows),
        "arm": arm,
        "w": w,
        "assigned_by": np.full(rows, "request"),
        "error": np.zeros(rows),
        "latency_ms": 500.0
        * np.exp(0.5 * z)
        * np.where(is_staff, 1.0, others)
        * np.where(is_slow, slower, 1.0),
    }


def judged(columns: Columns) -> BacktestResult:
    policy = GatePolicy.default()
    names = ("error", "latency_shape", "latency_p99")
    policy = replace(policy, gates=tuple(gate for gate in policy.gates if gate.name in names))
    return run(columns, policy, stages=(StagePlan(0.5, 2700),))


@pytest.mark.slow
@pytest.mark.parametrize("w_others", [0.0, 0.0001])
@pytest.mark.parametrize("others", [3.0, 1.0 / 3.0])
def test_latency_is_proven_of_an_audience_whatever_that_of_others(others: float, w_others: float) -> None:
    proofs = judged(offered_to_staff(1, others=others, w_others=w_others)).proofs

    assert {"latency_p99", "latency_shape"} <= set(proofs)


@pytest.mark.slow
def test_a_tail_of_an_audience_is_compared_at_its_own_percentile() -> None:
    """Of all requests, with others three times as fast, the limit of 1 % is the audience's p84."""
    columns = offered_to_staff(1, others=1.0 / 3.0, w_others=0.0001, slower=1.5, slow=0.03)

    assert "latency_p99" not in judged(columns).proofs


def rows_with(w: list[float], stage: list[int]) -> Rows:
    n = len(w)
    zero, never = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
    weights, number = np.array(w), np.arange(n)
    return Rows(
        number, number.astype(float), never, weights, number, zero + 1, ~never, np.array(stage), zero, never,
        zero, zero, zero + 1, never, zero - 1, weights, zero,
    )  # fmt: skip


def apart_of(w: list[float], stage: list[int], cuts: tuple[int, ...] = ()) -> list[int]:
    offered = Offered()
    found: list[int] = []
    for start, stop in pairwise((0, *cuts, len(w))):
        apart = offered.apart(rows_with(w[start:stop], stage[start:stop]))
        found += [] if apart is None else (np.flatnonzero(apart) + start).tolist()
    return found


def test_requests_below_a_hundredth_of_the_largest_weight_of_their_stage_are_apart() -> None:
    """Once it is known that there are such clients; a late request has no stage of its own any more."""
    known = [0.5, 0.0001] * (WINDOW // 2)
    w = [*known, 0.2, 0.0001, 0.005, 0.0049, 0.0, 0.2, 0.0001, 0.01, 0.00001, 0.0]
    stage = [0] * (WINDOW + 5) + [1, 1, 1, 1, 0]
    expected = [WINDOW + row for row in (1, 3, 4, 6, 8)]

    for cuts in ((), (1,), (WINDOW,), (WINDOW - 1, WINDOW + 3, WINDOW + 7)):
        assert apart_of(w, stage, cuts) == expected


def test_nothing_is_apart_where_a_weight_rises_or_routers_have_not_heard_of_it() -> None:
    rising = [0.0] * 700 + [0.02] * 700 + [0.5] * 700 + [0.02]
    late = [0.0] * 700 + [0.5, 0.0] * 2 + [0.5] * 2000 + [0.0]

    assert apart_of(rising, [0] * len(rising)) == []
    assert apart_of(late, [0] * len(late)) == []


def test_a_pause_of_the_canary_tells_nothing_of_its_clients() -> None:
    """Its weight is 0 for everybody for a time: their requests are apart no more than before it."""
    for before in ([0.5], [0.5, 0.0001]):
        known = before * (3 * WINDOW // len(before))
        w = [*known, *[0.0] * 3 * WINDOW, *known[:WINDOW]]
        found = apart_of(w, [0] * len(w))

        assert (len(found) > 0) == (len(before) == 2)
        assert [row for row in found if row >= 6 * WINDOW and w[row] == 0.5] == []


def test_nothing_is_apart_where_most_of_the_canarys_requests_are_of_the_others() -> None:
    """One of 2000 requests is of an audience at 50 %, all others have 0.49 %."""
    w = ([0.5] + [0.0049] * 1999) * 3

    for cuts in ((), (1, 777, 2500)):
        assert apart_of(w, [0] * len(w), cuts) == []


def test_an_audiences_limit_does_not_depend_on_the_blocks() -> None:
    rng = np.random.default_rng(3)
    apart = rng.random(3000) < 0.6
    values = rng.lognormal(6.0, 0.5, 3000) * np.where(apart, 3.0, 1.0)
    arm = rng.random(3000) < 0.3
    before = rng.lognormal(7.0, 0.5, 4000)
    found = []
    for cuts in ([0, 3000], [0, 1, 700, 701, 1999, 3000]):
        limit = Exceedance(percentile=0.99, margins=(1.2,))
        limit.seed(before)
        parts = []
        for start, stop in pairwise(cuts):
            part = slice(start, stop)
            columns = limit.of_channels(
                values[part], values[part], arm[part], (1.1, 1.2), slice(None), None, apart[part]
            )
            parts.append(np.stack([columns[0], columns[3]]))
        found.append((np.concatenate(parts, axis=2), limit.upper))

    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
