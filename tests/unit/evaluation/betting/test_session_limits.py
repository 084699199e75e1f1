"""The limit of a percentile that a session keeps from its draw on."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.betting.exceedance import Exceedance
from evaluation.betting.histogram import NO_STEPS, Steps
from evaluation.betting.session_limits import Limits, RowOrder, SessionLimits

NONE = (1.0,)


def order_of(unit: np.ndarray, at_s: np.ndarray | None = None) -> RowOrder:
    """Rows of sessions, each of one unit."""
    seq = np.arange(len(unit))
    _, first, place = np.unique(unit, return_index=True, return_inverse=True)
    draw = first[place]
    return RowOrder(seq, draw, seq.astype(float) if at_s is None else at_s, draw == seq)


def excess(seed: int, *, keeps: bool, people: int = 300, turns: int = 60, at_once: float = 12.0) -> float:
    """Of twins, whose users differ in speed and overlap: the canary's requests above stable's p90 less
    stable's, as a part of all. Mean of the coins and the opposite ones, so that it is nearly the users' own.
    """
    rng = np.random.default_rng([71, seed])
    unit = np.repeat(np.arange(people), turns)
    at = rng.uniform(0.0, people, people)[unit] + rng.uniform(0.0, at_once, len(unit))
    unit = unit[np.argsort(at, kind="stable")]
    coins = (rng.random(people) < 0.5)[unit]
    ms = 400.0 * rng.lognormal(0.0, 1.0, people)[unit] * rng.lognormal(0.0, 0.05, len(unit))
    order = order_of(unit, np.sort(at)) if keeps else None
    sums = np.zeros(2)
    for arm in (coins, ~coins):
        gate = Exceedance(percentile=0.9)
        gate.seed(400.0 * rng.lognormal(0.0, 1.0, 400))
        above = gate.of(ms, ms, arm, NONE, order=order)[0]
        sums += above[arm].sum() - above[~arm].sum(), above.sum()
    return float(sums[0] / sums[1])


@pytest.mark.slow
def test_twins_of_users_who_differ_have_as_many_above_the_limit() -> None:
    """With the newest limit, a slow user on stable raises it for himself."""
    newest, kept = (np.mean([excess(seed, keeps=keeps) for seed in range(16)]) for keeps in (False, True))

    assert newest > 0.05
    assert abs(kept) < 0.03


@pytest.mark.parametrize("cut", [1, 64, 700])
def test_a_session_keeps_the_limit_of_its_draw_in_any_blocks(cut: int) -> None:
    """Unit 0 asks first and last; what it is compared with was learned before it came."""
    unit = np.concatenate(([0], np.arange(1, 1999), [0]))
    order = order_of(unit, np.linspace(0.0, 500.0, 2000))
    ms = np.concatenate(([300.0], np.full(1998, 400.0), [300.0]))
    arm = np.zeros(2000, dtype=np.bool_)
    gate = Exceedance(percentile=0.9)
    gate.seed(np.linspace(100.0, 200.0, 400))

    def part(which: slice) -> np.ndarray:
        some = RowOrder(order.seq[which], order.draw[which], order.at_s[which], order.begins[which])
        found: np.ndarray = gate.of(ms[which], ms[which], arm[which], NONE, order=some)[0]
        return found

    above = np.concatenate((part(slice(0, cut)), part(slice(cut, None))))
    assert gate.threshold > 400.0
    assert (above[0], above[-2], above[-1]) == (1.0, 0.0, 1.0)


def test_steps_are_those_of_the_draw_as_well() -> None:
    limits = SessionLimits(600.0)
    limits.set(Limits(np.array([5.0])))
    limits.note(order_of(np.array([0])))
    limits.begin(Limits(np.array([6.0]), Steps(np.array([3.0]), is_mixed=True)), 1, 10.0)
    rows = RowOrder(np.arange(1, 4), np.array([0, 2, 0]), np.full(3, 11.0), np.zeros(3, dtype=np.bool_))

    epochs = limits.epochs_of(rows, slice(None), 3)
    assert limits.edges[0, epochs].tolist() == [5.0, 6.0, 5.0]
    assert [has.tolist() for _, has in limits.steps_of(epochs)] == [[False, True, False]]
    assert limits.steps[0][0] is NO_STEPS.points


def test_limits_are_forgotten_once_no_session_of_theirs_is_open() -> None:
    limits = SessionLimits(600.0)
    limits.set(Limits(np.array([0.0])))
    for epoch in range(1, 100):
        if epoch % 2:
            limits.note(order_of(np.array([0])))
        limits.begin(Limits(np.array([float(epoch)])), epoch, epoch * 60.0)

    assert limits.edges[0].tolist() == [88.0, 90.0, 92.0, 94.0, 96.0, 98.0, 99.0]
