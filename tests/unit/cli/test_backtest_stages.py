"""The stages of a backtest say what its decision says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from controller.cli.backtest_show import alarm_line
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.fakes.view_maker import GATE

PLAN = tuple(StagePlan(weight, 0, {"error": 5.0}, 0.02) for weight in (0.05, 0.1, 0.5))


def ramp(harm: Sequence[float], *, stable: float = 0.02, rows: int = 2000) -> Mapping[str, np.ndarray]:
    """A recorded ramp of three stages. harm: the canary's share of errors in each that has rows."""
    rng = np.random.default_rng(3)
    stage = np.repeat(np.arange(len(harm)), rows)
    w = np.asarray([one.weight for one in PLAN])[stage]
    arm = rng.random(len(w)) < w
    error = rng.random(len(w)) < np.where(arm, np.asarray(harm)[stage], stable)
    t_s = 1e6 + np.arange(len(w), dtype=np.float64)
    return {"t_s": t_s, "arm": arm.astype(int), "w": w, "stage": stage, "error": error.astype(float)}


def judged(columns: Mapping[str, np.ndarray], *, required: Sequence[str] = ()) -> BacktestResult:
    return run(columns, GatePolicy.default(), stages=PLAN, required=required)


def verdicts(result: BacktestResult) -> list[str]:
    return [stage.verdict.value for stage in result.stages]


def test_no_stage_after_a_rollback_is_judged() -> None:
    """Each later stage of the recording was shown as FAIL, with a decision after 13 canary requests."""
    result = judged(ramp([0.5, 0.5, 0.02]))

    assert result.decision == "rollback"
    assert verdicts(result) == ["FAIL", "UNDECIDED", "UNDECIDED"]
    assert result.stages[2].missing == ("not reached: rolled back in stage 1",)


def test_stages_before_a_rollback_keep_their_proof() -> None:
    result = judged(ramp([0.02, 0.02, 0.5]))

    assert (result.decision, verdicts(result)) == ("rollback", ["PASS", "PASS", "FAIL"])


def test_a_stage_without_rows_is_shown() -> None:
    """`UNDECIDED: no rows of stage 2` stood above a table of two stages, both passed."""
    result = judged(ramp([0.02, 0.02]))

    assert result.decision == "undecided"
    assert verdicts(result) == ["PASS", "PASS", "UNDECIDED"]
    assert (result.stages[2].canary_requests, result.stages[2].missing) == (0, ("no rows",))


def test_no_stage_passes_with_a_gate_that_is_not_judged() -> None:
    """`UNDECIDED: a gate not judged` stood above a table of stages that had all passed."""
    result = judged(ramp([0.02, 0.02, 0.02]), required=["quality"])

    assert (result.decision, set(verdicts(result))) == ("undecided", {"UNDECIDED"})
    assert result.stages[0].missing == ("quality: NOT JUDGED, it has no column",)


def test_the_last_stage_does_not_pass_where_both_arms_are_bad() -> None:
    result = judged(ramp([0.7, 0.7, 0.7], stable=0.7))

    assert (result.decision, verdicts(result)) == ("undecided", ["PASS", "PASS", "UNDECIDED"])
    assert "both arms are bad" in result.stages[2].missing[0]


@pytest.mark.slow
@pytest.mark.parametrize("required", [[], ["quality"]])
@pytest.mark.parametrize("harm", [[0.02] * 3, [0.02] * 2, [0.5] * 3, [0.02, 0.5], [0.7] * 3])
def test_a_promotion_and_only_one_has_passed_every_stage(harm: list[float], required: list[str]) -> None:
    result = judged(ramp(harm, stable=0.7 if harm[0] == 0.7 else 0.02), required=required)

    has_passed = all(stage.verdict is Verdict.PASS for stage in result.stages)
    assert (result.decision == "promote") is has_passed
    assert (result.decision == "rollback") is ("FAIL" in verdicts(result))


@pytest.mark.parametrize(
    ("unanswered", "has_words"), [((0.0, 0.31), True), ((0.1, 0.1), False), (None, False)]
)
def test_an_alarm_says_that_failures_may_be_all_that_it_shows(
    unanswered: tuple[float, float] | None, has_words: bool
) -> None:
    """Equal tokens of both arms were called worse, without a word that failed requests count as the most."""
    alarm = replace(GATE, metric="tokens", is_alarm=True, decided_canary=36, unanswered=unanswered)

    words = "; 31 % of the canary's requests have no answer, which counts as the worst value)"
    assert alarm_line([alarm]).endswith(words) is has_words
