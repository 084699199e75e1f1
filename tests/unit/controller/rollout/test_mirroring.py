"""The share of copies in a policy, a plan and a split, and what an older release stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from controller.errors import BadInput
from controller.planning.ladder import mirror_plan
from controller.rollout.actions import SetSplit
from controller.rollout.plan import MirrorPlan
from controller.rollout.serialization import (
    actions_from_json,
    actions_to_json,
    state_from_json,
    state_to_json,
)
from controller.spec.service import parse_policy
from tests.fakes.rollouts import a_rollout


def test_a_policy_without_mirror_copies_nothing() -> None:
    assert mirror_plan(parse_policy({})) is None


def test_a_policys_mirror_is_the_plans() -> None:
    assert mirror_plan(parse_policy({"mirror": {}})) == MirrorPlan(200, 200, 3600.0)
    spec = {"share": "5%", "min_pairs": 40, "deadline": "30m"}
    assert mirror_plan(parse_policy({"mirror": spec})) == MirrorPlan(500, 40, 1800.0)


@pytest.mark.parametrize(
    ("mirror", "text"),
    [
        ({"share": "0%"}, "policy.mirror.share 0 % copies nothing"),
        ({"deadline": "0s"}, "policy.mirror.deadline is 0 s"),
        ({"min_pairs": 0}, "policy.mirror.min_pairs"),
        ({"pairs": 5}, "policy.mirror: unknown key 'pairs'"),
    ],
)
def test_a_mirror_without_effect_is_refused(mirror: dict[str, object], text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_policy({"mirror": mirror})

    assert text in str(caught.value)


def test_states_and_actions_are_stored_with_it_and_read_without_it() -> None:
    state = a_rollout()
    with_mirror = replace(state, plan=replace(state.plan, mirror=MirrorPlan(200, 50, 60.0)))
    older = json.loads(state_to_json(with_mirror))
    del older["rollout"]["plan"]["mirror"]
    split = SetSplit("v-1", "v-2", 0, 0, 200)

    assert state_from_json(state_to_json(with_mirror)) == with_mirror
    assert state_from_json(json.dumps(older)) == state
    assert actions_from_json(actions_to_json([split])) == (split,)
    text = '[{"stable": "v-1", "canary": null, "weight_bp": 0, "stage": 0, "kind": "split"}]'
    assert actions_from_json(text) == (SetSplit("v-1", None, 0, 0),)
