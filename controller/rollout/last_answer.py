"""The only version that answers: no departure takes it out of traffic, or unloads it, unseen.

Rules, where the fleet was read and the version that stays has no ready replica, while the leaving one has:
1. A rollback for slowness, cost, a person's wish or a missing proof waits with the canary at its weight: slow
   answers are better than none. `rollback --direct` takes it out all the same.
2. A rollback for what is in the answers (errors, rejections, scores, a guard) moves the traffic at once:
   nobody can say that such answers are better than none. The canary stays loaded, for what is under way, but
   for `load_s` at most: it serves nobody, and stable may need its memory.
3. The old version of a promotion stays loaded until the new one is ready or a person rolls back.
A fleet that cannot be read changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from controller.quantities import duration, percent
from controller.rollout.figures import with_figures
from controller.rollout.journal import log, notice
from controller.rollout.observation import Observation, VersionPhase, ready_replicas, version_status
from controller.rollout.state import (
    LIVE,
    Cause,
    CauseKind,
    Departure,
    DepartureStep,
    Phase,
    RolloutState,
)
from evaluation.metrics import VALUES
from evaluation.report import GateReport, Verdict

# Causes that say nothing against the canary's answers.
BEARABLE = frozenset(
    {CauseKind.USER, CauseKind.NOT_PROVEN, CauseKind.MISSING, CauseKind.DEADLINE, CauseKind.UNREADABLE}
)


def is_unanswered(seen: Observation, version: str) -> bool:
    """True: the fleet was read, and no replica of the version is ready."""
    return seen.versions is not None and ready_replicas(seen, version) == 0


def keeps_weight(state: RolloutState, cause: Cause, gate: GateReport | None, seen: Observation) -> bool:
    """Whether a rollback that begins now waits with the canary at its weight. gate: the one that fired."""
    if state.phase not in LIVE or state.weight_bp == 0 or not is_unanswered(seen, state.stable.id):
        return False
    is_bearable = cause.kind in BEARABLE or (cause.kind is CauseKind.GATE and gate is not None)
    return is_bearable and _harm_in_answers(seen, gate) is None and ready_replicas(seen, state.canary.id) > 0


def _harm_in_answers(seen: Observation, fired: GateReport | None) -> str | None:
    """Harm that is shown in what is answered, not only of time, length or cost; None: none is."""
    evidence = seen.evidence
    guard = (
        next((one for one in evidence.guards if not one.both_arms), None) if evidence is not None else None
    )
    if guard is not None:
        return f"{guard.name}: {guard.text}"
    shown = (evidence.rollback, *evidence.gates) if evidence is not None else ()
    for gate in (fired, *shown):
        if gate is None or gate.metric in VALUES or gate.is_alarm:
            continue
        if gate.side == "rollback" and gate.verdict is Verdict.FAIL:
            return with_figures(gate)
    return None


def waiting_text(state: RolloutState) -> str:
    """What is paged when a rollback waits for stable."""
    stable, canary = state.stable.title, state.canary.title
    return (
        f"{state.service}: rolling back, but {stable} has no ready replica: {canary} keeps its "
        f"{percent(state.weight_bp)} until {stable} answers; to take it out of traffic all the same: "
        f"canaryctl rollback {state.service} --direct"
    )


def end_of_wait(state: RolloutState, seen: Observation) -> str | None:
    """Why a canary that kept its weight gives it up now; None: it keeps it."""
    if seen.split is not None and state.id in seen.split.tombstoned:
        return "a direct rollback left a tombstone in the route table"
    if seen.versions is not None and ready_replicas(seen, state.stable.id) > 0:
        return f"{state.stable.title} is ready again"
    if is_unanswered(seen, state.canary.id):
        return f"{state.canary.title} has no ready replica either"
    return _harm_in_answers(seen, None)


def stay_loaded(
    state: RolloutState, departure: Departure, seen: Observation, now_s: float
) -> tuple[RolloutState, bool]:
    """The state, and whether the leaving version is kept from being cancelled and unloaded for now.

    Pages once when it begins, and logs when the staying version is ready again.
    """
    key = f"unanswered/{departure.staying}"
    is_paged = key in state.alarmed
    staying, leaving = state.title(departure.staying), state.title(departure.leaving)
    if not _is_kept(state, departure, seen, now_s):
        if is_paged and seen.versions is not None:
            state = replace(state, alarmed=tuple(one for one in state.alarmed if one != key))
            is_ready = ready_replicas(seen, departure.staying) > 0
            text = f"{staying} is ready again" if is_ready else f"{leaving} is kept loaded no longer"
            state = log(state, now_s, text)
        return state, False
    if is_paged:
        return state, True
    if state.is_canary_leaving:
        rest = f"{leaving} stays loaded without traffic for {duration(round(state.plan.load_s))} at most"
    else:
        rest = f"{leaving} stays loaded; return to it: canaryctl rollback {state.service}"
    text = f"{state.service}: no version answers: {staying} has no ready replica; {rest}"
    state = replace(log(state, now_s, text), alarmed=(*state.alarmed, key))
    return notice(state, f"unanswered-{state.log_count}", "page", text, now_s), True


def _is_kept(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> bool:
    if departure.step not in (DepartureStep.DRAIN, DepartureStep.CANCEL) or not state.exposed:
        return False
    leaving = version_status(seen, departure.leaving)
    is_loaded = leaving is not None and leaving.phase in (VersionPhase.READY, VersionPhase.DRAINING)
    if not is_loaded or not is_unanswered(seen, departure.staying):
        return False
    is_promotion = state.phase is Phase.UNLOADING and not state.plan.twin
    return is_promotion or now_s - departure.step_at_s < state.plan.load_s
