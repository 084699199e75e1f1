"""Timers of a rollout: deadlines after a takeover, how long the data plane or the canary is not ready."""

from __future__ import annotations

from dataclasses import replace

from controller.quantities import percent
from controller.rollout.desired import desired_split, silent_arm
from controller.rollout.journal import PAGE_AGAIN_S, hold, log, release, since, time_limit_s, told, untold
from controller.rollout.observation import (
    Observation,
    VersionPhase,
    applied_words,
    is_applied,
    ready_replicas,
    version_status,
)
from controller.rollout.readiness import note_ready
from controller.rollout.state import LIVE, PUBLISHED, Hold, HoldKind, Phase, RolloutState

# A guard looks at the last requests only: between two bursts of errors it is quiet for a moment.
QUIET_S = 60.0


def restart_deadlines(state: RolloutState, now_s: float) -> RolloutState:
    """Give the phase its time again, but no more than twice its limit of time that ticks saw.

    The canary is not blamed for the controller's absence, in which its engines may have gone as well; a
    controller that restarts again and again does not keep it in one phase for ever.
    """
    state = replace(state, unreadable_since_s=None, unready_since_s=None)
    limit_s = time_limit_s(state)
    if limit_s is not None and state.deadline_at_s is not None:
        # The routers of a stage had withdrawn the canary: one planned duration more is enough.
        is_stage = state.phase is Phase.STAGE
        more_s = state.plan.stages[state.stage].duration_s if is_stage else limit_s
        began_at_s = (
            state.entered_at_s if state.acked_at_s is None else max(state.entered_at_s, state.acked_at_s)
        )
        extended_s = min(now_s + more_s, began_at_s + 2 * _longest_s(state, limit_s))
        state = replace(state, deadline_at_s=max(state.deadline_at_s, extended_s))
    if state.departure is not None:
        # The command of this step may never have been sent; only total_ms counts the absence.
        state = replace(state, departure=replace(state.departure, step_at_s=now_s))
    return log(state, now_s, "a controller took over")


def _longest_s(state: RolloutState, limit_s: float) -> float:
    """Time limit of the phase; of a departure, of all its steps together."""
    plan = state.plan
    if state.departure is None:
        return limit_s
    return plan.load_s + plan.unreadable_s + plan.drain_s + plan.cancel_s + plan.unload_s


def update_timers(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Since when the data plane is blind and the canary unready, and when the weight was applied."""
    if state.phase in (Phase.PLANNING, Phase.PREFLIGHT, Phase.ROLLING_BACK, Phase.UNLOADING):
        return replace(state, unreadable_since_s=None, unready_since_s=None)
    applied = is_applied(seen, desired_split(state))
    silent = silent_arm(state, seen) if state.phase in PUBLISHED else None
    state = _note_silent_arm(state, silent, now_s)
    is_pending = state.phase in PUBLISHED and not applied and silent is None
    blind = seen.split is None or seen.versions is None or is_pending
    blind_s, unready_s = since(state.unreadable_since_s, blind, now_s), state.unready_since_s
    if seen.versions is not None:
        unready = state.phase is not Phase.LOADING and ready_replicas(seen, state.canary.id) == 0
        unready_s = since(unready_s, unready, now_s)
    if (blind_s, unready_s) != (state.unreadable_since_s, state.unready_since_s):
        state = replace(state, unreadable_since_s=blind_s, unready_since_s=unready_s)
    state = _note_load_error(note_ready(state, seen, now_s), seen, now_s)
    unacked = state.phase in PUBLISHED and state.acked_at_s is None and state.exposed
    if unacked and applied and seen.split is not None:
        state = replace(state, acked_at_s=now_s)
        if state.phase is Phase.STAGE:
            state = replace(state, deadline_at_s=now_s + state.plan.stages[state.stage].deadline_s)
        mirror = state.plan.mirror
        what = percent(state.weight_bp)
        if state.phase is Phase.MIRRORING and mirror is not None:
            state = replace(state, deadline_at_s=now_s + mirror.deadline_s)
            what = f"copying {percent(mirror.share_bp)}"
        text = f"{what} is applied on every router ({applied_words(seen.split.how)})"
        state = log(state, now_s, text)
    return _hold_while_both_arms_fail(state, seen, now_s)


def _note_silent_arm(state: RolloutState, silent: str | None, now_s: float) -> RolloutState:
    """Log once that the split waits, and for which version; None: it does not wait."""
    key = f"withheld/{silent}"
    if silent is not None and key not in state.alarmed:
        text = f"{percent(state.weight_bp)} is not published: {state.title(silent)} has no ready replica"
        state = log(state, now_s, f"{text}, and what is published answers")
        return told(state, key)
    withheld = {one for one in state.alarmed if one.startswith("withheld/")}
    return untold(state, withheld) if silent is None and withheld else state


def _note_load_error(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Say what keeps the canary from being ready, when it is first seen: the limit may be far away."""
    status = version_status(seen, state.canary.id)
    begins = f"{state.canary.id} is not ready: "
    if state.phase is not Phase.LOADING or status is None or not status.last_error:
        return state
    if status.phase is not VersionPhase.LOADING or state.reason.startswith(begins):
        return state
    text = f"{begins}{status.last_error}"
    return log(replace(state, reason=text), now_s, text)


def _hold_while_both_arms_fail(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The canary is not the cause when stable fails too. Evidence that cannot be read ends no hold.

    The hold lasts until the guard has been quiet for `QUIET_S`; it is paged once in `PAGE_AGAIN_S`.
    """
    if state.phase not in LIVE:
        return state
    held = next((one for one in state.holds if one.kind is HoldKind.BOTH_ARMS), None)
    evidence = seen.evidence
    guard = next((one for one in evidence.guards if one.both_arms), None) if evidence is not None else None
    if held is not None:
        is_quiet = evidence is not None and guard is None
        quiet_since_s = since(held.quiet_since_s, is_quiet, now_s)
        if quiet_since_s is not None and now_s - quiet_since_s >= QUIET_S:
            return release(state, HoldKind.BOTH_ARMS)
        return _with_hold(state, replace(held, quiet_since_s=quiet_since_s))
    if guard is None:
        return state
    paged_s = state.both_arms_paged_at_s
    is_page_due = paged_s is None or now_s - paged_s >= PAGE_AGAIN_S
    why = f"{guard.name}: {guard.text}"
    state = hold(state, HoldKind.BOTH_ARMS, why, now_s, page=is_page_due)
    return replace(state, both_arms_paged_at_s=now_s) if is_page_due else state


def _with_hold(state: RolloutState, hold: Hold) -> RolloutState:
    holds = tuple(hold if one.kind is hold.kind else one for one in state.holds)
    return state if holds == state.holds else replace(state, holds=holds)
