"""Units, errors, serialization and status of a rollout."""

from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

import controller.errors as errors
from controller.errors import BadInput, CanaryctlError
from controller.planning.fingerprint import known_architectures
from controller.quantities import duration, duration_s, gib, percent, weight_bp
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
from controller.rollout.state import Cause, CauseKind, Departure, DepartureStep, Phase, RolloutState
from controller.rollout.status import exit_code, rollback_effect
from evaluation.report import Verdict

PLAN = Plan("low", (), (), 500, 60.0)


def at(phase: Phase, **fields: object) -> RolloutState:
    state = begin("r-1", "chat", stable=VersionRef("v-old"), canary=VersionRef("v-new"), plan=PLAN, now_s=1.0)
    return replace(state, phase=phase, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "points"), [("2.5%", 250), ("2.5 %", 250), (2.5, 250), (100, 10_000), ("0.01%", 1)]
)
def test_percents_become_basis_points(text: object, points: int) -> None:
    assert weight_bp(text) == points


@pytest.mark.parametrize("bad", ["5", "5 percent", -1, 101, 0.001, True, None, float("nan"), "1e400%"])
def test_a_malformed_percentage_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"is not a percent|is outside|is finer"):
        weight_bp(bad)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("10m", 600), ("1h30m", 5400), ("3d", 259_200), (7, 7), ("7", 7)],
)
def test_durations_become_seconds(text: object, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("bad", ["", "soon", "5 weeks", "1h-", -1, True, None, float("inf"), "400d"])
def test_a_malformed_duration_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is outside"):
        duration_s(bad)


def test_numbers_are_formatted_with_their_units() -> None:
    assert (percent(250), percent(10_000), duration(5400), duration(0.5)) == (
        "2.5 %",
        "100 %",
        "1 h 30 min",
        "0.5 s",
    )
    assert (gib(3 << 30), gib(5 << 20)) == ("3.0 GiB", "5 MiB")


def test_every_error_has_one_of_six_exit_codes_and_a_unique_problem() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CanaryctlError)
    ]

    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 5, 6}
    assert len({kind.problem for kind in kinds}) == len(kinds)


def test_the_tree_in_the_docstring_is_complete() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CanaryctlError)
    ]
    drawn = {
        tuple(line.strip("|`- ").split()[:3]) for line in (errors.__doc__ or "").splitlines() if "  " in line
    }

    assert {(kind.__name__, str(kind.exit_code), kind.problem) for kind in kinds} <= drawn


def test_both_arms_cannot_be_one_version() -> None:
    same = VersionRef("v-old")

    with pytest.raises(BadInput, match="v-old is in production already; deploy another version"):
        begin("r-1", "chat", stable=same, canary=same, plan=PLAN, now_s=0.0)


def test_the_exit_code_is_the_outcome_of_the_rollout() -> None:
    not_proven = Cause(CauseKind.NOT_PROVEN, "")

    assert exit_code(at(Phase.SUCCEEDED)) == 0
    assert exit_code(at(Phase.FAILED)) == 1
    assert exit_code(at(Phase.ROLLED_BACK)) == 5
    assert exit_code(at(Phase.ROLLED_BACK, cause=not_proven)) == 6
    assert exit_code(at(Phase.STAGE)) is None


def test_the_effect_of_a_rollback_depends_on_the_phase() -> None:
    new_serves = Departure("v-old", "v-new", DepartureStep.UNLOAD, 0.0, 0.0)

    assert rollback_effect(None) == "already"
    assert rollback_effect(at(Phase.LOADING)) == "abort"
    assert rollback_effect(at(Phase.STAGE)) == "abort"
    assert rollback_effect(at(Phase.BAKING)) == "switch_back"
    assert rollback_effect(at(Phase.UNLOADING)) == "restore"
    assert rollback_effect(at(Phase.SUCCEEDED)) == "undo"
    assert rollback_effect(at(Phase.ROLLED_BACK)) == "already"
    assert rollback_effect(at(Phase.FAILED)) == "already"
    assert rollback_effect(at(Phase.FAILED, departure=new_serves)) == "undo"


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


def test_the_list_of_architectures_matches_the_pinned_engine() -> None:
    engine = importlib.util.find_spec("vllm")  # found, not imported: that takes ten seconds
    assert engine is not None
    registry = Path(str(engine.origin)).parent / "model_executor/models/registry.py"
    tables = {}
    for node in ast.parse(registry.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            tables[ast.unparse(target)] = {
                ast.literal_eval(key) for key in node.value.keys if key is not None
            }

    served = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    assert json.loads(json.dumps(sorted(known_architectures()))) == sorted(
        set().union(*(tables[name] for name in served))
    )


def test_a_stored_state_keeps_the_keys_of_older_releases() -> None:
    state = begin("r-1", "chat", stable=VersionRef("v1"), canary=VersionRef("v2"), plan=PLAN, now_s=1.0)
    text = state_to_json(replace(state, commands_through=7))

    assert json.loads(text)["rollout"]["asks_through"] == 7
    assert state_from_json(text).commands_through == 7
