"""Rows with the same time stamp: their order must not depend on the arm."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import run
from tests.fakes.evidence_maker import Columns, requests, sticky


def logged(columns: Columns, resolution_s: float, *, by_arm: bool) -> Columns:
    """The columns as a log at this resolution writes them, within a tie in the order drawn or by arm."""
    at_s = np.floor(columns["t_s"] / resolution_s) * resolution_s
    order = np.lexsort((columns["arm"], at_s)) if by_arm else np.arange(len(at_s))
    return {name: values[order] for name, values in {**columns, "t_s": at_s}.items()}


@pytest.mark.calibration
@pytest.mark.parametrize("maker", [requests, lambda n, seed: sticky(n, people=400, seed=seed)])
@pytest.mark.parametrize("resolution_s", [10.0, 60.0])
def test_a_twin_sorted_by_arm_within_ties_is_valid(maker: object, resolution_s: float) -> None:
    invalid = 0
    for seed in range(12):
        columns = maker(2000, seed=seed)  # type: ignore[operator]
        result = run(logged(columns, resolution_s, by_arm=True), "strict")
        invalid += result.decision in ("invalid", "rollback")

    assert invalid <= 1  # a strict twin rolls back in 1 of 100


@pytest.mark.slow
def test_the_order_of_the_files_ties_does_not_change_the_answer_of_sticky_rows() -> None:
    columns = sticky(2000, people=2000)
    columns["unit"] = np.arange(2000)
    by_arm = logged(columns, 60.0, by_arm=True)
    at_s = by_arm["t_s"]
    reverse = np.lexsort((-by_arm["arm"], at_s))
    other = {name: values[reverse] for name, values in by_arm.items()}

    assert run(by_arm).log_e == run(other).log_e
