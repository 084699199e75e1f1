"""Departure of a version: the canary in RollingBack, the old stable or a twin in Unloading.

The steps are restore, shift, drain, cancel, unload. Rules 3 and 6 of `machine.py` are kept here, and those of
`last_answer.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from controller.quantities import FULL_BP, percent
from controller.rollout.desired import desired_split
from controller.rollout.journal import PAGE_AGAIN_S, end, log, notice, time_limit_s
from controller.rollout.last_answer import Standing, bar, note_kept, page_unanswered, standing
from controller.rollout.observation import (
    Observation,
    VersionPhase,
    answering_replicas,
    applied_words,
    is_applied,
    is_idle,
    is_unloaded,
    version_status,
)
from controller.rollout.state import Departure, DepartureStep, Phase, RolloutState, cause_words
from controller.rollout.twin_report import twin_report, unproven


def advance_departure(
    state: RolloutState, departure: Departure, seen: Observation, now_s: float
) -> RolloutState:
    state, departure = note_kept(state, _with_kept_weight(state, departure, seen), seen, now_s)
    now = standing(state, departure, seen, now_s)
    if departure.step is DepartureStep.RESTORE:
        if state.phase is Phase.ROLLING_BACK and not now.leaving_serves:
            return _give_up_weight(state, departure, seen, now, now_s)
        return _wait_for_stable(state, departure, seen, now_s)
    if now.leaving_serves:
        return _give_back(state, departure, now_s)
    state = page_unanswered(state, departure, seen, now_s, now.is_kept)
    if now.is_kept:
        # What is under way may end; a stop that was ordered may still be withdrawn.
        is_drained = departure.step is not DepartureStep.DRAIN
        kept = replace(departure, step=DepartureStep.DRAIN, step_at_s=now_s) if is_drained else departure
        return replace(state, departure=kept)
    match departure.step:
        case DepartureStep.SHIFT:
            return _shift(state, departure, seen, now_s)
        case DepartureStep.DRAIN:
            return _drain(state, departure, seen, now_s)
        case DepartureStep.CANCEL:
            return _cancel(state, departure, seen, now_s)
        case DepartureStep.UNLOAD:
            return _unload(state, departure, seen, now_s)
        case _:
            assert_never(departure.step)


def _with_kept_weight(state: RolloutState, departure: Departure, seen: Observation) -> Departure:
    """The departure without a weight to return to, once harm in the answers or a tombstone was seen."""
    if departure.step is DepartureStep.RESTORE and not departure.promoted:  # an older release may have begun
        kept = departure.kept_bp or state.weight_bp or FULL_BP
        departure = replace(departure, kept_bp=kept, promoted=kept == FULL_BP and not state.weight_bp)
    is_barred = departure.kept_bp > 0 and not departure.promoted and bar(state, seen) is not None
    return replace(departure, kept_bp=0) if is_barred else departure


def _give_up_weight(
    state: RolloutState, departure: Departure, seen: Observation, now: Standing, now_s: float
) -> RolloutState:
    """All traffic to the staying version."""
    why = now.why if departure.kept_bp else bar(state, seen) or now.why
    state = _next_step(replace(state, weight_bp=0), departure, DepartureStep.SHIFT, now_s, why)
    if seen.versions is not None or not departure.kept_bp:
        return state
    text = f"{state.service}: {why}; it gets all traffic, and {state.canary.title} stays loaded"
    return notice(log(state, now_s, text), f"blind-{state.log_count}", "page", text, now_s)


def _give_back(state: RolloutState, departure: Departure, now_s: float) -> RolloutState:
    """The leaving version, which is loaded, has its weight again: the staying one was lost meanwhile."""
    weight_bp = 0 if departure.promoted else departure.kept_bp
    share = percent(departure.kept_bp)
    text = (
        f"{state.service}: {state.title(departure.staying)} has no ready replica again: "
        f"{state.title(departure.leaving)} gets its {share} back until it answers"
    )
    state = _next_step(replace(state, weight_bp=weight_bp), departure, DepartureStep.RESTORE, now_s, text)
    return notice(state, f"given-back-{state.log_count}", "page", text, now_s)


def _wait_for_stable(
    state: RolloutState, departure: Departure, seen: Observation, now_s: float
) -> RolloutState:
    """The leaving version keeps the traffic while it alone answers; a late one pages each hour."""
    old, new = state.title(departure.staying), state.title(departure.leaving)
    answers = seen.versions is not None and answering_replicas(seen, departure.leaving) > 0
    if departure.promoted:
        is_silent = seen.versions is not None and not answers
        state = page_unanswered(state, departure, seen, now_s, is_silent)
        status = version_status(seen, departure.staying)
        has_failed = status is not None and status.phase is VersionPhase.FAILED
        if answers and (state.is_late(now_s) or has_failed):
            text = f"{old} could not be loaded again and {new} serves; see the engine's log"
            swapped = replace(departure, leaving=departure.staying, staying=departure.leaving)
            return end(replace(state, departure=swapped), Phase.FAILED, now_s, text)
    if not state.is_late(now_s):
        return state
    spent_s = max(0.0, now_s - (departure.kept_since_s or departure.step_at_s))
    what = f"{old} still has no ready replica after {spent_s:.0f} s"
    if seen.versions is None:
        what = f"the fleet cannot be read, so it is not known whether {old} answers"
    rest = f"{new} keeps serving" if answers else f"{new} keeps the traffic"
    text = f"{state.service}: {what}; {rest}; see the engine's log"
    state = replace(log(state, now_s, text), deadline_at_s=now_s + PAGE_AGAIN_S)
    return notice(state, f"still-waits-for-stable-{state.log_count}", "page", text, now_s)


def _shift(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> RolloutState:
    spent_ms = _spent_ms(departure, now_s)
    if is_applied(seen, desired_split(state)) or not state.exposed:
        how = applied_words(seen.split.how) if state.exposed and seen.split is not None else "never exposed"
        text = f"all traffic is on {state.title(departure.staying)} ({how}, {spent_ms:.0f} ms)"
        departure = replace(departure, traffic_shift_ms=spent_ms)
        return _next_step(state, departure, DepartureStep.DRAIN, now_s, text)
    if not state.is_late(now_s):
        return state
    # Page once and keep trying: a weight above 0 is never left in effect.
    text = f"{state.service}: the split is not acknowledged after {spent_ms / 1000:.0f} s; still retrying"
    state = replace(log(state, now_s, text), deadline_at_s=None)
    return notice(state, "stuck", "page", text, now_s)


def _drain(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> RolloutState:
    spent_ms = _spent_ms(departure, now_s)
    # An in-flight count from before the split was applied is stale: a request may have started since.
    is_fresh = not state.exposed or spent_ms >= state.plan.count_lag_s * 1000
    if is_fresh and seen.versions is not None and is_idle(version_status(seen, departure.leaving)):
        departure = replace(departure, drain_ms=spent_ms)
        return _next_step(state, departure, DepartureStep.UNLOAD, now_s, f"drained ({spent_ms:.0f} ms)")
    if spent_ms >= state.plan.drain_s * 1000:
        departure = replace(departure, drain_ms=spent_ms, cancelled=True)
        text = f"drain limit of {state.plan.drain_s:g} s reached: in-flight requests are taken over"
        return _next_step(state, departure, DepartureStep.CANCEL, now_s, text)
    return state


def _cancel(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> RolloutState:
    spent_ms = _spent_ms(departure, now_s)
    idle = seen.versions is not None and is_idle(version_status(seen, departure.leaving))
    if not idle and spent_ms < state.plan.cancel_s * 1000:
        return state
    departure = replace(departure, drain_ms=(departure.drain_ms or 0.0) + spent_ms)
    return _next_step(state, departure, DepartureStep.UNLOAD, now_s, f"taken over ({spent_ms:.0f} ms)")


def _unload(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> RolloutState:
    if is_unloaded(seen, departure.leaving):
        total_ms = max(0.0, now_s - departure.started_at_s) * 1000
        departure = replace(departure, unload_ms=_spent_ms(departure, now_s), total_ms=total_ms)
        return _complete(replace(state, departure=departure), departure, now_s)
    if state.is_late(now_s):
        text = (
            f"{state.title(departure.leaving)} gets no traffic, but its memory release was not confirmed "
            f"within {state.plan.unload_s:g} s; {state.title(departure.staying)} serves; find the process "
            "and stop it"
        )
        return end(state, Phase.FAILED, now_s, text)
    return state


def _complete(state: RolloutState, departure: Departure, now_s: float) -> RolloutState:
    staying, leaving = state.title(departure.staying), state.title(departure.leaving)
    if state.phase is Phase.UNLOADING:
        text = f"{staying} is stable, {leaving} is unloaded{unproven(state)}"
        return end(state, Phase.SUCCEEDED, now_s, twin_report(state) if state.plan.twin else text)
    why = f"{cause_words(state.cause.kind)}: {state.cause.text}" if state.cause is not None else "rolled back"
    text = f"{why}; {staying} serves, {leaving} is unloaded"
    return end(state, Phase.ROLLED_BACK, now_s, text)


def _next_step(
    state: RolloutState, departure: Departure, step: DepartureStep, now_s: float, text: str
) -> RolloutState:
    state = replace(state, departure=replace(departure, step=step, step_at_s=now_s))
    return log(replace(state, deadline_at_s=now_s + (time_limit_s(state) or 0.0)), now_s, text)


def _spent_ms(departure: Departure, now_s: float) -> float:
    return max(0.0, now_s - departure.step_at_s) * 1000
