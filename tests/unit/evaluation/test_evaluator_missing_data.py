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


def judged_in_part(
    share: float, *, seed: int, lost: float = 0.0, rows: int = 6000, w: float = 0.5
) -> Columns:
    """A share of the answers has a score, at random; `lost`: of the canary's, which the judge skips."""
    rng = np.random.default_rng(seed)
    arm = (rng.random(rows) < w).astype(int)
    scores = np.clip(rng.normal(0.8, 0.08, rows), 0.0, 1.0)
    is_skipped = (rng.random(rows) >= share) | ((arm == 1) & (rng.random(rows) < lost))
    return {
        "t_s": 1.78e9 + np.arange(rows),
        "arm": arm,
        "w": np.full(rows, w),
        "error": (rng.random(rows) < 0.01).astype(float),
        "quality": np.where(is_skipped, np.nan, scores),
    }


@pytest.mark.parametrize(("w", "rows"), [(0.5, 6000), (0.1, 12_000)])
@pytest.mark.parametrize("share", [0.5, 0.3, 0.2])
def test_scores_that_the_canarys_worst_answers_lack_prove_nothing(share: float, w: float, rows: int) -> None:
    """Where a judge scores few answers, missing is the common case: the rarer scores tell."""
    for seed in range(3):
        result = run(judged_in_part(share, seed=seed, lost=0.3, w=w, rows=rows))

        assert "quality" not in result.proofs
        assert result.decision != "promote"


def test_scores_that_one_arm_lacks_are_said_as_not_comparable() -> None:
    result = run(judged_in_part(0.3, seed=1, lost=0.3, rows=12_000))

    assert result.decision == "invalid"
    assert any("quality: values are missing differently by arm" in reason for reason in result.reasons)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_scores_of_answers_chosen_at_random_prove_quality(share: float) -> None:
    for seed in range(3):
        assert "quality" in run(judged_in_part(share, seed=seed)).proofs


def test_answers_that_fail_on_one_arm_do_not_make_its_scores_rarer() -> None:
    """A canary that mends errors has more answers, and as many scores for each: nothing is missing."""
    columns = judged_in_part(0.2, seed=1, rows=12_000)
    failed = (columns["arm"] == 0) & (np.arange(12_000) % 10 == 0)
    columns["error"] = failed.astype(float)
    columns["quality"] = np.where(failed, np.nan, columns["quality"])

    assert run(columns).decision != "invalid"


def test_cancelled_requests_are_no_answers() -> None:
    """The time until a client left is no latency: a canary that hangs would be as fast as its patience."""
    rng = np.random.default_rng(40)
    columns = judged_in_part(0.0, seed=4)
    del columns["quality"]
    columns["latency_ms"] = rng.lognormal(9.0, 0.1, 6000)
    for share in (0.3, 1.0):
        left = (columns["arm"] == 1) & (rng.random(6000) < share)
        waited = np.where(left, 5000.0, columns["latency_ms"])
        result = run(columns | {"latency_ms": waited, "cancelled": left.astype(float)})

        assert result.decision == "invalid"
        assert any(r.startswith("latency_shape: values are missing differently") for r in result.reasons)


def test_cancelled_requests_of_both_arms_leave_the_others_comparable() -> None:
    rng = np.random.default_rng(40)
    columns = judged_in_part(0.0, seed=4, rows=12_000)
    del columns["quality"]
    left = rng.random(12_000) < 0.05
    columns["latency_ms"] = np.where(left, 50.0, rng.lognormal(6.0, 0.3, 12_000))

    assert run(columns | {"cancelled": left.astype(float)}).decision == "promote"
