"""What stands between a rollout and its next forward move, in words: lacking evidence, no way back, capacity.

A stage asks for its proof. The last rise and the end of the bake prove nothing new, but they ask that harm
could still be seen: while a deciding gate's metric has stopped, or the evidence is INVALID, frozen or
unreadable, they wait. Only that the arms' replicas are loaded unequally does not count: at the promoted
weight they always are. An undo and a promotion whose proofs a person waived ask for nothing.
"""

from __future__ import annotations

from controller.quantities import duration
from controller.rollout.desired import canary_replicas
from controller.rollout.journal import source_text
from controller.rollout.mirroring import unjudged_pairs
from controller.rollout.observation import Observation, probe_status, ready_replicas
from controller.rollout.readiness import is_calm, is_steady
from controller.rollout.state import Phase, RolloutState
from evaluation.report import Source, Verdict


def evidence_gap(state: RolloutState, seen: Observation, now_s: float) -> str:
    """Why harm could not be seen now; empty: it could, or nobody asks."""
    evidence = seen.evidence
    if state.plan.undo or state.waived_through >= len(state.plan.stages):
        return ""
    if evidence is None:
        return "the evidence cannot be read"
    stopped = next(
        (gate for gate in evidence.gates if gate.source is Source.STOPPED and not gate.is_alarm), None
    )
    if stopped is not None:
        return source_text(stopped, now_s)
    if evidence.frozen:
        return "the statistics are frozen: units do not fit their weight"
    if evidence.verdict is Verdict.INVALID and not evidence.only_load:
        return missing_evidence(seen)
    return ""


def missing_evidence(seen: Observation) -> str:
    """Description of the evidence that is missing; empty: none is."""
    if seen.evidence is None:
        return "the evidence cannot be read"
    if seen.evidence.missing:
        return f"no data to judge {', '.join(seen.evidence.missing)}"
    return "the evidence is INVALID" if seen.evidence.verdict is Verdict.INVALID else ""


def is_judge_alone(state: RolloutState, seen: Observation) -> bool:
    """Whether nothing is missing but what the judge makes void: refused, silent, drifted or too many missing.

    That says nothing of the canary, so it is held for it, and never rolled back, whatever `on_missing` says.
    """
    plan, evidence = state.plan.judge, seen.evidence
    if plan is None or evidence is None or not evidence.missing or evidence.frozen:
        return False
    shown = evidence.judge
    why = state.judge.void or (shown.drift or shown.too_many if shown is not None else None)
    has_stopped = any(gate.source is Source.STOPPED and not gate.is_alarm for gate in evidence.gates)
    judged = {gate.gate for gate in evidence.gates if gate.metric == plan.metric}
    is_alone = all(line.partition(":")[0] in judged for line in evidence.missing)
    return why is not None and is_alone and not has_stopped


def not_judged(state: RolloutState, seen: Observation) -> str:
    """Why the phase's probe has no verdict; empty: it has one, or it runs."""
    probe = probe_status(state, seen)
    return probe.detail if probe is not None and probe.phase == "not_judged" else ""


def hold_reason(state: RolloutState, seen: Observation, now_s: float) -> str:
    """What keeps a phase past its deadline."""
    stable, ready = state.stable.title, ready_replicas(seen, state.canary.id)
    needed = canary_replicas(state)
    is_stage = state.phase is Phase.STAGE
    is_proven = seen.evidence is not None and seen.evidence.verdict is Verdict.PASS
    if state.phase is Phase.SMOKE:
        return not_judged(state, seen)
    if state.phase is Phase.MIRRORING:
        return unjudged_pairs(state, seen, now_s)
    reasons = [missing_evidence(seen) if is_stage else evidence_gap(state, seen, now_s)]
    if state.unreadable_since_s is not None:
        reasons.append("the data plane cannot be read, or does not apply the split")
    elif not state.plan.undo and seen.versions is not None and not ready_replicas(seen, state.stable.id):
        reasons.append(
            f"{stable} has no ready replica, so no traffic could return to it; see its engine's log"
        )
    if seen.versions is not None and ready < needed:
        reasons.append(f"{ready} of {needed} replicas of {state.canary.title} are ready")
    elif not is_steady(state, now_s):
        reasons.append(f"a replica of {state.canary.title} was lost, or came, a short time ago")
    elif state.phase is Phase.BAKING and not is_calm(state, now_s):
        reasons.append(f"{state.canary.title} goes on losing replicas, and {stable} does not")
    if is_stage and not is_proven and not reasons[0]:
        reasons.append(
            "undecided at the deadline; send more traffic, or wait (a user counts when the session is over)"
        )
    return "; ".join(filter(None, reasons)) or "not finished at the deadline"


def hold_advice(state: RolloutState) -> str:
    """What ends a hold, if not what it waits for."""
    if state.plan.undo and state.weight_bp:
        return f"it stays; to go back all the same: canaryctl rollback {state.service}"
    limit = duration(round(state.plan.hold_limit_s))
    return f"rolled back after {limit} of hold, or at once by: canaryctl rollback {state.service}"
