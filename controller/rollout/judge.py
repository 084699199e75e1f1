"""The judge of a rollout: when it is examined, what that showed, and what it means for the split.

Rules:
1. A judge is examined from the rollout's start on, beside the load of the canary. The first stage waits until
   the examination has a result, whatever it is; it has a limit of its own, and one of which nothing is heard
   for `UNHEARD_S` of the smoke test is silent, too: a judge keeps nobody waiting without a page.
2. Only an admitted judge is asked, from the first copy or weight on, of both arms alike. A refused one never
   is in this rollout; one that gave no verdict, or too few, is examined again after `AGAIN_S`.
3. While it is not admitted, has drifted, or has left too many sampled answers without a verdict, the gates on
   its metric are INVALID: nothing is promoted, and they roll nothing back. The other gates decide as always.
4. A judge that drifted is asked no more in this rollout, and what it said is void.
5. A judge that we serve ourselves is loaded once the canary may be, and unloaded when it can say nothing
   more: refused, drifted, or the rollout leaves or ends. It is not kept for the next rollout: that one loads
   it beside its canary again, and meanwhile its memory is there for the canaries of other services.
"""

from __future__ import annotations

from dataclasses import replace

from controller.quantities import duration
from controller.rollout.journal import log, notice
from controller.rollout.judge_plan import (
    AGAIN_S,
    LOAD_LIMIT_S,
    UNHEARD_S,
    JudgeAsked,
    JudgeEngine,
    JudgeFound,
)
from controller.rollout.observation import Observation
from controller.rollout.state import BEFORE_WEIGHT, RolloutState


def is_examination_due(state: RolloutState, now_s: float) -> bool:
    """Whether the judge should be examined now, or is being."""
    result = state.judge.result
    if state.plan.judge is None or not state.plan.stages or state.departure is not None:
        return False
    return result is None or (result.outcome == "silent" and now_s - result.at_s >= AGAIN_S)


def needed_engine(state: RolloutState) -> JudgeEngine | None:
    """The judge's engine that must run now; None: it is an endpoint, or says nothing (any more)."""
    plan, judge = state.plan.judge, state.judge
    is_over = state.is_final or state.departure is not None or not state.launched
    if plan is None or not state.plan.stages or is_over or judge.drift is not None:
        return None
    is_refused = judge.result is not None and judge.result.outcome == "refused"
    return None if is_refused else plan.engine


def awaits_examination(state: RolloutState) -> bool:
    """Whether the first stage waits for it."""
    has_one = state.plan.judge is not None and bool(state.plan.stages)
    return has_one and state.judge.result is None and state.waived_through < 0


def asked(state: RolloutState) -> JudgeAsked | None:
    """What the split says of the judge; None: the rollout has none."""
    if state.plan.judge is None or not state.plan.stages:
        return None
    result = state.judge.result
    is_asked = state.judge.is_admitted and result is not None
    return JudgeAsked(state.plan.judge, result.revision if is_asked and result is not None else "")


def note_judge(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The state with the result of an examination that ended, and with a drift that the evidence shows."""
    plan, judge = state.plan.judge, state.judge
    if plan is None:
        return state
    found = seen.judge if seen.judge is not None else _unheard(state, now_s)
    if found is not None and found.attempt == judge.attempts + 1 and is_examination_due(state, now_s):
        again = judge.result is not None and judge.result.outcome == found.outcome
        judge = replace(judge, attempts=found.attempt, result=replace(found, at_s=now_s))
        state = replace(state, judge=judge)
        if not again:  # a judge that stays silent is told of once
            state = _told(state, found, now_s)
    shown = seen.evidence.judge if seen.evidence is not None else None
    drift = shown.drift if shown is not None else None
    if drift is not None and judge.drift is None:
        text = f"{state.service}: {drift}; {plan.metric} is not judged any more, so nothing is promoted"
        state = replace(state, judge=replace(judge, drift=drift))
        state = notice(log(state, now_s, text), "judge-drift", "page", text, now_s)
    return state


def _unheard(state: RolloutState, now_s: float) -> JudgeFound | None:
    """The result of an examination that the first stage has waited for too long; None: it has not."""
    plan = state.plan.judge
    limit_s = UNHEARD_S + (LOAD_LIMIT_S if plan is not None and plan.engine is not None else 0.0)
    is_late = state.phase in BEFORE_WEIGHT and now_s - state.entered_at_s >= limit_s
    if not is_late or not awaits_examination(state):
        return None
    text = f"nothing is heard of its examination for {duration(round(limit_s))}; see the controller's log"
    return JudgeFound("silent", state.judge.attempts + 1, text)


def _told(state: RolloutState, found: JudgeFound, now_s: float) -> RolloutState:
    plan = state.plan.judge
    assert plan is not None
    who = f"judge {plan.model} (revision {found.revision})" if found.revision else f"judge {plan.model}"
    if found.outcome == "admitted":
        return log(state, now_s, f"{who} admitted: {found.text}")
    what = "refused" if found.outcome == "refused" else "silent"
    text = f"{state.service}: {who} {what}: {found.text}; nothing is promoted on {plan.metric}"
    return notice(log(state, now_s, text), f"judge-{what}-{found.attempt}", "page", text, now_s)
