"""Desired actions of a state: everything that it needs and that is not observed yet, each idempotent.

Invariant: capacity is added before traffic, and no version is stopped in the tick that removes its traffic.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from controller.quantities import FULL_BP
from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    ExamineJudge,
    ProbeKind,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.judge import asked, is_examination_due
from controller.rollout.observation import (
    Observation,
    VersionPhase,
    answering_replicas,
    is_applied,
    is_unloaded,
    ready_replicas,
    version_status,
)
from controller.rollout.state import LIVE, Departure, DepartureStep, Phase, RolloutState


def desired_actions(state: RolloutState, seen: Observation) -> tuple[Action, ...]:
    canary = state.canary.id
    if state.is_final:
        return ()
    if state.departure is not None:
        return _departure_actions(state, state.departure, seen)
    actions: list[Action] = []
    if state.launched and ready_replicas(seen, canary) < canary_replicas(state):
        actions.append(EnsureVersion(canary, canary_replicas(state)))
    if (judge := state.plan.judge) is not None and is_examination_due(state, state.ticked_at_s):
        actions.append(ExamineJudge(judge, state.judge.attempts + 1))
    match state.phase:
        case Phase.PREFLIGHT:
            # Leftovers of an earlier attempt are unloaded before the free memory is measured.
            has_leftovers = seen.versions is not None and not is_unloaded(seen, canary)
            actions.append(StopVersion(canary) if has_leftovers else RunProbe(ProbeKind.PREFLIGHT, canary))
        case Phase.WARMING:
            actions.append(RunProbe(ProbeKind.WARM, canary, state.plan.warmup_tokens))
        case Phase.SMOKE:
            actions.append(RunProbe(ProbeKind.SMOKE, canary))
        case Phase.MIRRORING | Phase.STAGE | Phase.PROMOTING | Phase.BAKING:
            actions += _missing_split(state, seen)
        case _:
            pass
    return tuple(actions)


def _departure_actions(state: RolloutState, departure: Departure, seen: Observation) -> tuple[Action, ...]:
    split = _missing_split(state, seen)
    match departure.step:
        case DepartureStep.RESTORE:
            return (
                EnsureVersion(departure.staying, state.stable.replicas),
                *_end_of_drain(state, departure, seen),
                *(split if state.weight_bp or _is_own_table(departure, state, seen) else ()),
            )
        case DepartureStep.SHIFT:
            return split
        case DepartureStep.DRAIN:
            return (*split, DrainVersion(departure.leaving))
        case DepartureStep.CANCEL:
            return (*split, CancelVersion(departure.leaving))
        case DepartureStep.UNLOAD:
            return split if is_unloaded(seen, departure.leaving) else (*split, StopVersion(departure.leaving))
        case _:
            assert_never(departure.step)


def _end_of_drain(state: RolloutState, departure: Departure, seen: Observation) -> tuple[Action, ...]:
    """The leaving version back in rotation, when it had begun to leave."""
    status = version_status(seen, departure.leaving)
    if status is None or status.phase is not VersionPhase.DRAINING:
        return ()
    return (EnsureVersion(departure.leaving, canary_replicas(replace(state, phase=Phase.STAGE))),)


def _is_own_table(departure: Departure, state: RolloutState, seen: Observation) -> bool:
    """True: the route table names these two versions at most, and no person moved the traffic directly."""
    split = seen.split
    if split is None or state.id in split.tombstoned:
        return False
    return {split.stable, split.canary} <= {departure.staying, departure.leaving, None}


def _missing_split(state: RolloutState, seen: Observation) -> tuple[Action, ...]:
    split = desired_split(state)
    is_due = state.exposed and not is_applied(seen, split) and silent_arm(state, seen) is None
    return (split,) if is_due else ()


def silent_arm(state: RolloutState, seen: Observation) -> str | None:
    """The version without a ready replica for which the split waits; None: it does not wait.

    It waits while it would give that version traffic and what is published answers: a stage resumed from an
    older copy of the database, or a canary that the routers had withdrawn. An empty table answers nobody.
    """
    split, published = desired_split(state), seen.split
    if split.weight_bp == 0 or seen.versions is None or published is None:
        return None
    is_published = (split.stable, split.canary, split.weight_bp) == (
        published.stable,
        published.canary,
        published.weight_bp,
    )
    current = _with_traffic(published.stable, published.canary, published.weight_bp)
    if is_published or not any(answering_replicas(seen, version) for version in current):
        return None
    wanted = _with_traffic(split.stable, split.canary, split.weight_bp)
    return next((version for version in wanted if not answering_replicas(seen, version)), None)


def _with_traffic(stable: str | None, canary: str | None, weight_bp: int) -> tuple[str, ...]:
    """The versions to which a route table sends requests."""
    shares = ((stable, FULL_BP - weight_bp), (canary, weight_bp))
    return tuple(version for version, share_bp in shares if version is not None and share_bp > 0)


def desired_split(state: RolloutState) -> SetSplit:
    """The route table of this state."""
    # Weight is left only to a canary that waits, in RESTORE, for a stable version that does not answer.
    departure = state.departure
    if departure is not None and state.weight_bp == 0:
        has_all = departure.step is DepartureStep.RESTORE and departure.promoted
        return SetSplit(departure.leaving if has_all else departure.staying, None, 0, state.stage)
    mirror = state.plan.mirror
    if state.phase is Phase.MIRRORING and mirror is not None:
        of_copies = state.stable.id, state.canary.id, 0, state.stage, mirror.share_bp
        return SetSplit(*of_copies, judge=asked(state))
    if state.weight_bp == 0:
        return SetSplit(state.stable.id, None, 0, state.stage)
    # The bake keeps the audiences of the last stage, so that nobody goes back to the old version.
    last = len(state.plan.stages) - 1
    audience_bp = state.plan.stages[min(state.stage, last)].audience_bp if last >= 0 else ()
    return SetSplit(
        *(state.stable.id, state.canary.id, state.weight_bp, state.stage),
        audience_bp=audience_bp,
        judge=asked(state),
    )


def canary_replicas(state: RolloutState) -> int:
    """Canary replicas to run: enough for the next stage, so that capacity is loaded one stage ahead."""
    stages = state.plan.stages
    ahead = 0 if state.phase not in LIVE else state.stage + 1
    if ahead >= len(stages) or state.waived_through >= len(stages):
        return state.canary.replicas
    return stages[ahead].replicas
