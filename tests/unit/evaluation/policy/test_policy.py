"""Gate policies: presets, parsing, and invalid values refused with key, value, limit and remedy."""

import re
from math import inf, nan

import pytest

from evaluation.metrics import CATALOGUE, Kind
from evaluation.policy.gates import PRESET_KINDS, Gate, Rung, StagePlan
from evaluation.policy.parsing import gate_policy_of, parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError


def test_a_policy_is_parsed_back_from_its_mapping() -> None:
    policy = GatePolicy.strict()

    assert parse_gate_policy(policy.to_mapping()) == policy


def test_default_tolerates_half_of_each_threshold_and_strict_nothing() -> None:
    ratios = {gate.tolerance / gate.threshold for gate in GatePolicy.default().gates}
    tolerances = {gate.tolerance for gate in GatePolicy.strict().gates}

    assert (ratios, tolerances) == ({0.5}, {0.0})


@pytest.mark.parametrize("name", ["default", "strict"])
def test_a_rung_may_name_every_gate_of_a_preset(name: str) -> None:
    kinds = {gate.name: gate.kind for gate in GatePolicy.named(name).gates}

    assert kinds == PRESET_KINDS


def test_alarms_test_each_metric_in_the_direction_of_harm() -> None:
    kinds = {gate.metric: gate.kind for gate in GatePolicy(gates=()).with_alarms().gates}

    assert kinds.keys() == CATALOGUE.keys()
    assert kinds["tokens"] is Kind.MEAN
    assert kinds["itl_ms"] is Kind.SHAPE
    assert kinds["thumbs"] is Kind.SCORE
    assert kinds["flagged"] is Kind.RATE


def test_the_shares_of_the_preset_gates_add_up_to_one() -> None:
    assert sum(gate.alpha_share for gate in GatePolicy.default().gates) == pytest.approx(1.0)


def test_a_changed_threshold_changes_the_tolerance() -> None:
    policy = parse_gate_policy({"gates": {"error": {"threshold": 1.0}}})

    assert policy.gate("error").tolerance == 0.5


def test_every_change_that_decides_changes_the_digest() -> None:
    digests = {
        GatePolicy.default().digest(),
        GatePolicy.strict().digest(),
        parse_gate_policy({"alpha": 0.02}).digest(),
        parse_gate_policy({"gates": {"error": {"tolerance": 0.1}}}).digest(),
    }

    assert len(digests) == 4


def test_a_new_gate_is_made_from_metric_kind_and_threshold() -> None:
    raw = {"metric": "truncated", "kind": "rate", "threshold": 0.5, "alpha_share": 0.1}

    gate = parse_gate_policy({"gates": {"truncation": raw}}).gate("truncation")

    assert (gate.kind, gate.tolerance) == (Kind.RATE, 0.25)


@pytest.mark.parametrize(
    ("raw", "message"),
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
        ({"max_missing": 5}, "max_missing 5"),
        ({"max_missing": -1}, "max_missing -1"),
        ({"load_ratio": 0.5}, "load_ratio 0.5 is below 1"),
        ({"served_rate_hold": 2}, "served_rate_hold 2"),
        ({"served_rate_rollback": -1}, "served_rate_rollback -1"),
        ({"served_rate_rollback": 0.99}, "served_rate_rollback 0.99 is above"),
        ({"session_requests": 2.5}, "session_requests 2.5"),
        ({"session_s": 0}, "session_s 0"),
        ({"name": None}, "name None"),
        ({"rungs": []}, "min_canary 0"),
        (
            {"rungs": [{"margin": {"error": 5.0}}]},
            "rungs.0.margin is unknown; use one of min_canary",
        ),
        ({"rungs": [{"margins": {"eror": 5.0}}]}, "rungs.0.margins.eror names no gate"),
        ({"rungs": [{"margins": {"error": -5}}]}, "rungs.0.margins.error -5 is outside 1..1000"),
        ({"rungs": [{"margins": {"error": 0.5}}]}, "rungs.0.margins.error 0.5"),
        ({"rungs": [{"margins": {"quality": 1.5}}]}, "rungs.0.margins.quality 1.5"),
        ({"rungs": [{"floor": -0.1}]}, "rungs.0.floor -0.1"),
        ({"rungs": [{"min_canary": 0}, {"min_canary": 0}]}, "repeat a min_canary"),
        ({"rungs": [{"min_canary": 0}, {"min_canary": -5}]}, "min_canary -5"),
        ({"rungs": [{"min_canary": 0}, {"min_canary": 2.5}]}, "min_canary 2.5"),
        ({"gates": {"quality": {"sampling": {"stabel": 0.5}}}}, "sampling.stabel is unknown"),
        ({"gates": {"quality": {"presence_gated": "no"}}}, "presence_gated 'no' is neither true nor false"),
        ({"gates": {"quality": {"mirrored": 1}}}, "mirrored 1"),
        ({"gates": {"quality": {"threshold": 5.0}}}, "gates.quality.threshold 5.0 is not below 1"),
        ({"gates": {"error": {"threshold": 1e308}}}, "gates.error.threshold 1e+308"),
        ({"gates": {"quality": {"kind": "rate"}}}, "rate does not fit quality; use score"),
        ({"gates": {"error": {"kind": "score"}}}, "score does not fit error; use rate"),
    ],
)
def test_an_invalid_policy_is_refused_by_key(raw: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        parse_gate_policy(raw)


def test_a_stage_uses_the_highest_rung_that_it_reaches() -> None:
    policy = GatePolicy.default()

    margins = [policy.rung_for(n).margins["error"] for n in (0, 799, 800, 9_999, 10_000)]

    assert margins == [5.0, 5.0, 3.0, 3.0, 1.5]


@pytest.mark.parametrize(
    "settings",
    [
        {key: value}
        for key in ("alpha", "max_missing", "load_ratio", "session_s", "served_rate_hold", "proof_canary")
        for value in (nan, inf, "0.5", None, True)
    ]
    + [{"session_requests": 2.5}, {"session_requests": 10**400}],
)
def test_a_setting_that_is_not_a_finite_number_is_refused_by_key(settings: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match=next(iter(settings))):
        GatePolicy(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [-5, nan, 0.5, inf])
def test_a_rung_with_an_invalid_margin_is_refused(margin: float) -> None:
    with pytest.raises(PolicyError, match=r"rungs\.0\.margins\.error"):
        GatePolicy(rungs=(Rung(0, {"error": margin}),))


def test_a_floor_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"rungs\.0\.floor nan"):
        GatePolicy(rungs=(Rung(0, {"error": 5.0}, floor=nan),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 2.0}, "weight 2.0"),
        ({"weight": 0.0}, "weight 0.0"),
        ({"weight": nan}, "weight nan"),
        ({"min_canary": -5}, "min_canary -5"),
        ({"min_canary": 2.5}, "min_canary 2.5"),
        ({"warmup_s": nan}, "warmup_s nan"),
        ({"floor": 1.0}, "floor 1.0"),
        ({"margins": {"error": nan}}, "margins.error nan"),
    ],
)
def test_an_invalid_stage_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        StagePlan(**{"weight": 0.05, "min_canary": 0, **settings})  # type: ignore[arg-type]


def test_removing_a_gate_removes_its_margin() -> None:
    mine = Gate("mine", "truncated", Kind.RATE, 0.1, 0.5, 0.25)
    policy = GatePolicy(gates=(*GatePolicy().gates[:1], mine), rungs=(Rung(0, {"error": 5.0, "mine": 3.0}),))

    assert policy.only("error").rungs == (Rung(0, {"error": 5.0}),)
    assert policy.only("truncated").rungs == policy.rungs


@pytest.mark.parametrize("given", ["", "DEFAULT", 42, ["default"]])
def test_a_value_that_is_not_a_policy_is_refused_with_a_remedy(given: object) -> None:
    with pytest.raises(PolicyError, match="mapping"):
        gate_policy_of(given)


def test_a_policy_is_given_by_name_mapping_itself_or_none() -> None:
    given: list[object] = [None, "default", {}, {"base": "default"}, GatePolicy()]

    assert [gate_policy_of(value) for value in given] == [GatePolicy()] * 5
