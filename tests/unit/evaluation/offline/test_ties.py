"""Rows with the same time stamp: their order must not depend on the arm."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.offline.ties import blind_order, runs_z
from tests.fakes.evidence_maker import Columns, requests, sticky


def logged(columns: Columns, resolution_s: float, *, by_arm: bool) -> Columns:
    """The columns as a log at this resolution writes them, within a tie in the order drawn or by arm."""
    at_s = np.floor(columns["t_s"] / resolution_s) * resolution_s
    order = np.lexsort((columns["arm"], at_s)) if by_arm else np.arange(len(at_s))
    return {name: values[order] for name, values in {**columns, "t_s": at_s}.items()}


@pytest.mark.parametrize("maker", [requests, lambda n, seed: sticky(n, people=400, seed=seed)])
@pytest.mark.parametrize("resolution_s", [10.0, 60.0])
def test_a_twin_sorted_by_arm_within_ties_is_valid(maker: object, resolution_s: float) -> None:
    invalid = 0
    for seed in range(12):
        columns = maker(2000, seed=seed)  # type: ignore[operator]
        result = run(logged(columns, resolution_s, by_arm=True), "strict")
        invalid += result.decision in ("invalid", "rollback")

    assert invalid == 0


def test_ties_in_the_order_of_assignment_keep_it() -> None:
    columns = logged(requests(2000), 10.0, by_arm=False)
    at_s, arm = columns["t_s"], columns["arm"] == 1

    assert blind_order(at_s, arm, np.ones(2000, dtype=bool), np.zeros(2000, dtype=np.int64)) is None


@pytest.mark.parametrize("seed", range(5))
def test_runs_within_ties_are_standard_normal_by_chance_and_far_below_when_sorted(seed: int) -> None:
    columns = requests(2000, seed=seed)
    scores = []
    for by_arm in (False, True):
        file = logged(columns, 10.0, by_arm=by_arm)
        scores.append(runs_z(file["t_s"], file["arm"] == 1, np.ones(2000, dtype=bool)))

    assert abs(scores[0]) < 3.0
    assert scores[1] < -10.0


def test_a_blind_order_keeps_the_rows_of_a_unit_in_their_order() -> None:
    columns = logged(sticky(2000, people=300), 60.0, by_arm=True)
    unit = columns["unit"] + 1
    order = blind_order(columns["t_s"], columns["arm"] == 1, np.ones(2000, dtype=bool), unit)

    assert order is not None
    for name in np.unique(unit):
        assert (np.diff(order[unit[order] == name]) > 0).all()


def test_the_order_of_the_files_ties_does_not_change_the_answer_of_sticky_rows() -> None:
    columns = sticky(2000, people=2000)
    columns["unit"] = np.arange(2000)
    by_arm = logged(columns, 60.0, by_arm=True)
    at_s = by_arm["t_s"]
    reverse = np.lexsort((-by_arm["arm"], at_s))
    other = {name: values[reverse] for name, values in by_arm.items()}

    assert run(by_arm).log_e == run(other).log_e
