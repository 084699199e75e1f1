"""Mirroring in a rollout with a judge: what opens stage 1, what holds it, what rolls back before it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.actions import SetSplit
from controller.rollout.mirroring import is_mirrored, unjudged_pairs
from controller.rollout.observation import CommandKind, EvidenceStatus, MirrorStatus, Observation
from controller.rollout.plan import MirrorPlan
from controller.rollout.state import CauseKind, HoldKind, Phase
from controller.views.rollout import rollout_view
from evaluation.report import GateReport, Verdict
from tests.fakes.driven import NEW, PLAN, Driven
from tests.fakes.judged import JUDGE, REVISION, admitted, refused

MIRROR = MirrorPlan(200, 100, 300.0)
JUDGED = replace(PLAN, judge=JUDGE, mirror=MIRROR)
VOID = "NOT JUDGED: the judge was refused: no"
ENOUGH = MirrorStatus(pairs=150, judged=100, wrong=(3, 4))
DEAD = MirrorStatus(pairs=150, missing=(150, 150), void="NOT JUDGED: 100% of the last 150 ...")
HARM = GateReport(
    "quality", "quality", "rollback", Verdict.FAIL, 9.0, 7.0, "quality worse shown by mirrored pairs", 90, 90
)


def seen(mirror: MirrorStatus | None, **more: object) -> EvidenceStatus:
    return EvidenceStatus(0, Verdict.UNDECIDED, mirror=mirror, **more)  # type: ignore[arg-type]


def mirroring(plan: object = JUDGED, mirror: MirrorStatus | None = None, result: object = None) -> Driven:
    """A rollout whose copies are being sent."""
    rollout = Driven(plan)  # type: ignore[arg-type]
    rollout.plane.judges = {1: result or admitted()}  # type: ignore[dict-item]
    rollout.until(Phase.MIRRORING)
    rollout.seen = seen(mirror or MirrorStatus())
    rollout.ticks(3)
    return rollout


def test_the_judge_is_asked_while_only_copies_are_sent() -> None:
    rollout = mirroring()
    split = next(one for one in reversed(rollout.wanted) if isinstance(one, SetSplit))

    assert (split.weight_bp, split.mirror_bp, split.canary) == (0, 200, NEW)
    assert split.judge is not None
    assert split.judge.revision == REVISION
    assert rollout.state.phase is Phase.MIRRORING


def test_enough_judged_pairs_open_stage_1() -> None:
    rollout = mirroring(mirror=replace(ENOUGH, judged=99))
    before = rollout.state.phase
    rollout.seen = seen(ENOUGH)
    rollout.ticks(2)

    assert (before, rollout.state.phase) == (Phase.MIRRORING, Phase.STAGE)
    assert "; judged 100 pairs, wrong: stable 3 %, canary 4 %; now 50 %" in rollout.lines


def test_harm_in_pairs_rolls_back_with_no_user_answered() -> None:
    rollout = mirroring()
    rollout.seen = seen(replace(ENOUGH, judged=90), rollback=HARM)
    rollout.tick()

    assert rollout.state.phase is Phase.ROLLING_BACK
    assert rollout.state.cause is not None
    assert rollout.state.cause.kind is CauseKind.GATE
    assert (rollout.state.decisive, rollout.state.decided_canary) == (HARM, 0)
    assert {one.weight_bp for one in rollout.wanted if isinstance(one, SetSplit)} == {0}


@pytest.mark.parametrize("on_missing", ["hold", "rollback"])
@pytest.mark.parametrize("mirror", [DEAD, replace(DEAD, void=None), MirrorStatus(void=VOID)])
def test_pairs_that_are_not_judged_hold_at_the_deadline_whatever_the_stage_says(
    on_missing: str, mirror: MirrorStatus
) -> None:
    stages = tuple(replace(stage, on_missing=on_missing) for stage in JUDGED.stages)  # type: ignore[arg-type]
    rollout = mirroring(replace(JUDGED, stages=stages), mirror)
    rollout.ticks(250)
    assert (rollout.state.phase, rollout.state.holds) == (Phase.MIRRORING, ())
    rollout.ticks(60)

    (held,) = rollout.state.holds
    assert (rollout.state.phase, held.kind) == (Phase.MIRRORING, HoldKind.NOT_PROVEN)
    assert held.reason.startswith("mirrored pairs: ")
    assert (mirror.void or "0 of the 100 that are needed are judged, of 150 copied") in held.reason
    assert len([text for text in rollout.pages if "held (not_proven)" in text]) == 1

    rollout.seen = seen(ENOUGH)  # it votes again
    rollout.ticks(3)
    assert (rollout.state.phase, rollout.state.holds) == (Phase.STAGE, ())


def test_a_hold_for_pairs_ends_as_not_proven() -> None:
    rollout = mirroring(replace(JUDGED, hold_limit_s=100.0), DEAD)
    rollout.ticks(450)

    assert rollout.state.cause is not None
    assert rollout.state.cause.kind is CauseKind.NOT_PROVEN
    assert rollout.state.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("mirror", [MirrorStatus(pairs=60, judged=58), MirrorStatus()])
def test_too_little_traffic_is_no_hindrance_at_the_deadline(mirror: MirrorStatus) -> None:
    rollout = mirroring(mirror=mirror)
    before = rollout.ticks(250).phase
    rollout.ticks(60)

    assert (before, rollout.state.phase) == (Phase.MIRRORING, Phase.STAGE)


@pytest.mark.parametrize("mirror", [DEAD, MirrorStatus(void=VOID)])
def test_a_person_may_begin_stage_1_without_verdicts(mirror: MirrorStatus) -> None:
    rollout = mirroring(mirror=mirror, result=refused())
    rollout.command(CommandKind.PROMOTE)
    rollout.ticks(2)

    assert rollout.state.phase is Phase.STAGE
    assert rollout.state.pairs_waived


def test_without_a_judge_pairs_alone_open_stage_1_as_before() -> None:
    rollout = mirroring(replace(JUDGED, judge=None), MirrorStatus(pairs=100))

    assert rollout.state.phase is Phase.STAGE
    assert "judged" not in rollout.lines


def test_status_says_how_many_pairs_are_judged_and_that_no_user_is_answered() -> None:
    rollout = mirroring(mirror=MirrorStatus(pairs=60, failed=2, judged=40, wrong=(1, 6), missing=(0, 3)))

    (waits,) = rollout_view(rollout.state, rollout.seen).waiting_for
    assert waits == (
        "100 judged pairs of answers (60 copied, judged 40 pairs, wrong: stable 2.5 %, canary 15 %; "
        "without a verdict: stable 0, canary 3; 2 copies failed); users answered by v-new: 0"
    )
    (void,) = rollout_view(rollout.state, seen(MirrorStatus(void=VOID))).waiting_for
    assert f"(0 copied, judged 0 pairs; {VOID}); users answered by v-new: 0" in void
    (unread,) = rollout_view(rollout.state, None).waiting_for
    assert unread == (
        "100 judged pairs of answers (how many there are cannot be read); users answered by v-new: 0"
    )


def test_figures_that_cannot_be_read_neither_open_stage_1_nor_are_the_judges_fault() -> None:
    rollout = mirroring()
    nothing = Observation(rollout.plane.now_s)

    assert not is_mirrored(rollout.state, nothing, 1e9)
    assert unjudged_pairs(rollout.state, nothing, 1e9) == ""
