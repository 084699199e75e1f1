"""A policy that cannot hold is refused by name: key, value, limit, remedy."""

import pytest

from evaluation.metrics import Kind
from evaluation.policy import GatePolicy, PolicyError


def test_a_policy_survives_its_mapping() -> None:
    policy = GatePolicy.strict()

    assert GatePolicy.from_mapping(policy.to_mapping()) == policy


def test_default_tolerates_half_of_each_threshold_and_strict_nothing() -> None:
    ratios = {gate.tolerance / gate.threshold for gate in GatePolicy.default().gates}
    nothing = {gate.tolerance for gate in GatePolicy.strict().gates}

    assert (ratios, nothing) == ({0.5}, {0.0})


def test_shares_add_up_to_the_whole_alpha() -> None:
    assert sum(gate.alpha_share for gate in GatePolicy.default().gates) == pytest.approx(1.0)


def test_a_changed_threshold_brings_its_own_tolerance() -> None:
    policy = GatePolicy.from_mapping({"gates": {"error": {"threshold": 1.0}}})

    assert policy.gate("error").tolerance == 0.5


def test_any_change_that_decides_changes_the_digest() -> None:
    digests = {
        GatePolicy.default().digest(),
        GatePolicy.strict().digest(),
        GatePolicy.from_mapping({"alpha": 0.02}).digest(),
        GatePolicy.from_mapping({"gates": {"error": {"tolerance": 0.1}}}).digest(),
    }

    assert len(digests) == 4


def test_a_new_gate_is_made_from_metric_kind_and_threshold() -> None:
    raw = {"metric": "truncated", "kind": "rate", "threshold": 0.5, "alpha_share": 0.1}

    gate = GatePolicy.from_mapping({"gates": {"truncation": raw}}).gate("truncation")

    assert (gate.kind, gate.tolerance) == (Kind.RATE, 0.25)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"alpa": 0.01}, "alpa"),
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"alpha": "much"}, "alpha 'much'"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"base": "lenient"}, "lenient"),
        ({"gates": {"error": {"alpha_share": 0.9}, "quality": {"alpha_share": 0.2}}}, "add up to 1.1"),
        ({"gates": {"error": {"alpha_share": -0.1}}}, "alpha_share -0.1"),
        ({"gates": {"error": {"tolerance": 0.7}}}, "tolerance 0.7"),
        ({"gates": {"error": {"thresold": 0.7}}}, "thresold"),
        ({"gates": {"error": {"kind": "shape"}}}, "shape does not fit error"),
        ({"gates": {"mine": {"metric": "error"}}}, "gates.mine.kind is missing"),
        ({"gates": {"mine": {"metric": "joy", "kind": "score", "threshold": 0.1}}}, "joy"),
        ({"gates": {"latency_p99": {"percentile": 99}}}, "percentile 99"),
        ({"gates": {"quality": {"sampling": {"canary": 0.0}}}}, "sampling.canary 0.0"),
        ({"gates": {"quality": {"deadline_s": 0}}}, "deadline_s 0"),
        ({"rungs": [{"min_canary": 100, "margins": {}}]}, "min_canary 0"),
        ({"restart_share": 1.0}, "restart_share 1.0"),
        ({"session_requests": 0}, "session_requests"),
        ({"proof_canary": -1}, "proof_canary -1"),
        ({"units": "people"}, "people"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused_by_name(raw: dict[str, object], words: str) -> None:
    with pytest.raises(PolicyError, match=words.replace(".", r"\.")):
        GatePolicy.from_mapping(raw)


def test_a_stage_takes_the_highest_rung_that_it_reaches() -> None:
    policy = GatePolicy.default()

    margins = [policy.rung_for(n).margins["error"] for n in (0, 799, 800, 9_999, 10_000)]

    assert margins == [5.0, 5.0, 3.0, 3.0, 1.5]
