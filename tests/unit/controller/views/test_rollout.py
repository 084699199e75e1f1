"""Views of rollouts and services: complete, and always valid JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from controller.rollout.machine import begin
from controller.rollout.observation import (
    EvidenceStatus,
    GuardStatus,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.plan import VersionRef
from controller.rollout.state import Departure, DepartureStep, Phase
from controller.spec.label import Label
from controller.views.models import RolloutView
from controller.views.rollout import gate_view, rollout_view, service_view
from evaluation.report import EvaluationReport, Verdict
from tests.fakes.view_maker import GATE, PLAN, in_stage


def test_a_view_is_valid_json_even_with_infinite_evidence() -> None:
    infinite = replace(GATE, log_e=math.inf, limit=math.nan, stable=-math.inf)
    view = rollout_view(in_stage(), EvidenceStatus(0, Verdict.UNDECIDED, gates=(infinite,)))

    text = json.dumps(view.model_dump(mode="json"), allow_nan=False)
    assert RolloutView.model_validate_json(text) == view
    assert view.gates[0].log_e is None


def test_stages_are_marked_done_now_or_ahead() -> None:
    stages = [
        rollout_view(in_stage(stage=1)).stages,
        rollout_view(in_stage(stage=2, phase=Phase.BAKING)).stages,
        rollout_view(
            begin("r-1", "c", stable=VersionRef("a"), canary=VersionRef("b"), plan=PLAN, now_s=0)
        ).stages,
    ]

    assert [[stage.status for stage in group] for group in stages] == [
        ["done", "now"],
        ["done", "done"],
        ["ahead", "ahead"],
    ]


def test_the_steps_of_a_rollback_are_shown_in_ms() -> None:
    departure = Departure("v-new", "v-old", DepartureStep.UNLOAD, 0.0, 1.0, 12.0, 30.0, 900.0, 942.0)
    view = rollout_view(in_stage(phase=Phase.ROLLED_BACK, departure=departure))

    assert view.steps is not None
    assert view.steps.model_dump(include={"traffic_shift_ms", "drain_ms", "unload_ms", "total_ms"}) == {
        "traffic_shift_ms": 12.0,
        "drain_ms": 30.0,
        "unload_ms": 900.0,
        "total_ms": 942.0,
    }
    assert (view.exit_code, view.serving) == (5, "v-old")


def test_a_gate_shows_how_far_it_is_from_deciding() -> None:
    assert gate_view(GATE).progress_ratio == 0.5
    assert gate_view(replace(GATE, log_e=-4.0)).progress_ratio == 0.0
    assert gate_view(replace(GATE, log_e=9.0)).progress_ratio == 1.0


def test_guards_are_shown_by_name() -> None:
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, guards=(GuardStatus("errors", "12 of 20"),))

    assert rollout_view(in_stage(), evidence).guards == ("errors: 12 of 20",)


def test_unreadable_parts_of_a_service_are_null_not_empty() -> None:
    view = service_view("chat", url="http://x", stable="v-old", split=None, versions=None, rollout=None)

    assert (view.weight_bp, view.versions, view.rollout) == (None, None, None)


def test_a_service_shows_its_versions() -> None:
    status = VersionStatus("v-old", VersionPhase.READY, 2, 7, 1_000)
    split = SplitStatus(1, 1, "v-old", None, 0, applied=True)
    labels = {"v-old": Label("v1", "/models/one", "alice (admin)", "first")}

    view = service_view(
        "chat", url="u", stable="v-old", split=split, versions=[status], rollout=None, labels=labels
    )

    assert (view.stable_name, view.versions is not None) == ("v1", True)
    assert (view.versions or ())[0].model_dump() == {
        "version": "v-old",
        "name": "v1",
        "source": "/models/one",
        "actor": "alice (admin)",
        "message": "first",
        "phase": "ready",
        "ready_replicas": 2,
        "in_flight": 7,
        "memory_bytes": 1000,
        "last_error": None,
    }


def test_an_unloaded_version_is_not_shown() -> None:
    versions = [
        VersionStatus("v-old", VersionPhase.READY, 1, 0),
        VersionStatus("v-new", VersionPhase.GONE, 0, 0),
    ]

    view = service_view("chat", url="u", stable="v-old", split=None, versions=versions, rollout=None)

    assert [version.version for version in view.versions or ()] == ["v-old"]


def test_an_unproven_gate_is_not_missing_data() -> None:
    unproven, invalid = replace(GATE, reason="not yet"), replace(GATE, gate="error", verdict=Verdict.INVALID)
    report = EvaluationReport(0, Verdict.INVALID, None, (unproven, invalid), (), False, 40, 400, 40, 1.0)

    assert EvidenceStatus.of(report).missing == ("error: ",)
