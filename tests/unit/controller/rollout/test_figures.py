"""The reason of a rollback names the estimates of both arms, and of how many requests they are."""

from __future__ import annotations

import pytest

from controller.rollout.conditions import reason_to_leave
from controller.rollout.figures import with_figures
from controller.rollout.observation import EvidenceStatus, Observation
from controller.rollout.state import Hold, HoldKind
from evaluation.report import GateReport, Verdict
from tests.fakes.view_maker import in_stage


def report(metric: str, stable: float | None, canary: float | None, reason: str = "harm") -> GateReport:
    return GateReport(metric, metric, "rollback", Verdict.FAIL, 7.0, 5.8, reason, 412, 3900, stable, canary)


@pytest.mark.parametrize(
    ("metric", "stable", "canary", "text"),
    [
        ("error", 0.0102, 0.0521, "harm; canary 5.21 % (n 412), stable 1.02 % (n 3,900)"),
        ("quality", 0.93, 0.8712, "harm; canary 0.8712 (n 412), stable 0.93 (n 3,900)"),
        ("latency_ms", 812.0, 1234.5, "harm; canary 1234 ms (n 412), stable 812 ms (n 3,900)"),
        ("served", None, None, "harm; canary (n 412), stable (n 3,900)"),
        ("error", None, 0.5, "harm; canary 50 % (n 412), stable (n 3,900)"),
    ],
)
def test_the_figures_are_those_of_the_report(
    metric: str, stable: float | None, canary: float | None, text: str
) -> None:
    assert with_figures(report(metric, stable, canary)) == text


def test_the_cause_of_a_rollback_has_the_figures_of_the_gate_that_fired() -> None:
    gate = report("error", 0.0102, 0.0521, "error above 1.25x shown by sessions")
    evidence = EvidenceStatus(0, Verdict.FAIL, rollback=gate, gates=(gate,))

    cause = reason_to_leave(in_stage(), Observation(200.0, None, None, evidence), 200.0)

    assert cause is not None
    assert cause.text == (
        "error above 1.25x shown by sessions; canary 5.21 % (n 412), stable 1.02 % (n 3,900)"
    )


def test_a_rollback_for_want_of_proof_has_the_figures_of_what_was_not_proven() -> None:
    gate = GateReport(
        "quality", "quality", "promotion", Verdict.UNDECIDED, 1.5, 3.0,
        "quality > -0.05 not proven yet", 40, 400, 0.97, 0.95,
    )  # fmt: skip
    proven = GateReport("error", "error", "promotion", Verdict.PASS, 4.0, 3.0, "proven", 40, 400, 0.0, 0.0)
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, gates=(gate, proven))
    held = Hold(HoldKind.NOT_PROVEN, "controller", "undecided at the deadline", 200.0)

    seen = Observation(1e9, None, None, evidence)
    cause = reason_to_leave(in_stage(holds=(held,)), seen, 1e9)

    assert cause is not None
    assert cause.text.endswith(
        "of hold: undecided at the deadline; "
        "quality > -0.05 not proven yet; canary 0.95 (n 40), stable 0.97 (n 400)"
    )
