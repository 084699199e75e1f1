"""A/B test specification: what is refused, and the rollout that a spec deploys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from controller.ab.spec import AbSpec, parse_ab
from controller.errors import BadSpec
from controller.rollout.observation import EvidenceStatus
from controller.rollout.plan import Stage
from controller.rollout.state import Phase
from controller.spec.service import parse_policy
from controller.views.waiting import waiting_for
from evaluation.report import Verdict
from tests.fakes.ab_maker import BODY
from tests.fakes.rollouts import a_rollout


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"metric": "speed"}, "ab.metric 'speed' is unknown; use one of"),
        ({"metric": "cost"}, "ab.metric 'cost' is not measured live; use one of"),
        ({"split": "0%"}, "ab: split 0 % leaves one side empty; use 50%"),
        ({"split": "half"}, "ab.split: 'half' is not a percent; write 2.5%"),
        ({"split": "100%"}, "leaves one side empty"),
        ({"mode": "fixed"}, "sample_size is required by mode fixed"),
        ({"mode": "fixed", "sample_size": 29}, "ab.sample_size 29 is below 30; raise it"),
        ({"alpha": 0.7}, "ab.alpha 0.7 is not below 0.5; lower it"),
        ({"alpha": math.nan}, "ab.alpha nan "),
        ({"duration": 0}, "ab.duration 0.0 is not above 0; raise it"),
        ({"score_wait": "-1s"}, "ab.score_wait: '-1s' is not a duration"),
        ({"spilt": "50%"}, "ab: unknown key 'spilt'; did you mean split"),
        ({"policy": {"twin": True}}, "policy has twin, which runs A against itself; leave it out"),
        ({"policy": {"alpha": 2}}, "alpha 2"),
    ],
)
def test_an_invalid_spec_is_refused_by_the_name_of_its_key(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        parse_ab(BODY | bad)


def test_gates_of_a_given_policy_watch_b_and_its_stages_are_ignored() -> None:
    asked = {
        "preset": "strict",
        "gates": {"latency_shape": {"threshold": 2.0}, "latency_p99": None},
        "stages": [{"weight": "5%"}, {"weight": "20%"}],
        "holdback": "10%",
        "promote_if_point_ok": True,
    }
    spec = parse_ab(BODY | {"policy": asked})
    kept = AbSpec.model_validate_json(spec.model_dump_json())

    policy = parse_policy(kept.deploy_body()["policy"])

    gates = {gate.name: gate for gate in policy.gate_policy().gates}
    assert kept == spec
    assert (gates["latency_shape"].threshold, gates["latency_shape"].tolerance) == (2.0, 0.0)
    assert "latency_p99" not in gates
    assert [stage.bp for stage in policy.stages or ()] == [5000]
    assert (policy.holdback, policy.promote_if_point_ok) == (0, False)


def test_a_tests_stage_waits_for_a_user_and_not_for_a_billion_requests() -> None:
    body = parse_ab(BODY).deploy_body()
    [stage] = parse_policy(body["policy"]).stages or ()
    rollout = a_rollout()
    plan = replace(rollout.plan, stages=(Stage(5000, 60.0, stage.min_canary, 60.0, 1),))
    state = replace(rollout, plan=plan, phase=Phase.STAGE, acked_at_s=1.0)
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, canary_requests=24)

    assert waiting_for(state, evidence, 2.0) == (
        "canaryctl ab stop chat: an A/B test is never promoted automatically",
    )
