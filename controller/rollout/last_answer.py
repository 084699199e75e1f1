"""Who has the traffic, and what stays loaded, while a version leaves and one of the arms may not answer.

`standing` says it anew each tick, and both ways, from how long each arm has had a ready replica:
1. A rollback for slowness, cost, a person's wish, a missing proof or a crash loop leaves the canary its
   weight (`kept_bp`) until stable has been ready for `steady_s`, with as many replicas as the canary (after
   `load_s`: with any): slow answers are better than none. If stable is lost again before the canary is
   stopped, the canary has its weight again. `rollback --direct` takes it out all the same.
2. A rollback for what is in the answers (errors, rejections, scores, a guard) moves the traffic at once:
   nobody can say that such answers are better than none. The canary stays loaded, for what is under way, but
   for `load_s` at most, whatever controllers come and go: it serves nobody, and stable may need its memory.
3. The old version of a promotion stays loaded until the new one has been ready for `steady_s`. A rollback out
   of Unloading gives it the traffic as soon as all its replicas are steadily ready, or, when the new version
   has none, as soon as it has one; it begins by itself when the new version has had none for `BLINK_S` (in an
   undo: `unready_s`), for nobody else answers.
4. `BLINK_S` without a ready replica decides nothing; a leaving version that has none for `unready_s` is kept
   no longer. A fleet that cannot be read is as it was last seen, while the route table is applied. Where that
   cannot be read either, the traffic of a waiting canary goes to stable after `unreadable_s`, and the canary
   stays loaded until it is known whether stable answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.quantities import FULL_BP, duration, percent
from controller.rollout.figures import with_figures
from controller.rollout.journal import log, notice, since, told_hourly, untold
from controller.rollout.observation import (
    LOADED,
    Observation,
    VersionPhase,
    answering_replicas,
    version_status,
)
from controller.rollout.readiness import BLINK_S
from controller.rollout.state import (
    LIVE,
    Answers,
    ArmAnswers,
    Cause,
    CauseKind,
    Departure,
    DepartureStep,
    Phase,
    RolloutState,
)
from evaluation.metrics import VALUES
from evaluation.report import GateReport, Verdict

FLAP_S = 60.0
# Causes that say nothing against the canary's answers.
BEARABLE = frozenset(
    {
        CauseKind.USER,
        CauseKind.NOT_PROVEN,
        CauseKind.MISSING,
        CauseKind.DEADLINE,
        CauseKind.UNREADABLE,
        CauseKind.ENGINE,
    }
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds in a departure now."""

    leaving_serves: bool  # the leaving version has its weight; False: the staying one has all traffic
    is_kept: bool  # the leaving version is neither cancelled nor stopped
    why: str  # the staying version has the traffic; empty: it does not


def note_answers(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The state with what the fleet shows of both arms' ready replicas."""
    before = state.answers
    if seen.versions is None:
        return replace(state, answers=replace(before, read_at_s=since(before.read_at_s, True, now_s)))
    stable = _noted(before.stable, seen, state.stable.id, now_s)
    canary = _noted(before.canary, seen, state.canary.id, now_s)
    if state.phase in LIVE and state.exposed:
        state = _log_change(state, seen, now_s, (before.stable, stable), (before.canary, canary))
    if not state.exposed:
        stable = replace(stable, back_at_s=None)  # a first load is no loss that it came back from
    after = Answers(stable, canary)
    return state if after == before else replace(state, answers=after)


def _log_change(
    state: RolloutState,
    seen: Observation,
    now_s: float,
    stable: tuple[ArmAnswers, ArmAnswers],
    canary: tuple[ArmAnswers, ArmAnswers],
) -> RolloutState:
    """Log that an arm lost its last replica, and why, or has one again. stable, canary: before and after.

    An arm that was told of as ready less than `FLAP_S` ago is not told of as lost.
    """
    arms = ((state.stable, stable, state.canary, canary[1]), (state.canary, canary, state.stable, stable[1]))
    for arm, (before, after), other, other_now in arms:
        if before.is_ready is None or before.is_ready == after.is_ready:
            continue
        lost, back = f"no replica of {arm.title} is ready", f"{arm.title} is ready again"
        told = next((one for one in reversed(state.log) if one.text.startswith((lost, back))), None)
        is_told_lost = told is not None and told.text.startswith(lost)
        if after.is_ready:
            state = log(state, now_s, back) if is_told_lost else state
            continue
        if is_told_lost or (told is not None and now_s - told.at_s < FLAP_S):
            continue
        status = version_status(seen, arm.id)
        why = f" ({status.last_error})" if status is not None and status.last_error else ""
        who = f"{other.title} answers for it" if other_now.is_ready else "nobody answers"
        if arm is state.stable and other_now.is_ready:
            who = "its requests are not answered"  # a canary never stands in for stable
        state = log(state, now_s, f"{lost}{why}; {who}")
    return state


def _noted(before: ArmAnswers, seen: Observation, version: str, now_s: float) -> ArmAnswers:
    status = version_status(seen, version)
    if status is not None and status.phase is VersionPhase.DRAINING:
        return before  # out of rotation by our own order: its replicas are as they were
    is_ready = answering_replicas(seen, version) > 0
    if is_ready == before.is_ready:
        return before
    if is_ready:
        return ArmAnswers(True, before.lost_at_s, now_s if before.is_ready is False else None)
    return ArmAnswers(False, now_s, before.back_at_s)


def kept_bp(state: RolloutState, cause: Cause, gate: GateReport | None, seen: Observation) -> int:
    """`Departure.kept_bp` of a rollback that begins now. gate: the one that fired."""
    if state.phase is Phase.UNLOADING:
        return FULL_BP
    is_bearable = cause.kind in BEARABLE or (cause.kind is CauseKind.GATE and gate is not None)
    if state.phase not in LIVE or not is_bearable or bar(state, seen, gate) is not None:
        return 0
    return state.weight_bp


def bar(state: RolloutState, seen: Observation, fired: GateReport | None = None) -> str | None:
    """Why the canary may have no weight at all any more; None: nothing is known against it."""
    if seen.split is not None and state.id in seen.split.tombstoned:
        return "a direct rollback left a tombstone in the route table"
    return _harm_in_answers(seen, fired)


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


def standing(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> Standing:
    """Who should have the traffic of this departure, and whether the leaving version stays loaded."""
    why = _why_staying(state, departure, seen, now_s) if departure.kept_bp else "the canary has no weight"
    return Standing(not why, _is_kept(state, departure, seen, now_s), why)


def _why_staying(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> str:
    """Why the staying version has the traffic; empty: the leaving one has, or gets, it."""
    staying, leaving = state.title(departure.staying), state.title(departure.leaving)
    is_promoted = departure.promoted
    if is_lost(state, departure.leaving, seen, now_s, after_s=BLINK_S if is_promoted else None):
        if not is_promoted:
            return f"{leaving} has no ready replica either"
        if answering_replicas(seen, departure.staying):
            return f"{staying} is ready again, {leaving} has no ready replica"
    is_table_lost = seen.split is None or not seen.split.applied
    if not is_promoted and is_table_lost and _blind_s(state, seen, now_s) >= state.plan.unreadable_s:
        return f"the fleet cannot be read, so whether {staying} answers is not known"
    if departure.step is DepartureStep.RESTORE:
        is_enough = seen.versions is None or answering_replicas(seen, departure.staying) >= _needed(
            state, departure, seen, now_s
        )
        # What was never read waits for nothing, when a rollback begins.
        is_unknown = state.departure is None and _arm(state, departure.staying).is_ready is None
        is_back = is_unknown or (is_enough and answers_steadily(state, departure.staying))
        return f"{staying} is ready again" if is_back else ""
    is_gone = is_lost(state, departure.staying, seen, now_s, after_s=BLINK_S)
    return (
        ""
        if is_gone and could_answer(state, seen, departure.leaving)
        else f"{staying} answers, or {leaving} cannot"
    )


def _needed(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> int:
    """Ready replicas with which the staying version takes the traffic of one that answers."""
    if departure.promoted:
        return state.stable.replicas
    since_s = departure.kept_since_s
    if since_s is None or now_s - since_s >= state.plan.load_s:
        return 1
    return min(state.stable.replicas, max(1, answering_replicas(seen, departure.leaving)))


def _is_kept(state: RolloutState, departure: Departure, seen: Observation, now_s: float) -> bool:
    has_left = departure.step in (DepartureStep.DRAIN, DepartureStep.CANCEL, DepartureStep.UNLOAD)
    if not has_left or not state.exposed or not _is_loaded(seen, departure.leaving):
        return False
    is_blind = _blind_s(state, seen, now_s) >= state.plan.unreadable_s
    is_unknown = _arm(state, departure.staying).is_ready is None
    if not is_blind and (is_unknown or answers_steadily(state, departure.staying)):
        return False
    if is_lost(state, departure.leaving, seen, now_s):
        return False
    is_promotion = state.phase is Phase.UNLOADING and not state.plan.twin
    since_s = now_s if departure.kept_since_s is None else departure.kept_since_s
    return is_promotion or departure.promoted or departure.kept_bp > 0 or now_s - since_s < state.plan.load_s


def answers_steadily(state: RolloutState, version: str) -> bool:
    """True: at the last reading, a replica of the version had been ready for the plan's `steady_s`."""
    arm, blind_at_s = _arm(state, version), state.answers.read_at_s
    if not arm.is_ready:
        return False
    read_at_s = state.ticked_at_s if blind_at_s is None else blind_at_s
    return arm.back_at_s is None or read_at_s - arm.back_at_s >= state.plan.steady_s


def is_lost(
    state: RolloutState, version: str, seen: Observation, now_s: float, *, after_s: float | None = None
) -> bool:
    """True: the fleet was read, and the version has had no ready replica for so long (default: `unready_s`).

    One that has failed, is being stopped or is gone is lost at once; one that drains is not.
    """
    if seen.versions is None:
        return False
    status = version_status(seen, version)
    if status is not None and status.phase is VersionPhase.DRAINING:
        return False
    if status is None or status.phase not in (VersionPhase.LOADING, VersionPhase.READY):
        return True
    arm = _arm(state, version)
    limit_s = state.plan.unready_s if after_s is None else after_s
    return not arm.is_ready and (arm.lost_at_s is None or now_s - arm.lost_at_s >= limit_s)


def could_answer(state: RolloutState, seen: Observation, version: str) -> bool:
    """True: the version is loaded, and had a ready replica when it was last in rotation."""
    return _is_loaded(seen, version) and _arm(state, version).is_ready is True


def _is_loaded(seen: Observation, version: str) -> bool:
    """False: the fleet shows that nothing of the version can be kept."""
    status = version_status(seen, version)
    return seen.versions is None or (status is not None and status.phase in LOADED)


def _arm(state: RolloutState, version: str) -> ArmAnswers:
    return state.answers.stable if version == state.stable.id else state.answers.canary


def _blind_s(state: RolloutState, seen: Observation, now_s: float) -> float:
    """Seconds for which the fleet has not been read."""
    read_at_s = state.answers.read_at_s
    return 0.0 if seen.versions is not None or read_at_s is None else now_s - read_at_s


# --- what is written of it


def note_kept(
    state: RolloutState, departure: Departure, seen: Observation, now_s: float
) -> tuple[RolloutState, Departure]:
    """Since when the staying version has not answered; ends when it has been ready for long enough."""
    is_ready, since_s = _arm(state, departure.staying).is_ready, departure.kept_since_s
    if is_ready is False or _blind_s(state, seen, now_s) >= state.plan.unreadable_s:
        since_s = now_s if since_s is None else since_s
    elif departure.step is not DepartureStep.RESTORE and answers_steadily(state, departure.staying):
        since_s = None
    departure = replace(departure, kept_since_s=since_s)
    return replace(state, departure=departure), departure


def waiting_text(state: RolloutState) -> str:
    """What is paged when a rollback waits for stable."""
    stable, canary = state.stable.title, state.canary.title
    return (
        f"{state.service}: rolling back, but {stable} has no ready replica: {canary} keeps its "
        f"{percent(state.weight_bp)} until {stable} answers; to take it out of traffic all the same: "
        f"canaryctl rollback {state.service} --direct"
    )


def page_unanswered(
    state: RolloutState, departure: Departure, seen: Observation, now_s: float, is_kept: bool
) -> RolloutState:
    """Page each hour while no version answers, or none is known to; log when the staying one is ready."""
    key = f"unanswered/{departure.staying}"
    since_s = now_s if departure.kept_since_s is None else departure.kept_since_s
    paged = tuple(one for one in state.alarmed if one.startswith(key))
    is_paged = bool(paged)
    staying, leaving = state.title(departure.staying), state.title(departure.leaving)
    is_ready = _arm(state, departure.staying).is_ready
    if not is_kept:
        if is_paged and seen.versions is not None:
            state = untold(state, paged)
            text = f"{staying} is ready again" if is_ready else f"{leaving} is kept loaded no longer"
            state = log(state, now_s, text)
        return state
    due = told_hourly(state, key, now_s - since_s)
    if due is None or key in paged or (is_ready and seen.versions is not None):
        return state
    what = f"no version answers: {staying} has no ready replica"
    if seen.versions is None:
        what = f"the fleet cannot be read, so it is not known whether {staying} answers"
    if departure.step is DepartureStep.RESTORE:
        rest = f"{leaving} has none either"
    elif not state.is_canary_leaving:
        rest = f"{leaving} stays loaded; return to it: canaryctl rollback {state.service}"
    elif departure.kept_bp:
        rest = f"{leaving} stays loaded without traffic until {staying} answers"
    else:
        rest = f"{leaving} stays loaded without traffic for {duration(round(state.plan.load_s))} at most"
    text = f"{state.service}: {what}; {rest}"
    state = log(due, now_s, text)
    return notice(state, f"unanswered-{state.log_count}", "page", text, now_s)
