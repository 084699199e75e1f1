"""State machine of a rollout: `step(state, seen) -> (state, actions)` decides every transition.

    Planning -> Preflight -> Loading -> Warming -> Smoke -> [Mirroring] -> Stage(0..n) -> Promoting -> Baking
                    |           |          |         |           |              |             |          |
                    |           `----------+---------+-----------+--------------+-------------+----------+
                    v                                            v                                       v
                  Failed <--(memory not released)------ RollingBack <--(manual, engine failed)---- Unloading
                                                          `--> RolledBack                Succeeded <--'

Rules:
1. `step` is total and pure: every observation gives a state and actions; it reads no clock. At most one
   transition per tick.
2. The weight rises only after PASS (of this stage, on its own units), after a waiver by a named operator or
   admin, or, where the plan allows it, at the stage's deadline on point estimates, recorded as not proven.
   An undo has no stages: a version that served before gets all traffic after its smoke test, not proven.
   A rollback is allowed from every phase and takes precedence over a forward move in the same tick.
3. Going up: capacity first, then traffic. Going down: traffic to 0, acknowledged and fenced; then drain, then
   take over; then unload until the memory release is confirmed. No version is stopped while it may get
   traffic, or while it alone could answer; a canary whose answers do no harm has its weight again when
   stable is lost while it leaves (`last_answer.py`). Until Unloading, stable keeps capacity for all
   traffic, so a rollback is one route table. A split that gives traffic to a version without a ready replica
   waits while what is published answers (`desired.py`).
4. Final phases are absorbing: only their notices are still delivered. The plan is pinned. A retry is a new
   rollout.
5. A hold blocks forward moves only: never a rollback, never an Unloading that has started.
6. What cannot be read is None and never counts as good. Missing or INVALID evidence neither passes nor
   fails: a stage, the last rise and the end of the bake wait for it (`evidence_gap.py`), held past their
   deadline, and rolled back after `hold_limit_s` of that. A data plane that is unreadable, or does not apply
   the split, for `unreadable_s` causes a rollback. A rollback never gives up before weight 0 is applied: past
   its deadline it pages and keeps trying.
7. Actions are level-triggered: all that is desired and not yet observed, each idempotent. So a crash between
   any two lines loses nothing, and an empty set means that the data plane is as desired.
8. A phase whose condition is met is not ended by its deadline, nor one that met it a short time ago: what it
   waits for must have been lacking for its whole limit in a row, and evidence for `unreadable_s`. After a
   controller restart deadlines start again (a stage gets one planned duration more): the canary is not
   blamed for the controller's absence. Only time that ticks saw counts: not a clock that was set, not a
   controller that stood still. For stable, which may be away, the first weight waits without a limit.

An undo ends as a promotion does, and no condition of it depends on stable, which may be the fault.
Promotion ends with the new version as stable in the route table: weight 10,000 minus the holdback, bake, then
one table with stable=new and canary=None, then the old version is drained and unloaded as in rule 3.
A twin run ends after its last stage: one table with stable alone, then the twin leaves in the same order.

`elapsed.py` keeps time, `conditions.py` evaluates, `departure.py` advances a leaving version, `desired.py`
derives the actions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import assert_never

from controller.errors import BadInput
from controller.quantities import percent
from controller.rollout.actions import Action
from controller.rollout.conditions import (
    is_blink,
    is_done,
    note_first_wait,
    note_lacks,
    reason_to_leave,
    stage_exit,
)
from controller.rollout.departure import advance_departure
from controller.rollout.desired import desired_actions
from controller.rollout.elapsed import carry_over
from controller.rollout.evidence_gap import hold_advice, hold_reason, not_judged
from controller.rollout.journal import (
    drop_delivered,
    end,
    enter,
    hold,
    in_time_order,
    log,
    notice,
    notices,
    publish_alarms,
    publish_sources,
    release,
)
from controller.rollout.judge import note_judge
from controller.rollout.last_answer import kept_bp, note_answers, standing, waiting_text
from controller.rollout.mirroring import mirrored_text, unjudged_pairs
from controller.rollout.observation import (
    CommandKind,
    ManualCommand,
    Observation,
    smoke_text,
)
from controller.rollout.plan import Plan, VersionRef
from controller.rollout.readiness import baked_text
from controller.rollout.state import (
    LIVE,
    Cause,
    CauseKind,
    Departure,
    DepartureStep,
    HoldKind,
    Phase,
    RolloutState,
    cause_words,
)
from controller.rollout.timers import restart_deadlines, update_timers
from controller.rollout.twin_report import passed_stage


def begin(
    rollout: str,
    service: str,
    *,
    stable: VersionRef,
    canary: VersionRef,
    plan: Plan,
    now_s: float,
    byline: str = "",
) -> RolloutState:
    """A new rollout with its plan pinned. byline: who started it and why, for the log.

    Raises BadInput when both arms are one version.
    """
    if stable.id == canary.id:
        raise BadInput(f"{canary.title} is in production already; deploy another version")
    state = RolloutState(rollout, service, stable, canary, plan, Phase.PLANNING, now_s, None, "", now_s)
    state = replace(state, ticked_at_s=now_s)
    if plan.twin:
        text = f"twin run of {stable.title}: stable against itself, nothing will be promoted"
        return enter(state, Phase.PLANNING, now_s, f"{text}; {byline}" if byline else text)
    if plan.undo:
        text = f"undo: {canary.title} served before and replaces {stable.title} without proof"
        return enter(state, Phase.PLANNING, now_s, "; ".join((text, *plan.reasons)))
    text = f"{stable.title} -> {canary.title}, {plan.risk} risk"
    return enter(state, Phase.PLANNING, now_s, f"{text}; {byline}" if byline else text)


def step(state: RolloutState, seen: Observation) -> tuple[RolloutState, tuple[Action, ...]]:
    """The next state, and all actions that it desires and does not observe yet."""
    now_s = seen.now_s if math.isfinite(seen.now_s) else state.ticked_at_s
    last_s = state.ticked_at_s
    state = drop_delivered(carry_over(state, seen, now_s), seen, now_s)
    if state.is_final:
        return state, notices(state)
    state = note_answers(state, seen, now_s)
    commanded = _apply_commands(state, seen, last_s, now_s)
    decided = _decide(commanded, seen, now_s) if commanded.phase is state.phase else commanded
    state = in_time_order(decided, state.log_count)
    return state, (*desired_actions(state, seen), *notices(state))


def _decide(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    if seen.resumed:
        state = restart_deadlines(state, now_s)
    state = note_lacks(update_timers(note_judge(state, seen, now_s), seen, now_s), seen, now_s)
    if seen.evidence is not None:
        state = publish_alarms(state, seen.evidence.alarms, now_s)
        if state.phase in LIVE:
            state = publish_sources(state, seen.evidence.gates, now_s)
    cause = reason_to_leave(state, seen, now_s)
    if cause is None:
        return _advance(state, seen, now_s)
    if cause.kind is CauseKind.GATE and seen.evidence is not None:
        state = replace(state, decisive=seen.evidence.rollback, decided_canary=seen.evidence.canary_total)
        if state.plan.twin:
            cause = replace(cause, text=f"{cause.text}; both arms are one model: a false rollback")
    return _roll_back(state, cause, seen, now_s)


def abandon(state: RolloutState, now_s: float, why: str) -> RolloutState:
    """The rollout as failed, without notices: its versions ended with their cluster."""
    if not state.is_final:
        state = enter(replace(state, holds=()), Phase.FAILED, now_s, why)
    return replace(state, outbox=())


# --- manual commands


def _apply_commands(state: RolloutState, seen: Observation, last_s: float, now_s: float) -> RolloutState:
    """The state after its new commands. last_s: the tick before, which did not see them.

    A command counts from when it was given, also when the controller reads it an hour later.
    """
    for command in sorted(seen.commands, key=lambda command: command.seq):
        if command.seq > state.commands_through:
            at_s = command.at_s if math.isfinite(command.at_s) else now_s
            asked_s = min(max(at_s, last_s), now_s)  # another host's clock may differ
            if state.is_final:  # by the command before
                text = f"{command.kind.value} requested by {command.actor} ({command.role})"
                reason = command.reason or "no reason given"
                applied = log(state, asked_s, f"{text}: {reason}; it has ended already", command.actor)
            else:
                applied = _apply_command(state, command, seen, asked_s, now_s)
            state = replace(applied, commands_through=command.seq)
    return state


def _apply_command(
    state: RolloutState, command: ManualCommand, seen: Observation, asked_s: float, now_s: float
) -> RolloutState:
    kind, actor = command.kind, command.actor
    reason = command.reason or "no reason given"
    text = f"{kind.value} requested by {actor} ({command.role}): {reason}"
    if command.role == "viewer":
        return log(state, asked_s, f"{text}; refused, a viewer may only read", actor)
    is_leaving = state.phase in (Phase.ROLLING_BACK, Phase.UNLOADING)
    match kind:
        case CommandKind.ROLLBACK:
            if state.is_canary_leaving:
                return log(state, asked_s, f"{text}; the canary is leaving already", actor)
            cause = Cause(CauseKind.USER, command.reason or "requested", actor)
            return _roll_back(log(state, asked_s, text, actor), cause, seen, now_s, asked_s=asked_s)
        case CommandKind.PAUSE if not is_leaving:
            return hold(log(state, asked_s, text, actor), HoldKind.PAUSE, command.reason, now_s, actor)
        case CommandKind.RESUME if any(hold.kind is HoldKind.PAUSE for hold in state.holds):
            return release(log(state, asked_s, text, actor), HoldKind.PAUSE)
        case CommandKind.PROMOTE | CommandKind.PROMOTE_FULL if state.plan.twin:
            return log(state, asked_s, f"{text}; no effect in a twin run", actor)
        case CommandKind.PROMOTE | CommandKind.PROMOTE_FULL if state.plan.undo:
            return log(state, asked_s, f"{text}; no effect in an undo, which has no stages", actor)
        case CommandKind.PROMOTE if state.phase is Phase.MIRRORING:
            return replace(log(state, asked_s, text, actor), deadline_at_s=now_s, pairs_waived=True)
        case CommandKind.PROMOTE if state.phase is Phase.STAGE:
            waived = max(state.waived_through, state.stage)
            return replace(log(state, asked_s, text, actor), waived_through=waived)
        case CommandKind.PROMOTE_FULL if not is_leaving and state.phase not in (
            Phase.PROMOTING,
            Phase.BAKING,
        ):
            return replace(log(state, asked_s, text, actor), waived_through=len(state.plan.stages))
        case CommandKind.PAUSE | CommandKind.RESUME | CommandKind.PROMOTE | CommandKind.PROMOTE_FULL:
            return log(state, asked_s, f"{text}; no effect in {state.phase.value}", actor)
        case _:
            assert_never(kind)


# --- backward and forward


def _roll_back(
    state: RolloutState, cause: Cause, seen: Observation, now_s: float, *, asked_s: float | None = None
) -> RolloutState:
    """Start the rollback. Before the canary was launched there is nothing to undo, so it ends at once.

    asked_s: when a person asked for it, from where its total time counts; None: now.
    """
    if not state.launched:
        final = Phase.FAILED if cause.kind in (CauseKind.DEADLINE, CauseKind.PROBE) else Phase.ROLLED_BACK
        return end(replace(state, cause=cause), final, now_s, cause.text)
    began_s = now_s if asked_s is None else asked_s
    kept = kept_bp(state, cause, state.decisive, seen)
    since_s = now_s if state.answers.stable.is_ready is False else None
    leaving, staying, first = state.canary.id, state.stable.id, DepartureStep.RESTORE
    is_promoted = state.phase is Phase.UNLOADING
    departure = Departure(
        leaving, staying, first, began_s, now_s, kept_bp=kept, kept_since_s=since_s, promoted=is_promoted
    )
    is_waiting = not is_promoted and standing(state, departure, seen, now_s).leaving_serves
    if not is_waiting and not is_promoted:
        departure = replace(departure, step=DepartureStep.SHIFT)
    weight_bp = state.weight_bp if is_waiting else 0
    state = replace(state, cause=cause, departure=departure, weight_bp=weight_bp, holds=(), waived_through=-1)
    state = enter(state, Phase.ROLLING_BACK, now_s, f"{cause_words(cause.kind)}: {cause.text}")
    if not is_waiting:
        return state
    text = waiting_text(state)
    return notice(log(state, now_s, text), "waits-for-stable", "page", text, now_s)


def _advance(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    if state.departure is not None:
        return advance_departure(state, state.departure, seen, now_s)
    if not is_done(state, seen, now_s):
        return _hold_if_late(note_first_wait(state, seen, now_s), seen, now_s)
    # Evidence that is enough ends that hold only together with the phase: it may be gone before a pause ends.
    free = release(state, HoldKind.NOT_PROVEN)
    if free.holds:
        return state
    state, plan = free, state.plan
    match state.phase:
        case Phase.PLANNING:
            return enter(state, Phase.PREFLIGHT, now_s, "the plan is pinned")
        case Phase.PREFLIGHT:
            return enter(replace(state, launched=True), Phase.LOADING, now_s, "preflight passed")
        case Phase.LOADING:
            # An undo is urgent, and its version was warm before: only the smoke test stands before traffic.
            following = Phase.SMOKE if plan.undo else Phase.WARMING
            return enter(state, following, now_s, f"{state.canary.title} is loaded")
        case Phase.WARMING:
            return enter(state, Phase.SMOKE, now_s, "warm-up passed")
        case Phase.SMOKE if plan.mirror is not None and plan.stages and state.waived_through < 0:
            why = (
                f"{smoke_text(state, seen)}; {percent(plan.mirror.share_bp)} of stable's requests are copied"
            )
            return enter(replace(state, exposed=True), Phase.MIRRORING, now_s, why)
        case Phase.SMOKE:
            return _enter_stage(state, 0, now_s, smoke_text(state, seen))
        case Phase.MIRRORING:
            return _enter_stage(state, 0, now_s, mirrored_text(state, seen))
        case Phase.STAGE:
            return _pass_stage(state, seen, now_s)
        case Phase.PROMOTING:
            if state.weight_bp != plan.promoted_bp:
                state = replace(state, weight_bp=plan.promoted_bp, acked_at_s=None, lacking_since_s=now_s)
                state = replace(state, deadline_at_s=now_s + plan.promote_s, exposed=True)
                text = f"capacity is ready: {percent(state.weight_bp)} to {state.canary.title}"
                return log(state, now_s, text)
            return enter(state, Phase.BAKING, now_s, f"baking for {plan.bake_s:g} s", keep_ack=True)
        case Phase.BAKING:
            departure = Departure(state.stable.id, state.canary.id, DepartureStep.SHIFT, now_s, now_s)
            state = replace(state, departure=departure, weight_bp=0)
            return enter(state, Phase.UNLOADING, now_s, baked_text(state, now_s))
        case Phase.UNLOADING | Phase.ROLLING_BACK | Phase.SUCCEEDED | Phase.ROLLED_BACK | Phase.FAILED:
            return state
        case _:
            assert_never(state.phase)


def _pass_stage(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Leave the stage forward, recording why and on what evidence."""
    how, evidence = stage_exit(state, seen, now_s), seen.evidence
    if how is None:
        return state
    state = replace(state, passed=(*state.passed, passed_stage(state, how, evidence, now_s)))
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


def _hold_if_late(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Past the deadline of a smoke test or of pairs without a verdict, of a stage, of the last rise or of the
    bake: hold, and page with what is missing."""
    is_untested = state.phase is Phase.SMOKE and bool(not_judged(state, seen))
    is_held = state.phase in LIVE or is_untested or bool(unjudged_pairs(state, seen, now_s))
    if not state.is_late(now_s) or not is_held or is_blink(state, now_s):
        return state
    why = hold_reason(state, seen, now_s)
    if state.phase is Phase.STAGE and state.plan.stages[state.stage].promote_if_point_ok:
        points = seen.evidence.points if seen.evidence is not None else None
        why += f"; not promoted on point estimates: {points.text}" if points and not points.within else ""
    return hold(state, HoldKind.NOT_PROVEN, why, now_s, page=True, advice=hold_advice(state))


def _enter_stage(state: RolloutState, index: int, now_s: float, why: str) -> RolloutState:
    stages = state.plan.stages
    if index >= len(stages) or state.waived_through >= len(stages):
        state = replace(state, stage=len(stages))
        if state.plan.twin:
            departure = Departure(state.canary.id, state.stable.id, DepartureStep.SHIFT, now_s, now_s)
            state = replace(state, departure=departure, weight_bp=0)
            return enter(state, Phase.UNLOADING, now_s, f"{why}; twin run: nothing to promote")
        return enter(state, Phase.PROMOTING, now_s, why, keep_ack=True)
    state = replace(state, stage=index, weight_bp=stages[index].weight_bp, exposed=True)
    return enter(state, Phase.STAGE, now_s, f"{why}; now {percent(state.weight_bp)}")
