"""Missing values make a gate INVALID, and metrics without a gate are alarms."""

from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import EvidenceError
from evaluation.report import GateReport
from evaluation.units.missingness import Presence, excess_log_e
from tests.fakes.evidence_maker import Columns, requests, settings_of, streamed
from tests.seeds import seeds

ERRORS = GatePolicy.default().only("error")


def harmless(rows: int = 24_000, before: int = 4000, seed: int = 3) -> Columns:
    return requests(rows, before=before, w=0.1, seed=seed)


@pytest.mark.slow
def test_a_rollback_gate_without_canary_values_is_invalid() -> None:
    """No proof of the time to first token is required, but a canary without values is not promoted."""
    columns = harmless()
    columns["ttft_ms"] = columns["latency_ms"] / 10.0
    assert run(columns).decision == "promote"
    columns["ttft_ms"][columns["arm"] == 1] = np.nan

    result = run(columns)

    assert result.decision == "invalid"
    assert "ttft_shape: values are missing differently by arm" in result.reasons


@pytest.mark.slow
def test_a_streaming_time_that_stops_arriving_holds() -> None:
    columns = harmless()
    columns["ttft_ms"] = columns["latency_ms"] / 10.0
    columns["ttft_ms"][12_000:] = np.nan

    assert any("ttft_shape: stopped arriving" in reason for reason in run(columns).reasons)


@pytest.mark.slow
def test_answers_that_are_not_streamed_need_no_time_to_the_first_token() -> None:
    columns = harmless()
    columns["ttft_ms"] = np.full(24_000, np.nan)

    assert run(columns).decision == "promote"


@pytest.mark.slow
def test_mostly_missing_latency_is_invalid() -> None:
    columns = harmless()
    columns["latency_ms"][np.arange(24_000) % 10 > 0] = np.nan

    result = run(columns)

    assert result.decision == "invalid"
    assert any(reason.startswith("latency_shape: 9") for reason in result.reasons)


@pytest.mark.slow
def test_a_slowdown_of_stable_with_the_canary_blocks_promotion() -> None:
    """On shared hardware the canary can slow both arms, which the coin does not show."""
    columns = harmless()
    columns["latency_ms"][4000:] *= 5.0

    result = run(columns)

    assert result.decision == "undecided"
    assert any("stable's own latency_ms rose" in reason for reason in result.reasons)


@pytest.mark.slow
def test_a_stage_without_requests_does_not_pass() -> None:
    columns = harmless()
    columns["stage"] = np.zeros(24_000)
    plan = (StagePlan(0.05, 0, {"error": 5.0}, 0.01), StagePlan(0.5, 500, {"error": 5.0}, 0.01))

    result = run(columns, ERRORS, stages=plan)

    assert result.decision == "undecided"
    assert result.reasons == ("no rows of stage 2",)


def test_a_stage_outside_the_plan_is_refused() -> None:
    columns = harmless()
    columns["stage"] = np.full(24_000, 7)

    with pytest.raises(EvidenceError, match=r"stage holds 7\.\.7, the plan has stages 0\.\.0"):
        run(columns)


@pytest.mark.slow
def test_a_decision_in_the_first_second_has_its_time() -> None:
    columns = harmless()
    columns["t_s"] = np.zeros(24_000)
    columns["error"] = ((columns["arm"] == 1) | (columns["error"] == 1)).astype(float)

    assert (run(columns).decision, run(columns).t_s) == ("rollback", 0.0)


def raised(gates: Sequence[GateReport]) -> list[str]:
    return [report.gate for report in gates if report.is_alarm and report.decided_canary is not None]


@pytest.mark.slow
def test_a_metric_without_a_gate_is_an_alarm_and_decides_nothing() -> None:
    columns = harmless()
    columns["flagged"] = (columns["arm"] == 1).astype(float)
    columns["tokens"] = np.where(columns["arm"] == 1, 900.0, 100.0) + np.arange(24_000) % 7

    result = run(columns)

    assert raised(result.gates) == ["tokens_alarm", "flagged_alarm"]
    assert result.decision == "promote"
    assert result.log_e["flagged"] > 5.0


@pytest.mark.slow
def test_alarms_are_quiet_without_harm_and_without_values() -> None:
    columns = harmless()
    columns["flagged"] = (np.random.default_rng(1).random(24_000) < 0.02).astype(float)
    columns["cost"] = np.full(24_000, np.nan)

    result = run(columns)

    assert (result.decision, raised(result.gates)) == ("promote", [])
    assert [report.gate for report in result.gates if report.is_alarm] == ["flagged_alarm"]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("w", "rows"), [(0.5, 6000), (0.1, 12_000)])
@pytest.mark.parametrize("share", [0.5, 0.3, 0.2])
def test_scores_that_the_canarys_worst_answers_lack_prove_nothing(share: float, w: float, rows: int) -> None:
    """Where a judge scores few answers, missing is the common case: the rarer scores tell."""
    for seed in range(3):
        result = run(judged_in_part(share, seed=seed, lost=0.3, w=w, rows=rows))

        assert "quality" not in result.proofs
        assert result.decision != "promote"


@pytest.mark.slow
def test_scores_that_one_arm_lacks_are_said_as_not_comparable() -> None:
    result = run(judged_in_part(0.3, seed=1, lost=0.3, rows=12_000))

    assert result.decision == "invalid"
    assert any("quality: values are missing differently by arm" in reason for reason in result.reasons)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_scores_of_answers_chosen_by_a_stated_coin_prove_quality(share: float) -> None:
    gate = {**settings_of(GatePolicy.default(), "quality"), "sampling": {"stable": share, "canary": share}}
    for seed in range(3):
        assert "quality" in run(judged_in_part(share, seed=seed), {"gates": {"quality": gate}}).proofs


def batches(seed: int, hours: float, *, until_h: float = 1e9) -> Columns:
    """300 requests an hour, of which a judge scores those of the first 18 minutes, on both arms alike."""
    rng = np.random.default_rng(seed)
    size = int(300 * hours)
    hour = np.cumsum(rng.exponential(1.0, size)) / 300.0
    is_scored = (hour % 1.0 < 0.3) & (hour < until_h)
    return {
        "t_s": 3600.0 * hour,
        "arm": (rng.random(size) < 0.25).astype(np.int64),
        "w": np.full(size, 0.25),
        "error": np.zeros(size),
        "quality": np.where(is_scored, rng.beta(6.0, 2.0, size), np.nan),
    }


@pytest.mark.slow
@seeds(3)
def test_a_judge_that_works_in_batches_has_not_stopped_in_between(seed: int) -> None:
    for hours in (5.5, 5.8, 5.97):
        result = run(batches(seed, hours), GatePolicy.default().only("error", "quality"))

        assert not any("stopped arriving" in reason for reason in result.reasons)


def test_a_judge_that_works_in_batches_has_stopped_after_twice_its_longest_pause() -> None:
    result = run(batches(1, 5.0, until_h=3.0), GatePolicy.default().only("error", "quality"))

    assert any("stopped arriving" in reason for reason in result.reasons)


@seeds(4)
@pytest.mark.parametrize("share", [0.05, 0.08, 0.092])
def test_values_missing_below_the_limit_are_valid_at_every_look(share: float, seed: int) -> None:
    presence = presence_of(np.random.default_rng(seed).random((200, 100)) >= share)

    assert [reason for reason in presence if reason is not None] == []


@pytest.mark.parametrize("share", [0.18, 0.25, 0.5, 1.0])
def test_values_missing_beyond_the_limit_are_invalid_until_they_come_again(share: float) -> None:
    is_missing = np.random.default_rng(1).random((200, 100)) < share
    is_missing[:40] = is_missing[80:] = False
    presence = presence_of(~is_missing)

    assert presence[:40] == [None] * 40
    assert presence[79] is not None
    assert presence[105:] == [None] * 95


@pytest.mark.slow
def test_users_whose_requests_all_lack_values_count_once() -> None:
    """7 % of the users, with ten requests each: not seventy independent requests in a thousand."""
    for seed in range(8):
        is_missing = np.repeat(np.random.default_rng(seed).random((200, 10)) < 0.07, 10, axis=1)
        is_first = np.tile(np.arange(10) == 0, 10)

        assert set(presence_of(~is_missing, is_first)) == {None}


def test_the_evidence_of_too_many_missing_values_is_the_integral_over_larger_shares() -> None:
    p = np.linspace(0.1, 1.0, 400_001)
    ratio = (p / 0.1) ** 30 * ((1.0 - p) / 0.9) ** 70

    assert excess_log_e(1.0, 1, 0.5) == pytest.approx(np.log(1.5))
    assert excess_log_e(0.3, 100, 0.1) == pytest.approx(np.log(ratio.mean()), abs=1e-4)


def presence_of(present: np.ndarray, is_first: np.ndarray | None = None) -> list[str | None]:
    """Reasons why a metric is INVALID after each block of requests. present: blocks x requests."""
    presence = Presence(on_present=False, max_missing=0.1, restart_share=0.0, is_judged=False)
    reasons = []
    for number, block in enumerate(present):
        every = np.ones(len(block), dtype=np.bool_)
        at_s = np.arange(len(block), dtype=np.float64) + 100.0 * number
        presence.count(block, every, every if is_first is None else is_first, at_s)
        reasons.append(presence.reason())
    return reasons


@pytest.mark.slow
def test_answers_that_fail_on_one_arm_do_not_make_its_scores_rarer() -> None:
    """A canary that mends errors has more answers, and as many scores for each: nothing is missing."""
    columns = judged_in_part(0.2, seed=1, rows=12_000)
    failed = (columns["arm"] == 0) & (np.arange(12_000) % 10 == 0)
    columns["error"] = failed.astype(float)
    columns["quality"] = np.where(failed, np.nan, columns["quality"])

    assert run(columns).decision != "invalid"
