"""The judge in the machine: the first stage waits for its examination alone, and drift is told of once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.actions import ExamineJudge, SetSplit
from controller.rollout.judge_plan import (
    AGAIN_S,
    LOAD_LIMIT_S,
    UNHEARD_S,
    JudgeEngine,
    JudgeFound,
    JudgeState,
)
from controller.rollout.observation import CommandKind, JudgeEvidence
from controller.rollout.state import Phase
from controller.views.rollout import rollout_view
from evaluation.report import GateReport, Verdict
from tests.fakes.driven import PLAN, Driven, evidence
from tests.fakes.judged import JUDGE, REVISION, admitted, refused, silent

JUDGED = replace(PLAN, judge=JUDGE)


def driven(*results: JudgeFound) -> Driven:
    rollout = Driven(JUDGED)
    rollout.plane.judges = {one.attempt: one for one in results}
    return rollout


def splits(rollout: Driven) -> list[tuple[int, str | None]]:
    """Weight and judge of each split, without repetitions; None: it says nothing of a judge."""
    found = [one for one in rollout.wanted if isinstance(one, SetSplit)]
    told = [(one.weight_bp, one.judge.revision if one.judge is not None else None) for one in found]
    return list(dict.fromkeys(told))


@pytest.mark.slow
def test_a_canary_is_not_late_for_an_examination_that_takes_long() -> None:
    rollout = driven()
    rollout.ticks(600)
    waits = rollout_view(rollout.state, None).waiting_for

    assert rollout.state.phase is Phase.SMOKE
    assert "the examination of judge judge" in waits


def test_a_judge_of_whose_examination_nothing_is_heard_is_silent_and_pages() -> None:
    """Its thread hung with the file system of its key: the rollout waited in its smoke test for two weeks."""
    rollout = driven()
    rollout.until(Phase.SMOKE)
    rollout.ticks(6, UNHEARD_S / 4)

    assert rollout.state.phase is Phase.STAGE
    assert splits(rollout) == [(5000, "")]
    assert [text for text in rollout.pages if "nothing is promoted on quality" in text] == [
        "chat: judge judge silent: nothing is heard of its examination for 10 min; see the controller's log; "
        "nothing is promoted on quality"
    ]


def test_a_judge_served_here_is_waited_for_while_its_engine_may_load() -> None:
    served = replace(JUDGE, url="", engine=JudgeEngine("v-judge", "{}", 1))
    rollout = Driven(replace(JUDGED, judge=served))
    rollout.until(Phase.SMOKE)
    rollout.ticks(6, UNHEARD_S / 4)
    is_waited_for = rollout.state.phase is Phase.SMOKE
    rollout.ticks(7, LOAD_LIMIT_S / 6)

    assert (is_waited_for, rollout.state.phase) == (True, Phase.STAGE)
    assert any("nothing is heard of its examination for 25 min" in text for text in rollout.pages)


def test_it_is_asked_at_every_weight_of_the_rollout_and_not_after_it() -> None:
    rollout = driven(admitted())
    rollout.until(Phase.SUCCEEDED)

    assert splits(rollout) == [(5000, REVISION), (9500, REVISION), (0, None)]
    assert [one.attempt for one in dict.fromkeys(rollout.wanted) if isinstance(one, ExamineJudge)] == [1]


def test_a_rollout_without_a_judge_says_nothing_of_one() -> None:
    rollout = Driven(PLAN)
    rollout.until(Phase.SUCCEEDED)

    assert splits(rollout) == [(5000, None), (9500, None), (0, None)]
    assert rollout_view(rollout.state).judge is None
    assert not any(isinstance(one, ExamineJudge) for one in rollout.wanted)


@pytest.mark.parametrize("result", [refused(), silent()])
def test_any_result_lets_the_first_stage_begin_and_only_admission_asks_the_judge(result: JudgeFound) -> None:
    rollout = driven(result)
    rollout.until(Phase.STAGE)
    rollout.ticks(3)

    assert splits(rollout) == [(5000, "")]
    assert rollout.state.judge.void is not None
    assert len([text for text in rollout.pages if "nothing is promoted on quality" in text]) == 1


@pytest.mark.slow
def test_a_silent_judge_is_asked_again_after_a_while_and_told_of_once() -> None:
    rollout = driven(silent(), silent(2), admitted(3))
    rollout.until(Phase.STAGE)
    rollout.ticks(round(AGAIN_S) - 30)
    before = rollout.state.judge.attempts
    rollout.ticks(40)
    between = rollout.state.judge.attempts
    rollout.ticks(round(AGAIN_S))

    assert (before, between, rollout.state.judge.attempts) == (1, 2, 3)
    assert rollout.lines.count("judge judge silent") == 1
    assert splits(rollout)[-1] == (5000, REVISION)


@pytest.mark.slow
def test_a_refused_judge_is_refused_for_the_whole_rollout() -> None:
    rollout = driven(refused(), admitted(2))
    rollout.until(Phase.STAGE)
    rollout.ticks(3 * round(AGAIN_S))

    assert rollout.state.judge.attempts == 1


def test_drift_is_told_of_once_and_ends_the_questions() -> None:
    rollout = driven(admitted())
    rollout.until(Phase.STAGE)
    rollout.ticks(3)
    drifted = JudgeEvidence(drift="the judge drifted: bad answers that it passes went from 2% to 60%")
    rollout.seen = evidence(Verdict.INVALID, judge=drifted)
    rollout.ticks(5)
    rollout.seen = evidence(Verdict.INVALID, judge=JudgeEvidence())  # as of a feed that began anew
    rollout.ticks(5)

    assert rollout.state.judge.drift == drifted.drift
    assert rollout.lines.count("the judge drifted") == 1
    assert splits(rollout) == [(5000, REVISION), (5000, "")]
    view = rollout_view(rollout.state, rollout.seen).judge
    assert view is not None
    assert view.text == (
        "judge judge, 20 % of answers, for quality: drifted (bad answers that it passes went from 2% to 60%)"
    )


def _gate(name: str) -> GateReport:
    return GateReport(name, name, "promotion", Verdict.INVALID, 0.0, 6.0, "NOT JUDGED: why", 9, 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "ends_in"),
    [(("quality",), Phase.STAGE), (("quality", "error"), Phase.ROLLED_BACK)],
)
def test_a_dead_judge_rolls_nothing_back_whatever_missing_metrics_do(
    missing: tuple[str, ...], ends_in: Phase
) -> None:
    """DESIGN, rule 6: it never fails a canary by itself."""
    stage = replace(JUDGED.stages[0], on_missing="rollback")
    rollout = Driven(replace(JUDGED, stages=(stage,)))
    rollout.plane.judges = {1: refused()}
    rollout.until(Phase.STAGE)
    gates, lines = tuple(map(_gate, missing)), tuple(f"{name}: NOT JUDGED: why" for name in missing)
    rollout.seen = evidence(Verdict.INVALID, gates=gates, missing=lines, judge=JudgeEvidence())
    for _ in range(6000):
        rollout.ticks(1)
        if rollout.state.phase is Phase.ROLLED_BACK or rollout.state.holds:
            break
    rollout.ticks(200)

    assert rollout.state.phase is ends_in


def test_a_person_who_waives_all_proofs_waits_for_no_examination() -> None:
    rollout = driven()
    rollout.until(Phase.SMOKE)
    rollout.command(CommandKind.PROMOTE_FULL)
    rollout.ticks(30)

    assert rollout.state.phase in (Phase.PROMOTING, Phase.BAKING)


def test_a_rollback_examines_no_more() -> None:
    rollout = driven()
    rollout.until(Phase.SMOKE)
    rollout.command(CommandKind.ROLLBACK)
    rollout.ticks(2)
    rollout.wanted.clear()
    rollout.ticks(30)

    assert rollout.state.phase is Phase.ROLLED_BACK
    assert not any(isinstance(one, ExamineJudge) for one in rollout.wanted)


def test_what_is_known_of_a_judge_is_in_words() -> None:
    assert JudgeState().void == "NOT JUDGED: the judge is being examined"
    assert JudgeState(1, admitted()).void is None
    assert JudgeState(1, refused()).void == (
        "NOT JUDGED: the judge was refused: 40% of the bad plants found, needed 80%"
    )
    assert JudgeState(1, silent()).void == (
        "NOT JUDGED: the judge is silent: it gave no verdict: no answer within 30 s; it is examined again "
        "every 10 min"
    )
