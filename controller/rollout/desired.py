"""What a state wants of the world and does not see in it yet: the whole set, each action idempotent.

Invariant: the order going up is capacity, then traffic; nothing is stopped in the same breath as its traffic.
"""

from __future__ import annotations

from typing import assert_never

from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    ProbeKind,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.observation import Observation, is_applied, is_unloaded, ready_replicas
from controller.rollout.state import LIVE, Departure, DepartureStep, Phase, RolloutState


def desired_actions(state: RolloutState, seen: Observation) -> tuple[Action, ...]:
    canary, going = state.canary.id, state.departure
    if state.is_final:
        return ()
    if going is not None:
        return _desired_departure(state, going, seen)
    missing: list[Action] = []
    if state.launched and ready_replicas(seen, canary) < replicas(state):
        missing.append(EnsureVersion(canary, replicas(state)))
    match state.phase:
        case Phase.PREFLIGHT:
            # What an earlier attempt left behind is freed before the fit is measured.
            left = seen.versions is not None and not is_unloaded(seen, canary)
            missing.append(StopVersion(canary) if left else RunProbe(ProbeKind.PREFLIGHT, canary))
        case Phase.WARMING:
            missing.append(RunProbe(ProbeKind.WARM, canary, state.plan.warmup_tokens))
        case Phase.SMOKE:
            missing.append(RunProbe(ProbeKind.SMOKE, canary))
        case Phase.STAGE | Phase.PROMOTING | Phase.BAKING:
            if state.exposed and not is_applied(seen, desired_split(state)):
                missing.append(desired_split(state))
        case _:
            pass
    return tuple(missing)


def _desired_departure(state: RolloutState, going: Departure, seen: Observation) -> tuple[Action, ...]:
    table = () if not state.exposed or is_applied(seen, desired_split(state)) else (desired_split(state),)
    match going.step:
        case DepartureStep.RESTORE:
            return (EnsureVersion(going.staying, state.stable.replicas),)
        case DepartureStep.SHIFT:
            return table
        case DepartureStep.DRAIN:
            return (*table, DrainVersion(going.leaving))
        case DepartureStep.CANCEL:
            return (*table, CancelVersion(going.leaving))
        case DepartureStep.UNLOAD:
            return table if is_unloaded(seen, going.leaving) else (*table, StopVersion(going.leaving))
        case _:
            assert_never(going.step)


def desired_split(state: RolloutState) -> SetSplit:
    """The route table that this state wants."""
    if state.departure is not None:
        return SetSplit(state.departure.staying, None, 0, state.stage)
    canary = state.canary.id if state.weight_bp > 0 else None
    return SetSplit(state.stable.id, canary, state.weight_bp, state.stage)


def replicas(state: RolloutState) -> int:
    """Canary replicas to have: enough for the stage after this one, so that loading is a stage ahead."""
    stages = state.plan.stages
    ahead = 0 if state.phase not in LIVE else state.stage + 1
    if ahead >= len(stages) or state.waived_through >= len(stages):
        return state.canary.replicas
    return stages[ahead].replicas
