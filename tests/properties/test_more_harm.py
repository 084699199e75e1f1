"""More harm never delays a rollback, with the same coins and the same stable answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.offline.backtest import run
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, requests, sticky

POLICIES = {name: GatePolicy.named(name) for name in ("default", "strict")}
quick = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
policies = st.sampled_from(sorted(POLICIES))


def decided_at(columns: Columns, policy: str, metric: str) -> float:
    """Canary requests until the metric's rollback; infinite without one."""
    result = run(columns, POLICIES[policy].only(metric))
    return result.canary_requests if result.decision == "rollback" else float("inf")


@pytest.mark.calibration
@quick
@given(seeds, st.floats(0.01, 0.3), policies, st.booleans())
def test_more_errors_never_delay_a_rollback(seed: int, share: float, policy: str, by_user: bool) -> None:
    columns = sticky(1500, people=400, seed=seed) if by_user else requests(1500, seed=seed, error=(0.05, 0.1))
    worse = dict(columns)
    also = (columns["arm"] == 1) & (np.random.default_rng(seed).random(1500) < share)
    worse["error"] = np.where(also, 1.0, columns["error"])

    assert decided_at(worse, policy, "error") <= decided_at(columns, policy, "error")


@pytest.mark.calibration
@quick
@given(seeds, st.floats(0.0, 0.4), policies)
def test_a_lower_quality_never_delays_a_rollback(seed: int, loss: float, policy: str) -> None:
    columns = requests(1500, seed=seed, worse=0.05)
    worse = dict(columns)
    worse["quality"] = np.where(
        columns["arm"] == 1, np.maximum(columns["quality"] - loss, 0.0), columns["quality"]
    )

    assert decided_at(worse, policy, "quality") <= decided_at(columns, policy, "quality")


@pytest.mark.calibration
@quick
@given(seeds, st.floats(1.0, 3.0), policies)
def test_slower_answers_never_delay_a_rollback(seed: int, factor: float, policy: str) -> None:
    columns = requests(1500, seed=seed, slower=1.1)
    worse = dict(columns)
    worse["latency_ms"] = np.where(columns["arm"] == 1, factor, 1.0) * columns["latency_ms"]

    assert decided_at(worse, policy, "latency_ms") <= decided_at(columns, policy, "latency_ms")
