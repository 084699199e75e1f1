"""The benchmark of judged rollouts, made short."""

from __future__ import annotations

import pytest

from benchmarks import judged
from controller.evidence.records import GateConfig
from evaluation.policy.gates import Sampling, StagePlan


def test_its_policy_is_a_rollouts_with_a_judge() -> None:
    gates = {gate.name: gate for gate in judged.policy_with(0.2).gates}

    assert "hallucination" not in gates
    assert gates["quality"].sampling == Sampling(0.2, 0.2)
    assert judged.JUDGE.bad_rate(0.14) == pytest.approx(0.155)


@pytest.mark.slow
def test_a_much_worse_canary_is_rolled_back_and_the_limit_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judged, "SHARE", 1.0)
    monkeypatch.setattr(judged, "WEIGHT", 0.5)
    monkeypatch.setattr(judged, "MOST_REQUESTS", 1600)
    monkeypatch.setattr(judged, "CHUNK", 800)
    found = judged.until_rollback(judged.policy_with(1.0), 7, wrong=(0.03, 0.6))

    assert found.gate is not None
    assert found.wald is not None
    assert found.wald <= found.gate


@pytest.mark.slow
def test_a_judge_that_calls_everything_wrong_is_named_and_rolls_nothing_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judged, "DRIFT_REQUESTS", 1000)
    monkeypatch.setattr(judged, "ANCHOR_EVERY", 2)
    config = GateConfig(
        judged.policy_with(judged.DRIFT_SHARE), (StagePlan(judged.DRIFT_WEIGHT, 0),), "quality"
    )

    assert judged.drifting(config, judged.CHANGES["always yes"], 3) == (False, True, True)
    assert judged.drifting(config, judged.CHANGES["unchanged"], 3) == (False, False, False)
