"""Weights of audiences in the stages of a policy, from the spec to the route table's split."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.errors import BadSpec
from controller.planning.ladder import make_plan
from controller.planning.risk import Assessment, Risk
from controller.rollout.desired import desired_split
from controller.rollout.machine import begin
from controller.rollout.plan import Plan, VersionRef
from controller.spec.service import parse_policy, parse_service
from serving.access import digest_of

STAFF_FIRST = [
    {"weight": "0.01%", "audience_bp": {"staff": 5000}},
    {"weight": "1%", "audience_bp": {"staff": 10_000, "beta": 2000}},
    {"weight": "10%"},
]
KEY = {"name": "staff", "sha256": digest_of("sk-1"), "audiences": ["staff"]}


def plan_of(stages: object) -> Plan:
    return make_plan(Assessment(Risk.HIGH, (), (), ()), parse_policy({"stages": stages}), replicas=1)


def test_an_audience_keeps_its_weight_in_later_stages() -> None:
    stages = plan_of(STAFF_FIRST).stages

    assert [dict(stage.audience_bp) for stage in stages] == [
        {"staff": 5000},
        {"staff": 10_000, "beta": 2000},
        {"staff": 10_000, "beta": 2000},
    ]


def test_the_split_has_the_audiences_of_its_stage_and_the_bake_those_of_the_last() -> None:
    plan = plan_of(STAFF_FIRST)
    stable, canary = VersionRef("v-1"), VersionRef("v-2")
    state = begin("r-1", "chat", stable=stable, canary=canary, plan=plan, now_s=0.0)
    found = [
        (split.canary, dict(split.audience_bp).get("staff"))
        for stage, weight_bp in ((0, 1), (1, 100), (2, 1000), (3, plan.promoted_bp), (3, 0))
        for split in [desired_split(replace(state, stage=stage, weight_bp=weight_bp))]
    ]

    assert found == [("v-2", 5000), ("v-2", 10_000), ("v-2", 10_000), ("v-2", 10_000), (None, None)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [STAFF_FIRST[1], {"weight": "10%", "audience_bp": {"staff": 9000}}],
            "policy.stages.1.audience_bp.staff 9000 is below 10000, of a stage before; raise it",
        ),
        (
            [*STAFF_FIRST, {"weight": "100%", "audience_bp": {"staff": 10_000}}],
            "audience_bp is for stages below 100 %",
        ),
        ([{"weight": "1%", "audience_bp": {"staff": 10_001}}], "policy.stages.0.audience_bp.staff"),
        ([{"weight": "1%", "audience_bp": {"a b": 1}}], "policy.stages.0.audience_bp"),
    ],
)
def test_a_mistake_is_one_line_with_its_path(stages: object, message: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_policy({"stages": stages})

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("audience", "remedy"), [("stuff", "did you mean staff?"), ("x", "use one of staff")]
)
def test_an_audience_that_no_client_has_is_refused(audience: str, remedy: str) -> None:
    policy = {"stages": [{"weight": "1%", "audience_bp": {audience: 5000}}]}
    service = {"service": "chat", "model": "/m", "clients": {"keys": [KEY]}, "policy": policy}
    with pytest.raises(BadSpec) as caught:
        parse_service(service)

    path = f"service.policy.stages.0.audience_bp.{audience}"
    assert f"{path} is given by no key of the service; {remedy}" in str(caught.value)
    parse_service({**service, "policy": {"stages": STAFF_FIRST[:1]}})
