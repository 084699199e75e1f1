"""A policy file and the mapping of a caller have one schema: the same words give the same policy."""

from __future__ import annotations

import pytest

from controller.spec.service import parse_policy
from evaluation.policy.parsing import gate_policy_of, parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError

POLICIES = [
    {"preset": "strict"},
    {"base": "strict"},
    {"preset": "strict", "gates": {"hallucination": None}},
    {"gates": {"error": {"threshold": 1.0}}},
    {"gates": {"quality": {"deadline": "20m"}, "ttft_shape": None}},
    {"gates": {"quality": {"deadline_s": 900}}},
    {"session": "10m", "session_requests": 5},
    {"session_s": 90, "alpha": 0.02},
    {"gates": {"mine": {"metric": "refused", "kind": "rate", "threshold": 0.5}}, "units": "sticky"},
    {"rungs": [{"margins": {"error": 3.0}}]},
]


@pytest.mark.parametrize("given", POLICIES, ids=str)
def test_the_words_of_a_policy_file_mean_the_same_to_a_caller(given: dict[str, object]) -> None:
    assert gate_policy_of(given) == parse_policy(given).gate_policy()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "strict", "base": "default"}, "policy.base is given twice"),
        ({"gates": {"qualty": None}}, "gates.qualty is null but unknown"),
        ({"session": "soon"}, "session 'soon' is not a duration"),
        ({"gates": {"quality": {"deadline": 1, "deadline_s": 2}}}, "gates.quality.deadline_s is given twice"),
        ({"preset": "fast"}, "policy 'fast' is unknown"),
    ],
)
def test_a_bad_mapping_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        gate_policy_of(given)


def test_a_stored_policy_stays_complete_without_its_removed_gates() -> None:
    policy = gate_policy_of({"gates": {"quality": None, "hallucination": None}})

    assert parse_gate_policy(policy.to_mapping()) == policy
    assert len(policy.gates) == len(GatePolicy().gates) - 2
