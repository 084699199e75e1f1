"""Missing values make a gate INVALID, and metrics without a gate are alarms."""

from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import EvidenceError
from evaluation.report import GateReport
from tests.fakes.evidence_maker import Columns, requests, streamed

ERRORS = GatePolicy.default().only("error")


def harmless(rows: int = 24_000, before: int = 4000, seed: int = 3) -> Columns:
    return requests(rows, before=before, w=0.1, seed=seed)


def test_a_rollback_gate_without_canary_values_is_invalid() -> None:
    """No proof of the time to first token is required, but a canary without values is not promoted."""
    columns = harmless()
    columns["ttft_ms"] = columns["latency_ms"] / 10.0
    assert run(columns).decision == "promote"
    columns["ttft_ms"][columns["arm"] == 1] = np.nan

    result = run(columns)

    assert result.decision == "invalid"
    assert "ttft_shape: values are missing differently by arm" in result.reasons


def test_a_streaming_time_that_stops_arriving_holds() -> None:
    columns = harmless()
    columns["ttft_ms"] = columns["latency_ms"] / 10.0
    columns["ttft_ms"][12_000:] = np.nan

    assert any("ttft_shape: stopped arriving" in reason for reason in run(columns).reasons)


def test_answers_that_are_not_streamed_need_no_time_to_the_first_token() -> None:
    columns = harmless()
    columns["ttft_ms"] = np.full(24_000, np.nan)

    assert run(columns).decision == "promote"


def test_mostly_missing_latency_is_invalid() -> None:
    columns = harmless()
    columns["latency_ms"][np.arange(24_000) % 10 > 0] = np.nan

    result = run(columns)

    assert result.decision == "invalid"
    assert any(reason.startswith("latency_shape: 9") for reason in result.reasons)


def test_a_slowdown_of_stable_with_the_canary_blocks_promotion() -> None:
    """On shared hardware the canary can slow both arms, which the coin does not show."""
    columns = harmless()
    columns["latency_ms"][4000:] *= 5.0

    result = run(columns)

    assert result.decision == "undecided"
    assert any("stable's own latency_ms rose" in reason for reason in result.reasons)


def test_a_stage_without_requests_does_not_pass() -> None:
    columns = harmless()
    columns["stage"] = np.zeros(24_000)
    plan = (StagePlan(0.05, 0, {"error": 5.0}, 0.01), StagePlan(0.5, 500, {"error": 5.0}, 0.01))

    result = run(columns, ERRORS, stages=plan)

    assert result.decision == "undecided"
    assert result.reasons == ("no rows of stage 1",)


def test_a_stage_outside_the_plan_is_refused() -> None:
    columns = harmless()
    columns["stage"] = np.full(24_000, 7)

    with pytest.raises(EvidenceError, match=r"stage holds 7\.\.7, the plan has stages 0\.\.0"):
        run(columns)


def test_a_decision_in_the_first_second_has_its_time() -> None:
    columns = harmless()
    columns["t_s"] = np.zeros(24_000)
    columns["error"] = ((columns["arm"] == 1) | (columns["error"] == 1)).astype(float)

    assert (run(columns).decision, run(columns).t_s) == ("rollback", 0.0)


def raised(gates: Sequence[GateReport]) -> list[str]:
    return [report.gate for report in gates if report.is_alarm and report.decided_canary is not None]


def test_a_metric_without_a_gate_is_an_alarm_and_decides_nothing() -> None:
    columns = harmless()
    columns["flagged"] = (columns["arm"] == 1).astype(float)
    columns["tokens"] = np.where(columns["arm"] == 1, 900.0, 100.0) + np.arange(24_000) % 7

    result = run(columns)

    assert raised(result.gates) == ["tokens_alarm", "flagged_alarm"]
    assert result.decision == "promote"
    assert result.log_e["flagged"] > 5.0


def test_alarms_are_quiet_without_harm_and_without_values() -> None:
    columns = harmless()
    columns["flagged"] = (np.random.default_rng(1).random(24_000) < 0.02).astype(float)
    columns["cost"] = np.full(24_000, np.nan)

    result = run(columns)

    assert (result.decision, raised(result.gates)) == ("promote", [])
    assert [report.gate for report in result.gates if report.is_alarm] == ["flagged_alarm"]


def test_a_live_rollout_has_the_alarms_of_a_backtest() -> None:
    columns = harmless(6000, 1000)
    columns["ttft_ms"] = columns["latency_ms"] * np.where(columns["arm"] == 1, 3.0, 1.0)

    live = streamed(columns, GatePolicy.default().only("error", "latency_ms")).report()

    assert raised(live.gates) == ["ttft_ms_alarm"]
    assert live.rollback is None


def test_the_score_of_a_failed_request_is_missing() -> None:
    columns = requests(400, w=0.5)
    columns["error"] = columns["arm"].astype(float)
    columns["quality"] = 1.0 - columns["arm"]

    result = run(columns, GatePolicy.default().only("quality"))

    assert result.log_e["quality"] == 0.0
    assert result.decision == "undecided"
