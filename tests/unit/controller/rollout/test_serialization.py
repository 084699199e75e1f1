"""JSON form of state, actions and evidence: round trips, refusals, keys of older releases."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from controller.rollout.machine import begin
from controller.rollout.observation import EvidenceStatus
from controller.rollout.plan import Plan, VersionRef
from controller.rollout.serialization import (
    UnreadableState,
    actions_from_json,
    evidence_from_json,
    evidence_to_json,
    state_from_json,
    state_to_json,
)
from evaluation.report import Verdict

PLAN = Plan("low", (), (), 500, 60.0)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 99, "rollout": {}}', '{"format": 1, "rollout": {}}']
)
def test_a_malformed_state_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnreadableState) as caught:
        state_from_json(text)
    assert "\n" not in str(caught.value)


def test_malformed_actions_and_evidence_are_refused() -> None:
    with pytest.raises(UnreadableState):
        actions_from_json('[{"kind": "explode"}]')
    with pytest.raises(UnreadableState):
        evidence_from_json("{}")


def test_evidence_converts_to_json_and_back() -> None:
    evidence = EvidenceStatus(1, Verdict.INVALID, missing=("quality",), canary_requests=7)

    assert evidence_from_json(evidence_to_json(evidence)) == evidence


def test_a_stored_state_keeps_the_keys_of_older_releases() -> None:
    state = begin("r-1", "chat", stable=VersionRef("v1"), canary=VersionRef("v2"), plan=PLAN, now_s=1.0)
    text = state_to_json(replace(state, commands_through=7))

    assert json.loads(text)["rollout"]["asks_through"] == 7
    assert state_from_json(text).commands_through == 7
