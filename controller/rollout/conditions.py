"""Conditions on a state and an observation: phase done, stage exit reached, reason to roll back."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from controller.rollout.desired import canary_replicas
from controller.rollout.evidence_gap import evidence_gap, is_judge_alone, missing_evidence, not_judged
from controller.rollout.figures import with_figures
from controller.rollout.journal import (
    log,
    notice,
    since,
    time_limit_s,
    told,
    told_hourly,
    untold,
    untold_hourly,
)
from controller.rollout.judge import awaits_examination
from controller.rollout.last_answer import FLAP_S, could_answer, is_lost
from controller.rollout.mirroring import all_copies_failed, is_mirrored, unjudged_pairs
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
from controller.rollout.readiness import BLINK_S, crash_loop, is_calm, is_steady
from controller.rollout.state import (
    BEFORE_WEIGHT,
    PUBLISHED,
    Cause,
    CauseKind,
    HoldKind,
    Phase,
    RolloutState,
    StageExit,
)
from evaluation.report import Source, Verdict

FIRST_WAIT = "first-wait"  # key in `RolloutState.alarmed`


def is_done(state: RolloutState, seen: Observation, now_s: float) -> bool:
    """True: only a hold can keep this phase (in Promoting, its current half) from being left forward."""
    plan, ready = state.plan, ready_replicas(seen, state.canary.id)
    match state.phase:
        case Phase.PLANNING:
            return True
        case Phase.MIRRORING | Phase.SMOKE:
            is_free = _may_begin(state, seen, now_s) and not awaits_examination(state)
            return is_free and _is_revocable(state, seen)
        case Phase.PREFLIGHT:
            # Leftovers of an earlier attempt go first, or their failure would be taken for this one's.
            return _has_passed(state, seen) and is_unloaded(seen, state.canary.id)
        case Phase.WARMING:
            return _has_passed(state, seen)
        case Phase.LOADING:
            return ready >= canary_replicas(state)
        case Phase.STAGE:
            # The last stage leads to Promoting, which itself waits for the full capacity.
            ahead = plan.stages[state.stage + 1 :]
            is_ready = ready >= (ahead[0].replicas if ahead else 1) and is_steady(state, now_s)
            return is_ready and _is_revocable(state, seen) and stage_exit(state, seen, now_s) is not None
        case Phase.PROMOTING:
            if state.weight_bp == plan.promoted_bp:
                return state.acked_at_s is not None
            return _has_capacity(state, seen, now_s) and not evidence_gap(state, seen, now_s)
        case Phase.BAKING:
            is_over = now_s - state.entered_at_s >= plan.bake_s
            is_judged = state.unreadable_since_s is None and not evidence_gap(state, seen, now_s)
            return is_over and is_judged and ready >= state.canary.replicas and is_calm(state, now_s)
        case Phase.UNLOADING | Phase.ROLLING_BACK | Phase.SUCCEEDED | Phase.ROLLED_BACK | Phase.FAILED:
            return False
        case _:
            assert_never(state.phase)


def _may_begin(state: RolloutState, seen: Observation, now_s: float) -> bool:
    """True: the canary is ready for its first weight, or for its first copies.

    Stable, the data plane and the judge are asked besides, but the canary is not late for them.
    """
    is_over = is_mirrored(state, seen, now_s) if state.phase is Phase.MIRRORING else _has_passed(state, seen)
    has_capacity = ready_replicas(seen, state.canary.id) >= canary_replicas(state)
    return is_over and has_capacity and is_steady(state, now_s)


def note_first_wait(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """Log once an outage that the first weight waits for stable alone; page after `unready_s` and each hour,
    for nobody is answered. It has no limit: an end of the rollout would answer nobody either."""
    if state.phase not in BEFORE_WEIGHT or seen.versions is None:
        return state
    if ready_replicas(seen, state.stable.id):
        is_told = FIRST_WAIT in state.alarmed
        return untold_hourly(untold(state, {FIRST_WAIT}), FIRST_WAIT) if is_told else state
    if not _may_begin(state, seen, now_s):
        return state
    text = f"{state.canary.title} waits for its first requests: {state.stable.title} has no ready replica"
    if FIRST_WAIT not in state.alarmed:
        is_flap = any(line.text == text and now_s - line.at_s < FLAP_S for line in state.log)
        state = told(state, FIRST_WAIT)
        return state if is_flap else log(state, now_s, text)
    lost_at_s = state.answers.stable.lost_at_s
    spent_s = now_s - lost_at_s if lost_at_s is not None else 0.0
    due = told_hourly(state, FIRST_WAIT, spent_s)
    if spent_s < state.plan.unready_s or due is None:
        return state
    text = f"{state.service}: {text} after {spent_s:.0f} s, so nobody is answered; see its engine's log"
    state = log(due, now_s, text)
    return notice(state, f"first-wait-{state.log_count}", "page", text, now_s)


def _is_met(state: RolloutState, seen: Observation, now_s: float) -> bool:
    """True: nothing is lacking for which the canary may be late."""
    if state.phase in BEFORE_WEIGHT:
        return _may_begin(state, seen, now_s)
    # The last rise waits for evidence past its deadline, but for capacity it does not.
    if state.phase is Phase.PROMOTING and state.weight_bp != state.plan.promoted_bp:
        return _has_capacity(state, seen, now_s)
    return is_done(state, seen, now_s)


def note_lacks(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The state with since when what its phase waits for is not there: one tick judges no deadline."""
    if state.departure is not None:
        return state
    is_met = _is_met(state, seen, now_s)
    is_missing = bool(_missing(state, seen, now_s))
    lacking_s = since(state.lacking_since_s, not is_met, now_s)
    missing_s = since(state.missing_since_s, is_missing, now_s)
    if (lacking_s, missing_s) == (state.lacking_since_s, state.missing_since_s):
        return state
    return replace(state, lacking_since_s=lacking_s, missing_since_s=missing_s)


def is_blink(state: RolloutState, now_s: float) -> bool:
    """True: nothing that the phase waits for was lacking for longer than a read may fail."""
    blink_s = min(state.plan.unreadable_s, time_limit_s(state) or 0.0)
    is_lacking = _has_lasted(state.lacking_since_s, blink_s, now_s)
    return not is_lacking and not _has_lasted(state.missing_since_s, blink_s, now_s)


def _has_lasted(since_s: float | None, limit_s: float, now_s: float) -> bool:
    return since_s is not None and now_s - since_s >= limit_s


def _has_capacity(state: RolloutState, seen: Observation, now_s: float) -> bool:
    """True: the canary can take all traffic, and stable could take it back."""
    is_ready = ready_replicas(seen, state.canary.id) >= state.canary.replicas and is_steady(state, now_s)
    return is_ready and _is_revocable(state, seen)


def _is_revocable(state: RolloutState, seen: Observation) -> bool:
    """True: stable could take all traffic back, and the data plane applies what was published.

    An undo does not wait for stable: it may be what is wrong.
    """
    has_stable = state.plan.undo or ready_replicas(seen, state.stable.id) > 0
    return state.unreadable_since_s is None and has_stable


def _has_passed(state: RolloutState, seen: Observation) -> bool:
    probe = probe_status(state, seen)
    return probe is not None and probe.phase == "passed"


def stage_exit(state: RolloutState, seen: Observation, now_s: float) -> StageExit | None:
    """Why this stage may be left forward; None: not yet."""
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
    # A proof from before a metric stopped says nothing of what the canary does since.
    if any(gate.source is Source.STOPPED and not gate.is_alarm for gate in evidence.gates):
        return None
    if evidence.verdict is Verdict.PASS:
        return "proven"
    is_close = state.is_late(now_s) and _are_point_estimates_enough(stage, evidence)
    return "point_estimates" if is_close else None


def _are_point_estimates_enough(stage: Stage, evidence: EvidenceStatus) -> bool:
    """True: unproven, but nothing is missing or wrong, and each estimate is within its margin."""
    if not evidence.canary_requests:  # a stage may ask for none, but nothing is estimated of none
        return False
    if not stage.promote_if_point_ok or evidence.verdict is not Verdict.UNDECIDED or evidence.frozen:
        return False
    return not evidence.missing and evidence.points is not None and evidence.points.within


def reason_to_leave(state: RolloutState, seen: Observation, now_s: float) -> Cause | None:
    """The most urgent reason to roll back; None: there is none."""
    if state.is_canary_leaving:
        return None
    if seen.split is not None and state.id in seen.split.tombstoned:
        return Cause(CauseKind.TOMBSTONE, "this rollout was ended in the route table, without a controller")
    probe = probe_status(state, seen)
    if probe is not None and probe.phase == "failed":
        return Cause(CauseKind.PROBE, f"{probe.kind.value} failed: {probe.detail}")
    if state.phase in (Phase.PLANNING, Phase.PREFLIGHT):
        return _deadline_cause(state, seen, now_s)
    canary = version_status(seen, state.canary.id)
    if canary is not None and canary.phase is VersionPhase.FAILED:
        return Cause(CauseKind.ENGINE, f"the canary's engine failed: {canary.last_error or 'no error given'}")
    if state.phase is Phase.UNLOADING:
        return _lost_after_promotion(state, seen, now_s)
    # Out of an undo there is a way back only while the version that it replaces still answers.
    has_way_back = not state.plan.undo or ready_replicas(seen, state.stable.id) > 0
    if state.phase is Phase.MIRRORING and (text := all_copies_failed(state, seen, now_s)) is not None:
        return Cause(CauseKind.PROBE, text)
    if state.phase in PUBLISHED and seen.evidence is not None and has_way_back:
        harm = _harm(seen.evidence)
        if harm is not None:
            return harm
    plan = state.plan
    # An undo that users have stays: what cannot be read is no reason for the version that a person left.
    is_undone = plan.undo and state.weight_bp > 0
    if (
        not is_undone
        and state.unreadable_since_s is not None
        and now_s - state.unreadable_since_s >= plan.unreadable_s
    ):
        text = f"the data plane was unreadable or did not apply the split for {plan.unreadable_s:g} s"
        return Cause(CauseKind.UNREADABLE, text)
    if has_way_back and state.unready_since_s is not None and now_s - state.unready_since_s >= plan.unready_s:
        why = f": {canary.last_error}" if canary is not None and canary.last_error else ""
        return Cause(CauseKind.ENGINE, f"no canary replica was ready for {plan.unready_s:g} s{why}")
    if (text := crash_loop(state, seen)) is not None:
        return Cause(CauseKind.ENGINE, text)
    return _deadline_cause(state, seen, now_s)


def _lost_after_promotion(state: RolloutState, seen: Observation, now_s: float) -> Cause | None:
    """The new version has no ready replica, and the old one, still loaded, had all of its own.

    Nobody else answers, so that is not waited for as in the bake; an undo goes back as late as from there.
    """
    departure, plan = state.departure, state.plan
    if departure is None or not could_answer(state, seen, departure.leaving):
        return None
    after_s = plan.unready_s if plan.undo else BLINK_S
    if not is_lost(state, departure.staying, seen, now_s, after_s=after_s):
        return None
    staying, leaving = state.title(departure.staying), state.title(departure.leaving)
    text = f"{staying} has no ready replica, and {leaving} is still loaded"
    return Cause(CauseKind.ENGINE, text)


def _harm(evidence: EvidenceStatus) -> Cause | None:
    gate = evidence.rollback
    if gate is not None:
        return Cause(CauseKind.GATE, with_figures(gate))
    guard = next((guard for guard in evidence.guards if not guard.both_arms), None)
    if guard is not None:
        return Cause(CauseKind.GUARD, f"{guard.name}: {guard.text}")
    if evidence.verdict is Verdict.FAIL:
        return Cause(CauseKind.GATE, "the verdict of the evidence is FAIL")
    return None


def _deadline_cause(state: RolloutState, seen: Observation, now_s: float) -> Cause | None:
    if state.plan.undo and state.weight_bp > 0:
        return None  # users have the version that a person chose
    held = next((hold for hold in state.holds if hold.kind is HoldKind.NOT_PROVEN), None)
    limit_s = state.plan.hold_limit_s
    is_unproven = not is_done(state, seen, now_s) and not is_blink(state, now_s)
    if held is not None and now_s - held.since_s >= limit_s and is_unproven:
        parts = (f"not proven within {limit_s:g} s of hold: {held.reason}", *_unproven(seen.evidence))
        return Cause(CauseKind.NOT_PROVEN, "; ".join(parts))
    if not state.is_late(now_s) or is_done(state, seen, now_s):
        return None
    if state.phase in BEFORE_WEIGHT and _may_begin(state, seen, now_s):
        return None
    blink_s = state.plan.unreadable_s
    missing = _missing(state, seen, now_s)
    # Pairs that are missing say nothing of the canary, as all that only a judge leaves missing.
    is_of_judge = state.phase is Phase.MIRRORING or is_judge_alone(state, seen)
    is_due = missing and _has_lasted(state.missing_since_s, blink_s, now_s) and not is_of_judge
    if is_due and _on_missing(state) == "rollback":
        where = "the stage's" if state.phase is Phase.STAGE else f"the {state.phase.value} phase's"
        return Cause(CauseKind.MISSING, f"at {where} deadline: {missing}")
    # A smoke test that is held runs again, after a restart too: what it waited for says nothing of its time.
    is_held = state.phase in (Phase.STAGE, Phase.BAKING) or (state.phase is Phase.SMOKE and held is not None)
    if missing or is_held:
        return None
    limit_s = time_limit_s(state) or 0.0
    if state.phase is Phase.MIRRORING:
        # Its figures cannot be read, which may be over at the next tick.
        limit_s = min(limit_s, blink_s)
        if not state.is_late(now_s - blink_s):
            return None
    if not _has_lasted(state.lacking_since_s, limit_s, now_s):
        return None
    spent_s = max(0.0, now_s - state.entered_at_s)
    canary = version_status(seen, state.canary.id)
    last_error = canary.last_error if canary is not None else None
    why = f": {text}" if (text := not_judged(state, seen) or last_error) else ""
    return Cause(CauseKind.DEADLINE, f"{state.phase.value} was not finished after {spent_s:.0f} s{why}")


def _missing(state: RolloutState, seen: Observation, now_s: float) -> str:
    """The evidence without which a phase is held past its deadline; empty: that is not what it waits for."""
    match state.phase:
        case Phase.SMOKE:
            return not_judged(state, seen)
        case Phase.MIRRORING:
            return unjudged_pairs(state, seen, now_s)
        case Phase.STAGE:
            return missing_evidence(seen)
        case Phase.BAKING:
            return evidence_gap(state, seen, now_s)
        case Phase.PROMOTING if state.weight_bp != state.plan.promoted_bp and _has_capacity(
            state, seen, now_s
        ):
            return evidence_gap(state, seen, now_s)
        case _:
            return ""


def _on_missing(state: RolloutState) -> str:
    """What the stage says of missing metrics; after the last one, what that said."""
    stages = state.plan.stages
    return stages[min(state.stage, len(stages) - 1)].on_missing if stages else "hold"


def _unproven(evidence: EvidenceStatus | None) -> tuple[str, ...]:
    """The gates that are not proven, with their figures."""
    gates = evidence.gates if evidence is not None else ()
    return tuple(
        with_figures(gate) for gate in gates if gate.side == "promotion" and gate.verdict is not Verdict.PASS
    )
