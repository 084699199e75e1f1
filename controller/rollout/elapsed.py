"""Time that counts for a rollout: what no tick saw, and what a set clock seemed to add, counts for nothing.

Every time in a state is wall time, for people and for the evidence. So that limits hold nevertheless, the
times that a limit is measured from are moved along by whatever does not count.
"""

from __future__ import annotations

import math
from dataclasses import replace

from controller.quantities import duration
from controller.rollout.journal import log
from controller.rollout.observation import Observation
from controller.rollout.state import Answers, ArmAnswers, Readiness, RolloutState

LOGGED_S = 30.0  # jumps and absences from this long on are in the log


def carry_over(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The state at `now_s`, its running limits moved by the clock's jump and by the controller's absence."""
    jump_s, away_s = _finite(seen.jump_s), max(0.0, _finite(seen.away_s))
    if jump_s or away_s:
        state = _moved(state, jump_s, away_s)
        if abs(jump_s) >= LOGGED_S and not state.is_final:
            way = "forward" if jump_s > 0 else "back"
            state = log(state, now_s, f"the clock was set {way} by {duration(round(abs(jump_s)))}")
        if away_s >= LOGGED_S and not seen.resumed and not state.is_final:
            text = f"the controller stood still for {duration(round(away_s))}, which does not count"
            state = log(state, now_s, text)
    return replace(state, ticked_at_s=now_s)


def _moved(state: RolloutState, jump_s: float, away_s: float) -> RolloutState:
    by_s = jump_s + away_s
    outbox = tuple(replace(notice, since_s=notice.since_s + by_s) for notice in state.outbox)
    if state.is_final:
        return replace(state, outbox=outbox)
    departure = state.departure
    if departure is not None:
        # `total_ms` is what users saw, so it counts the absence.
        started_at_s = departure.started_at_s + jump_s
        departure = replace(
            departure,
            started_at_s=started_at_s,
            step_at_s=departure.step_at_s + by_s,
            kept_since_s=_later(departure.kept_since_s, by_s),
        )
    result = state.judge.result
    if result is not None:
        state = replace(state, judge=replace(state.judge, result=replace(result, at_s=result.at_s + by_s)))
    return replace(
        state,
        outbox=outbox,
        departure=departure,
        entered_at_s=state.entered_at_s + by_s,
        deadline_at_s=_later(state.deadline_at_s, by_s),
        acked_at_s=_later(state.acked_at_s, by_s),
        unreadable_since_s=_later(state.unreadable_since_s, by_s),
        unready_since_s=_later(state.unready_since_s, by_s),
        lacking_since_s=_later(state.lacking_since_s, by_s),
        missing_since_s=_later(state.missing_since_s, by_s),
        canary_ready=_ready(state.canary_ready, by_s),
        stable_ready=_ready(state.stable_ready, by_s),
        answers=_answers(state.answers, by_s),
        both_arms_paged_at_s=_later(state.both_arms_paged_at_s, by_s),
        holds=tuple(
            replace(hold, since_s=hold.since_s + by_s, quiet_since_s=_later(hold.quiet_since_s, by_s))
            for hold in state.holds
        ),
    )


def _later(at_s: float | None, by_s: float) -> float | None:
    return None if at_s is None else at_s + by_s


def _ready(ready: Readiness, by_s: float) -> Readiness:
    return replace(
        ready,
        changed_at_s=_later(ready.changed_at_s, by_s),
        rose_at_s=_later(ready.rose_at_s, by_s),
        fell_at_s=_later(ready.fell_at_s, by_s),
        last_lost_at_s=_later(ready.last_lost_at_s, by_s),
        early_losses_at_s=tuple(at_s + by_s for at_s in ready.early_losses_at_s),
    )


def _answers(answers: Answers, by_s: float) -> Answers:
    stable, canary = _arm(answers.stable, by_s), _arm(answers.canary, by_s)
    return Answers(stable, canary, _later(answers.read_at_s, by_s))


def _arm(arm: ArmAnswers, by_s: float) -> ArmAnswers:
    return ArmAnswers(arm.is_ready, _later(arm.lost_at_s, by_s), _later(arm.back_at_s, by_s))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
