"""Point estimates against margins: within only if undecided or proven, complete and inside every margin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.evidence.point_estimates import point_estimates
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import EvaluationReport, GateReport, Side, Verdict

MARGINS = {"error": 3.0, "quality": 0.05, "latency_shape": 1.2, "latency_p99": 1.2}
STAGE = StagePlan(0.1, 0, MARGINS, floor=0.01)
POLICY = GatePolicy.default()
VALUES = {
    "error": (0.01, 0.025),
    "quality": (0.80, 0.76),
    "latency_shape": (100.0, 115.0),
    "latency_p99": (400.0, 470.0),
}


def gate(name: str, stable: float | None, canary: float | None, side: Side = "promotion") -> GateReport:
    return GateReport(
        name, name, side, Verdict.UNDECIDED, 0.0, 3.0, "not proven yet", 90, 900, stable, canary
    )


REPORT = EvaluationReport(
    stage=0,
    stage_verdict=Verdict.UNDECIDED,
    rollback=None,
    gates=tuple(gate(name, *values) for name, values in VALUES.items()),
    missing=("error: not proven yet",),
    frozen=False,
    n_canary=90,
    n_stable=900,
    stage_canary=90,
    through_s=0.0,
)


def with_gate(new: GateReport) -> EvaluationReport:
    return replace(REPORT, gates=tuple(new if one.gate == new.gate else one for one in REPORT.gates))


def test_estimates_inside_every_margin_are_within() -> None:
    estimates = point_estimates(REPORT, POLICY, STAGE)

    assert estimates.within
    assert estimates.text.startswith("error 0.025 beside 0.01, quality 0.76 beside 0.8, ")


@pytest.mark.parametrize(
    ("name", "stable", "canary"),
    [
        ("error", 0.01, 0.031),
        ("quality", 0.80, 0.74),
        ("latency_shape", 100.0, 121.0),
        ("latency_p99", 400.0, 481.0),
    ],
)
def test_one_estimate_outside_its_margin_is_named(name: str, stable: float, canary: float) -> None:
    estimates = point_estimates(with_gate(gate(name, stable, canary)), POLICY, STAGE)

    assert not estimates.within
    assert estimates.text.startswith(f"{name} {canary:.3g} beside {stable:.3g} is outside its margin")


def test_a_rate_below_stable_plus_the_floor_is_inside_whatever_its_ratio() -> None:
    assert point_estimates(with_gate(gate("error", 0.0, 0.01)), POLICY, STAGE).within
    assert not point_estimates(with_gate(gate("error", 0.0, 0.011)), POLICY, STAGE).within


def test_a_proven_gate_is_within_whatever_its_estimate() -> None:
    proven = replace(gate("quality", 0.80, 0.74), verdict=Verdict.PASS)

    assert point_estimates(with_gate(proven), POLICY, STAGE).within


@pytest.mark.parametrize(
    "report",
    [
        with_gate(gate("quality", None, 0.8)),
        with_gate(replace(gate("quality", 0.8, 0.8), verdict=Verdict.INVALID)),
        replace(REPORT, gates=REPORT.gates[1:]),
        replace(REPORT, stage_verdict=Verdict.INVALID),
        replace(REPORT, stage_verdict=Verdict.FAIL),
        replace(REPORT, frozen=True),
        replace(REPORT, notes=("stable's own latency_ms rose to 2x of before the canary",)),
    ],
)
def test_missing_invalid_or_incomparable_estimates_are_never_within(report: EvaluationReport) -> None:
    assert not point_estimates(report, POLICY, STAGE).within


def test_a_stage_with_nothing_to_prove_is_never_within() -> None:
    assert not point_estimates(REPORT, POLICY, StagePlan(0.1, 0, {})).within
