"""What holds now: is this phase done, is this stage proven, is there a reason to go back?"""

from __future__ import annotations

from typing import assert_never

from controller.quantities import FULL_BP
from controller.rollout.desired import replicas
from controller.rollout.observation import (
    EvidenceStatus,
    Observation,
    VersionPhase,
    is_unloaded,
    probe_status,
    ready_replicas,
    version_status,
)
from controller.rollout.plan import Stage
from controller.rollout.state import LIVE, Cause, CauseKind, HoldKind, Passage, Phase, RolloutState
from evaluation.report import Verdict


def is_done(state: RolloutState, seen: Observation, now_s: float) -> bool:
    """True: nothing but a hold stands between this phase (or, in Promoting, this half of it) and the next."""
    plan, ready = state.plan, ready_replicas(seen, state.canary.id)
    match state.phase:
        case Phase.PLANNING | Phase.MIRRORING:
            return True
        case Phase.PREFLIGHT:
            # What an earlier attempt left behind goes first, or its failure would be read as this one's.
            return _has_passed(state, seen) and is_unloaded(seen, state.canary.id)
        case Phase.WARMING | Phase.SMOKE:
            return _has_passed(state, seen)
        case Phase.LOADING:
            return ready >= replicas(state)
        case Phase.STAGE:
            # The last stage leads to Promoting, which waits for the whole capacity itself.
            ahead = plan.stages[state.stage + 1 :]
            is_ready = ready >= (ahead[0].replicas if ahead else 1)
            return is_ready and _is_sound(state, seen) and passage(state, seen, now_s) is not None
        case Phase.PROMOTING:
            if state.weight_bp == FULL_BP - plan.holdback_bp:
                return state.acked_at_s is not None
            return ready >= state.canary.replicas and _is_sound(state, seen)
        case Phase.BAKING:
            baked = now_s - state.entered_at_s >= plan.bake_s
            seeing = seen.evidence is not None and state.blind_since_s is None
            return baked and seeing and ready >= state.canary.replicas
        case Phase.UNLOADING | Phase.ROLLING_BACK | Phase.SUCCEEDED | Phase.ROLLED_BACK | Phase.FAILED:
            return False
        case _:
            assert_never(state.phase)


def _is_sound(state: RolloutState, seen: Observation) -> bool:
    """True: stable could take everything back, and the data plane is seen doing what it was told."""
    return state.blind_since_s is None and ready_replicas(seen, state.stable.id) > 0


def _has_passed(state: RolloutState, seen: Observation) -> bool:
    probe = probe_status(state, seen)
    return probe is not None and probe.phase == "passed"


def passage(state: RolloutState, seen: Observation, now_s: float) -> Passage | None:
    """What lets this stage be left upwards; None: nothing yet."""
    if state.acked_at_s is None:
        return None
    if state.waived_through >= state.stage:
        return "waived"
    stage, evidence = state.plan.stages[state.stage], seen.evidence
    # Evidence of another stage is stale: the evaluator has not entered this one yet.
    if evidence is None or evidence.stage != state.stage:
        return None
    if evidence.canary_requests < stage.min_canary or now_s - state.acked_at_s < stage.duration_s:
        return None
    if evidence.verdict is Verdict.PASS:
        return "proven"
    late = state.deadline_at_s is not None and now_s >= state.deadline_at_s
    return "point_estimates" if late and _do_points(stage, evidence) else None


def _do_points(stage: Stage, evidence: EvidenceStatus) -> bool:
    """True: unproven, but nothing is missing or wrong, and each estimate is within its margin."""
    if not stage.promote_if_point_ok or evidence.verdict is not Verdict.UNDECIDED or evidence.frozen:
        return False
    return not evidence.missing and evidence.points is not None and evidence.points.within


def reason_to_leave(state: RolloutState, seen: Observation, now_s: float) -> Cause | None:
    """The first reason that holds, most urgent first; None: there is none."""
    if state.goes_back:
        return None
    if seen.split is not None and state.id in seen.split.tombstoned:
        return Cause(CauseKind.TOMBSTONE, "a direct rollback left a tombstone in the route table")
    probe = probe_status(state, seen)
    if probe is not None and probe.phase == "failed":
        return Cause(CauseKind.GUARD, f"{probe.kind.value} failed: {probe.detail}")
    if state.phase in (Phase.PLANNING, Phase.PREFLIGHT):
        return _deadline_cause(state, seen, now_s)
    canary = version_status(seen, state.canary.id)
    if canary is not None and canary.phase is VersionPhase.FAILED:
        return Cause(CauseKind.GUARD, f"the canary's engine failed: {canary.last_error or 'no error given'}")
    if state.phase is Phase.UNLOADING:
        return None
    if state.phase in LIVE and seen.evidence is not None:
        harm = _harm(seen.evidence)
        if harm is not None:
            return harm
    plan = state.plan
    if state.blind_since_s is not None and now_s - state.blind_since_s >= plan.unreadable_s:
        text = f"the data plane was unreadable or unmoved for {plan.unreadable_s:g} s"
        return Cause(CauseKind.UNREADABLE, text)
    if state.unready_since_s is not None and now_s - state.unready_since_s >= plan.unready_s:
        return Cause(CauseKind.GUARD, f"no canary replica was ready for {plan.unready_s:g} s")
    return _deadline_cause(state, seen, now_s)


def _harm(evidence: EvidenceStatus) -> Cause | None:
    gate = evidence.rollback
    if gate is not None:
        return Cause(CauseKind.GATE, gate.reason or f"{gate.gate}: {gate.verdict.value}")
    guard = next((guard for guard in evidence.guards if not guard.both_arms), None)
    if guard is not None:
        return Cause(CauseKind.GUARD, f"{guard.name}: {guard.text}")
    if evidence.verdict is Verdict.FAIL:
        return Cause(CauseKind.GATE, "the evidence says FAIL")
    return None


def _deadline_cause(state: RolloutState, seen: Observation, now_s: float) -> Cause | None:
    held = next((hold for hold in state.holds if hold.kind is HoldKind.NOT_PROVEN), None)
    limit_s = state.plan.hold_limit_s
    if held is not None and now_s - held.since_s >= limit_s and not is_done(state, seen, now_s):
        return Cause(CauseKind.NOT_PROVEN, f"not proven within {limit_s:g} s of hold: {held.reason}")
    if state.deadline_at_s is None or now_s < state.deadline_at_s or is_done(state, seen, now_s):
        return None
    if state.phase is Phase.BAKING:
        return None
    if state.phase is Phase.STAGE:
        missing = what_is_missing(seen)
        if missing and state.plan.stages[state.stage].on_missing == "rollback":
            return Cause(CauseKind.MISSING, f"at the stage's deadline: {missing}")
        return None
    spent_s = max(0.0, now_s - state.entered_at_s)
    return Cause(CauseKind.DEADLINE, f"{state.phase.value} was not over after {spent_s:.0f} s")


def what_is_missing(seen: Observation) -> str:
    """What evidence is not there, in words; empty: all is."""
    if seen.evidence is None:
        return "the evidence cannot be read"
    if seen.evidence.missing:
        return f"no data to judge {', '.join(seen.evidence.missing)}"
    return "the evidence is INVALID" if seen.evidence.verdict is Verdict.INVALID else ""
