"""The rollout machine: `step(state, seen) -> (state, actions)`. Every transition of a rollout is here.

    Planning -> Preflight -> Loading -> Warming -> Smoke -> [Mirroring] -> Stage(0..n) -> Promoting -> Baking
                    |           |          |         |           |              |             |          |
                    |           `----------+---------+-----------+--------------+-------------+----------+
                    v                                            v                                       v
                  Failed <--(memory not seen freed)-- RollingBack <--(a person, a dead engine)-- Unloading
                                                          `--> RolledBack                Succeeded <--'

Rules:
1. `step` is total and pure: any observation gives a state and actions; it reads no clock. One transition a
   tick.
2. The weight rises only after PASS (of this stage, on its own units), a waiver by a named operator or
   admin, or, where the plan says so, at the stage's deadline on point estimates, recorded as not proven. A
   rollback is allowed from every phase, and beats any forward move seen in the same tick.
3. Going up: capacity, then traffic. Going down: traffic to 0, acknowledged and fenced; drain, then take
   over; then unload, and see the memory freed. Nothing is stopped while it may get traffic. Until Unloading,
   stable keeps the capacity for its whole traffic, so going back is one table.
4. Final phases absorb: only their notices are still delivered. The plan is pinned. A retry is another
   rollout.
5. A hold blocks forward moves only: never a rollback, never the end of an Unloading that has begun.
6. What cannot be read is None and never counts as good. No evidence, or INVALID, neither passes nor fails.
   A data plane that cannot be read, or does not do what it was told, for `unreadable_s` rolls back. A
   rollback itself never gives up before the weight of 0 stands: past its deadline it pages, and goes on.
7. Actions are level-triggered: the whole set that is wanted and not yet seen, each idempotent. So a crash
   between any two lines loses nothing, and an empty set means that the world is as wished.
8. A phase whose condition is met is never ended by its deadline. After a restart time-outs begin anew (a
   stage gets one planned duration more): the controller's own absence is no fault of the canary.

Promotion ends with the new version as the table's stable: weight 10,000 less the holdback, bake, then one
table with stable=new and canary=None, then the old version is drained and unloaded in the order of rule 3.
A twin run ends after its last stage: one table with stable alone, then the twin leaves in the same order.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, assert_never

from controller.errors import BadInput
from controller.quantities import FULL_BP, percent
from controller.rollout.actions import Action
from controller.rollout.conditions import is_done, passage, reason_to_leave, what_is_missing
from controller.rollout.desired import desired_actions, desired_split
from controller.rollout.journal import (
    drop_delivered,
    hold,
    last_time_s,
    log,
    notice,
    notices,
    publish_alarms,
    release,
)
from controller.rollout.observation import (
    CommandKind,
    ManualCommand,
    Observation,
    VersionPhase,
    is_applied,
    is_idle,
    is_unloaded,
    ready_replicas,
    version_status,
)
from controller.rollout.plan import Plan, VersionRef
from controller.rollout.state import (
    LIVE,
    Cause,
    CauseKind,
    Departure,
    DepartureStep,
    HoldKind,
    Phase,
    RolloutState,
)
from controller.rollout.twin_report import stage_pass, twin_report, unproven

Result = tuple[RolloutState, tuple[Action, ...]]


def begin(
    rollout: str, service: str, *, stable: VersionRef, canary: VersionRef, plan: Plan, now_s: float
) -> RolloutState:
    """A rollout at its start, with its plan pinned. Raises BadInput when both arms are one version."""
    if stable.id == canary.id:
        raise BadInput(f"{canary.id} is in production already; deploy another version")
    state = RolloutState(rollout, service, stable, canary, plan, Phase.PLANNING, now_s, None, "", now_s)
    if plan.twin:
        text = f"twin run of {stable.id}: stable against itself, nothing will be promoted"
        return _enter(state, Phase.PLANNING, now_s, text)
    return _enter(state, Phase.PLANNING, now_s, f"{stable.id} -> {canary.id}, {plan.risk} risk")


def step(state: RolloutState, seen: Observation) -> Result:
    """The next state, and everything that is wanted of the world and not seen in it yet."""
    now_s = seen.now_s if math.isfinite(seen.now_s) else last_time_s(state)
    state = drop_delivered(state, seen, now_s)
    if state.is_final:
        return state, notices(state)
    asked = _take_commands(state, seen, now_s)
    if asked.phase is state.phase:
        state = _decide(asked, seen, now_s)
    else:
        state = asked
    return state, (*desired_actions(state, seen), *notices(state))


def _decide(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    if seen.resumed:
        state = _rearm(state, now_s)
    state = _keep_time(state, seen, now_s)
    if seen.evidence is not None:
        state = publish_alarms(state, seen.evidence.alarms, now_s)
    cause = reason_to_leave(state, seen, now_s)
    if cause is None:
        return _advance(state, seen, now_s)
    if cause.kind is CauseKind.GATE and seen.evidence is not None:
        state = replace(state, decisive=seen.evidence.rollback, decided_canary=seen.evidence.canary_total)
        if state.plan.twin:
            cause = replace(cause, text=f"{cause.text}; both arms are one model: a false rollback")
    return _leave(state, cause, now_s)


def abandon(state: RolloutState, now_s: float, why: str) -> RolloutState:
    """The rollout, over: its versions went with their cluster, and nobody is left to be told of it."""
    if not state.is_final:
        state = _enter(replace(state, holds=()), Phase.FAILED, now_s, why)
    return replace(state, outbox=())


# --- what people asked


def _take_commands(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    for command in sorted(seen.commands, key=lambda command: command.seq):
        if command.seq > state.commands_through:
            taken = state if state.is_final else _take_command(state, command, now_s)
            state = replace(taken, commands_through=command.seq)
    return state


def _take_command(state: RolloutState, command: ManualCommand, now_s: float) -> RolloutState:
    reason = command.reason or "no reason given"
    what = f"{command.kind.value} asked by {command.actor} ({command.role}): {reason}"
    if command.role == "viewer":
        return log(state, now_s, f"{what}; refused, a viewer only looks", command.actor)
    leaving = state.phase in (Phase.ROLLING_BACK, Phase.UNLOADING)
    match command.kind:
        case CommandKind.ROLLBACK:
            if state.goes_back:
                return log(state, now_s, f"{what}; it is going back already", command.actor)
            state = log(state, now_s, what, command.actor)
            return _leave(state, Cause(CauseKind.USER, command.reason or "asked", command.actor), now_s)
        case CommandKind.PAUSE if not leaving:
            return hold(
                log(state, now_s, what, command.actor), HoldKind.PAUSE, command.reason, now_s, command.actor
            )
        case CommandKind.RESUME if not leaving:
            return release(log(state, now_s, what, command.actor), HoldKind.PAUSE)
        case CommandKind.PROMOTE | CommandKind.PROMOTE_FULL if state.plan.twin:
            return log(state, now_s, f"{what}; it does nothing in a twin run", command.actor)
        case CommandKind.PROMOTE if state.phase is Phase.STAGE:
            waived = max(state.waived_through, state.stage)
            return replace(log(state, now_s, what, command.actor), waived_through=waived)
        case CommandKind.PROMOTE_FULL if not leaving:
            return replace(log(state, now_s, what, command.actor), waived_through=len(state.plan.stages))
        case CommandKind.PAUSE | CommandKind.RESUME | CommandKind.PROMOTE | CommandKind.PROMOTE_FULL:
            return log(state, now_s, f"{what}; it does nothing in {state.phase.value}", command.actor)
        case _:
            assert_never(command.kind)


# --- time: since when is something wrong


def _rearm(state: RolloutState, now_s: float) -> RolloutState:
    state = replace(state, blind_since_s=None, unready_since_s=None)
    allowance_s = _allowance_s(state)
    if state.phase is Phase.STAGE and state.deadline_at_s is not None:
        # Its routers had given the share back: one planned duration more, not the whole allowance again.
        again_s = now_s + state.plan.stages[state.stage].duration_s
        state = replace(state, deadline_at_s=max(state.deadline_at_s, again_s))
    elif allowance_s is not None:
        state = replace(state, deadline_at_s=now_s + allowance_s)
    if state.departure is not None:
        # The command of this step may never have been given; only total_ms counts the absence.
        state = replace(state, departure=replace(state.departure, step_at_s=now_s))
    return log(state, now_s, "a controller took over")


def _keep_time(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Run the clocks of blindness and unreadiness; note the moment at which a weight stands everywhere."""
    if state.phase in (Phase.PLANNING, Phase.PREFLIGHT, Phase.ROLLING_BACK, Phase.UNLOADING):
        return replace(state, blind_since_s=None, unready_since_s=None)
    stands = is_applied(seen, desired_split(state))
    blind = seen.split is None or seen.versions is None or (state.phase in LIVE and not stands)
    state = replace(state, blind_since_s=_since(state.blind_since_s, blind, now_s))
    if seen.versions is not None:
        unready = state.phase is not Phase.LOADING and ready_replicas(seen, state.canary.id) == 0
        state = replace(state, unready_since_s=_since(state.unready_since_s, unready, now_s))
    unacked = state.phase in LIVE and state.acked_at_s is None and state.exposed
    if unacked and stands and seen.split is not None:
        state = replace(state, acked_at_s=now_s)
        if state.phase is Phase.STAGE:
            state = replace(state, deadline_at_s=now_s + state.plan.stages[state.stage].deadline_s)
        state = log(state, now_s, f"{percent(state.weight_bp)} stands on every router ({seen.split.how})")
    return _both_arms(state, seen, now_s)


def _since(since_s: float | None, holds: bool, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s


def _both_arms(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Hold while both arms fail: that is not the canary's doing. Unreadable evidence changes nothing."""
    if seen.evidence is None or state.phase not in LIVE:
        return state
    guard = next((guard for guard in seen.evidence.guards if guard.both_arms), None)
    if guard is None:
        return release(state, HoldKind.BOTH_ARMS)
    return hold(state, HoldKind.BOTH_ARMS, f"{guard.name}: {guard.text}; stable too", now_s, page=True)


def _leave(state: RolloutState, cause: Cause, now_s: float) -> RolloutState:
    """Start the way back. Out of Preflight there is nothing to take back."""
    if not state.launched:
        final = Phase.FAILED if cause.kind in (CauseKind.DEADLINE, CauseKind.GUARD) else Phase.ROLLED_BACK
        return _end(replace(state, cause=cause), final, now_s, cause.text)
    first = DepartureStep.RESTORE if state.phase is Phase.UNLOADING else DepartureStep.SHIFT
    departure = Departure(state.canary.id, state.stable.id, first, now_s, now_s)
    state = replace(state, cause=cause, departure=departure, weight_bp=0, holds=(), waived_through=-1)
    return _enter(state, Phase.ROLLING_BACK, now_s, f"{cause.kind.value}: {cause.text}")


# --- forward


def _advance(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    if state.departure is not None:
        return _advance_departure(state, state.departure, seen, now_s)
    if not is_done(state, seen, now_s):
        return _note_deadline(state, seen, now_s)
    state = release(state, HoldKind.NOT_PROVEN)
    if state.holds:
        return state
    plan = state.plan
    match state.phase:
        case Phase.PLANNING:
            return _enter(state, Phase.PREFLIGHT, now_s, "the plan is pinned")
        case Phase.PREFLIGHT:
            return _enter(replace(state, launched=True), Phase.LOADING, now_s, "preflight passed")
        case Phase.LOADING:
            return _enter(state, Phase.WARMING, now_s, f"{state.canary.id} is loaded")
        case Phase.WARMING:
            return _enter(state, Phase.SMOKE, now_s, "warm")
        case Phase.SMOKE | Phase.MIRRORING:
            return _enter_stage(state, 0, now_s, "smoke passed")
        case Phase.STAGE:
            return _pass_stage(state, seen, now_s)
        case Phase.PROMOTING:
            if state.weight_bp != FULL_BP - plan.holdback_bp:
                state = replace(state, weight_bp=FULL_BP - plan.holdback_bp, acked_at_s=None)
                state = replace(state, deadline_at_s=now_s + plan.promote_s, exposed=True)
                text = f"capacity is ready: {percent(state.weight_bp)} to {state.canary.id}"
                return log(state, now_s, text)
            return _enter(state, Phase.BAKING, now_s, f"baking for {plan.bake_s:g} s", keep_ack=True)
        case Phase.BAKING:
            departure = Departure(state.stable.id, state.canary.id, DepartureStep.SHIFT, now_s, now_s)
            state = replace(state, departure=departure, weight_bp=0)
            return _enter(state, Phase.UNLOADING, now_s, f"baked: {state.canary.id} becomes stable")
        case Phase.UNLOADING | Phase.ROLLING_BACK | Phase.SUCCEEDED | Phase.ROLLED_BACK | Phase.FAILED:
            return state
        case _:
            assert_never(state.phase)


def _pass_stage(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Leave the stage upwards, with how and on what written down."""
    how, evidence = passage(state, seen, now_s), seen.evidence
    if how is None:
        return state
    state = replace(state, passed=(*state.passed, stage_pass(state, how, evidence, now_s)))
    match how:
        case "waived":
            why = "proof waived by a person"
        case "proven":
            why = f"PASS at {percent(state.weight_bp)}"
            state = replace(state, decided_canary=evidence.canary_total if evidence is not None else None)
        case "point_estimates":
            points = evidence.points.text if evidence is not None and evidence.points is not None else ""
            why = f"not proven: promoted on point estimates ({points})"
            text = f"{state.service}: stage {state.stage + 1} {why}"
            state = notice(state, f"points-{state.stage + 1}", "info", text, now_s)
        case _:
            assert_never(how)
    return _enter_stage(state, state.stage + 1, now_s, why)


def _note_deadline(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Past the deadline of a stage or of the bake: hold, and page with what is missing."""
    late = state.deadline_at_s is not None and now_s >= state.deadline_at_s
    if not late or state.phase not in (Phase.STAGE, Phase.BAKING):
        return state
    why = what_is_missing(seen) or "undecided at the deadline; give it traffic or time, or promote it by name"
    if state.phase is Phase.STAGE and state.plan.stages[state.stage].promote_if_point_ok:
        points = seen.evidence.points if seen.evidence is not None else None
        why += f"; not promoted on point estimates: {points.text}" if points and not points.within else ""
    return hold(state, HoldKind.NOT_PROVEN, why, now_s, page=True)


def _enter_stage(state: RolloutState, index: int, now_s: float, why: str) -> RolloutState:
    stages = state.plan.stages
    if index >= len(stages) or state.waived_through >= len(stages):
        state = replace(state, stage=len(stages))
        if state.plan.twin:
            going = Departure(state.canary.id, state.stable.id, DepartureStep.SHIFT, now_s, now_s)
            state = replace(state, departure=going, weight_bp=0)
            return _enter(state, Phase.UNLOADING, now_s, f"{why}; twin run: nothing to promote")
        return _enter(state, Phase.PROMOTING, now_s, why, keep_ack=True)
    state = replace(state, stage=index, weight_bp=stages[index].weight_bp, exposed=True)
    return _enter(state, Phase.STAGE, now_s, f"{why}; now {percent(state.weight_bp)}")


# --- a version leaves: the canary in RollingBack, the old stable in Unloading


def _advance_departure(
    state: RolloutState, going: Departure, seen: Observation, now_s: float
) -> RolloutState:
    late = state.deadline_at_s is not None and now_s >= state.deadline_at_s
    match going.step:
        case DepartureStep.RESTORE:
            return _restore(state, going, seen, now_s, late=late)
        case DepartureStep.SHIFT:
            return _shift(state, going, seen, now_s, late=late)
        case DepartureStep.DRAIN:
            return _drain(state, going, seen, now_s)
        case DepartureStep.CANCEL:
            return _cancel(state, going, seen, now_s)
        case DepartureStep.UNLOAD:
            return _unload(state, going, seen, now_s, late=late)
        case _:
            assert_never(going.step)


def _restore(
    state: RolloutState, going: Departure, seen: Observation, now_s: float, *, late: bool
) -> RolloutState:
    back = version_status(seen, going.staying)
    if ready_replicas(seen, going.staying) >= state.stable.replicas:
        return _next_step(state, going, DepartureStep.SHIFT, now_s, f"{going.staying} is ready again")
    if late or (back is not None and back.phase is VersionPhase.FAILED):
        stuck = replace(going, leaving=going.staying, staying=going.leaving)
        text = f"{going.staying} could not be loaded again; {going.leaving} serves: see the engine's log"
        return _end(replace(state, departure=stuck), Phase.FAILED, now_s, text)
    return state


def _shift(
    state: RolloutState, going: Departure, seen: Observation, now_s: float, *, late: bool
) -> RolloutState:
    spent_ms = _spent_ms(going, now_s)
    if is_applied(seen, desired_split(state)) or not state.exposed:
        how = seen.split.how if state.exposed and seen.split is not None else "never exposed"
        text = f"all traffic is on {going.staying} ({how}, {spent_ms:.0f} ms)"
        going = replace(going, traffic_shift_ms=spent_ms)
        return _next_step(state, going, DepartureStep.DRAIN, now_s, text)
    if not late:
        return state
    # Page once, and go on: a weight above 0 is never left standing.
    text = f"{state.service}: weight 0 is not acknowledged after {spent_ms / 1000:.0f} s; still trying"
    state = replace(log(state, now_s, text), deadline_at_s=None)
    return notice(state, "stuck", "page", text, now_s)


def _drain(state: RolloutState, going: Departure, seen: Observation, now_s: float) -> RolloutState:
    spent_ms = _spent_ms(going, now_s)
    # A count from before the table stood says nothing: a request may have come after it.
    is_fresh = not state.exposed or spent_ms >= state.plan.count_lag_s * 1000
    if is_fresh and seen.versions is not None and is_idle(version_status(seen, going.leaving)):
        going = replace(going, drain_ms=spent_ms)
        return _next_step(state, going, DepartureStep.UNLOAD, now_s, f"drained ({spent_ms:.0f} ms)")
    if spent_ms >= state.plan.drain_s * 1000:
        going = replace(going, drain_ms=spent_ms, cancelled=True)
        text = f"{state.plan.drain_s:g} s of drain are over: what is in flight is taken over"
        return _next_step(state, going, DepartureStep.CANCEL, now_s, text)
    return state


def _cancel(state: RolloutState, going: Departure, seen: Observation, now_s: float) -> RolloutState:
    spent_ms = _spent_ms(going, now_s)
    idle = seen.versions is not None and is_idle(version_status(seen, going.leaving))
    if not idle and spent_ms < state.plan.cancel_s * 1000:
        return state
    going = replace(going, drain_ms=(going.drain_ms or 0.0) + spent_ms)
    return _next_step(state, going, DepartureStep.UNLOAD, now_s, f"taken over ({spent_ms:.0f} ms)")


def _unload(
    state: RolloutState, going: Departure, seen: Observation, now_s: float, *, late: bool
) -> RolloutState:
    if is_unloaded(seen, going.leaving):
        total_ms = max(0.0, now_s - going.started_at_s) * 1000
        going = replace(going, unload_ms=_spent_ms(going, now_s), total_ms=total_ms)
        return _departed(replace(state, departure=going), going, now_s)
    if late:
        text = f"{going.leaving} gets no traffic, but its memory was not seen freed within "
        text += f"{state.plan.unload_s:g} s; {going.staying} serves: look for its process and end it"
        return _end(state, Phase.FAILED, now_s, text)
    return state


def _spent_ms(going: Departure, now_s: float) -> float:
    return max(0.0, now_s - going.step_at_s) * 1000


def _departed(state: RolloutState, going: Departure, now_s: float) -> RolloutState:
    if state.phase is Phase.UNLOADING:
        text = f"{going.staying} is stable, {going.leaving} is unloaded{unproven(state)}"
        return _end(state, Phase.SUCCEEDED, now_s, twin_report(state) if state.plan.twin else text)
    why = f"{state.cause.kind.value}: {state.cause.text}" if state.cause is not None else "rolled back"
    return _end(
        state, Phase.ROLLED_BACK, now_s, f"{why}; {going.staying} serves, {going.leaving} is unloaded"
    )


def _next_step(
    state: RolloutState, going: Departure, to: DepartureStep, now_s: float, text: str
) -> RolloutState:
    state = replace(state, departure=replace(going, step=to, step_at_s=now_s))
    return log(replace(state, deadline_at_s=now_s + (_allowance_s(state) or 0.0)), now_s, text)


# --- writing the state


def _enter(
    state: RolloutState, phase: Phase, now_s: float, reason: str, *, keep_ack: bool = False
) -> RolloutState:
    acked_at_s = state.acked_at_s if keep_ack else None
    state = replace(state, phase=phase, entered_at_s=now_s, reason=reason, acked_at_s=acked_at_s)
    state = replace(state, blind_since_s=None, unready_since_s=None)
    allowance_s = _allowance_s(state)
    state = replace(state, deadline_at_s=None if allowance_s is None else now_s + allowance_s)
    name = f"stage {state.stage + 1} of {len(state.plan.stages)}" if phase is Phase.STAGE else phase.value
    return log(state, now_s, f"{name}: {reason}")


def _allowance_s(state: RolloutState) -> float | None:
    """How long this phase (or this step of a departure) may take; None: as long as it wants."""
    plan = state.plan
    if state.departure is not None and state.phase in (Phase.ROLLING_BACK, Phase.UNLOADING):
        allowances = {
            DepartureStep.RESTORE: plan.load_s,
            DepartureStep.SHIFT: plan.unreadable_s,
            DepartureStep.DRAIN: plan.drain_s,
            DepartureStep.CANCEL: plan.cancel_s,
            DepartureStep.UNLOAD: plan.unload_s,
        }
        return allowances[state.departure.step]
    match state.phase:
        case Phase.PREFLIGHT:
            return plan.preflight_s
        case Phase.LOADING:
            return plan.load_s
        case Phase.WARMING:
            return plan.warm_s
        case Phase.SMOKE:
            return plan.smoke_s
        case Phase.STAGE:
            return plan.stages[state.stage].deadline_s
        case Phase.PROMOTING:
            at_full = state.weight_bp == FULL_BP - plan.holdback_bp
            return plan.promote_s if at_full else plan.load_s
        case Phase.BAKING:
            return 2 * plan.bake_s + plan.unreadable_s
        case _:
            return None


def _end(state: RolloutState, phase: Phase, now_s: float, reason: str) -> RolloutState:
    state = _enter(replace(state, holds=()), phase, now_s, reason)
    severity: Literal["info", "page"] = "info" if phase is Phase.SUCCEEDED else "page"
    return notice(state, phase.value, severity, f"{state.service}: {phase.value}: {reason}", now_s)
