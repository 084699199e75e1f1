"""Phase Mirroring: when it is over, and when it shows that the canary cannot serve.

Rules:
1. It ends with `min_pairs` pairs, or at its deadline with as many as there are; their number is recorded.
   Without traffic there is nothing to copy, and the stages still have their own proofs.
2. A canary none of whose copies was answered is rolled back: at once after FAILED_COPIES of them, else at the
   deadline. No user was served by it.
3. Figures that cannot be read neither pass nor fail it.
4. Where the rollout has a judge, `min_pairs` pairs must be judged. Harm that they show rolls back, as that
   of a gate does (`conditions.py`). That they show none proves nothing: the first stage has its own proof.
   Too little traffic is no hindrance at the deadline, as without a judge. A judge that may not vote, or did
   not, is one: the phase is held with the reason, until there are enough verdicts or a person promotes.
"""

from __future__ import annotations

from controller.quantities import figure
from controller.rollout.observation import MirrorStatus, Observation
from controller.rollout.state import Phase, RolloutState

FAILED_COPIES = 20


def _status(seen: Observation) -> MirrorStatus | None:
    return seen.evidence.mirror if seen.evidence is not None else None


def is_mirrored(state: RolloutState, seen: Observation, now_s: float) -> bool:
    """True: the first stage may begin."""
    plan, status = state.plan.mirror, _status(seen)
    if plan is None or state.waived_through >= 0:
        return True
    if status is None:
        return False
    if not _awaits_verdicts(state):
        return status.pairs >= plan.min_pairs or state.is_late(now_s)
    if status.void is not None:
        return False
    has_little_traffic = status.pairs < plan.min_pairs and (status.judged > 0 or not status.pairs)
    return status.judged >= plan.min_pairs or (state.is_late(now_s) and has_little_traffic)


def _awaits_verdicts(state: RolloutState) -> bool:
    return state.plan.judge is not None and not state.pairs_waived


def unjudged_pairs(state: RolloutState, seen: Observation, now_s: float) -> str:
    """Why the pairs that are to be judged are not; empty: they are, or nobody asks, or traffic lacks."""
    plan, status = state.plan.mirror, _status(seen)
    if state.phase is not Phase.MIRRORING or plan is None or status is None or not _awaits_verdicts(state):
        return ""
    if is_mirrored(state, seen, now_s):
        return ""
    if status.void is not None:
        return f"mirrored pairs: {status.void}"
    if status.pairs < plan.min_pairs and (status.judged or not status.pairs):
        return ""
    return (
        f"mirrored pairs: {status.judged:,} of the {plan.min_pairs:,} that are needed are judged, of "
        f"{status.pairs:,} copied; the judge's per_minute bounds how many are"
    )


def all_copies_failed(state: RolloutState, seen: Observation, now_s: float) -> str | None:
    """What is said of a canary that answered no copy; None: it answered one, or too few were sent."""
    plan, status = state.plan.mirror, _status(seen)
    if plan is None or status is None or status.pairs or not status.failed:
        return None
    if status.failed < min(FAILED_COPIES, plan.min_pairs) and not state.is_late(now_s):
        return None
    why = f", the last by: {status.cause}" if status.cause else ""
    return f"all {status.failed} copies of stable's requests failed on the canary{why}"


def mirrored_text(state: RolloutState, seen: Observation) -> str:
    """`mirrored 40 of 200 pairs, 31 with the same text; 2 copies failed`."""
    plan, status = state.plan.mirror, _status(seen)
    if plan is None:
        return "nothing is mirrored"
    if status is None:
        return f"mirrored an unknown part of {plan.min_pairs} pairs"
    failed = f"; {status.failed} copies failed, the last by: {status.cause}" if status.failed else ""
    same = f", {status.same_text} with the same text" if status.pairs else ""
    judged = f"; {verdicts_text(status)}" if state.plan.judge is not None else ""
    return f"mirrored {status.pairs} of {plan.min_pairs} pairs{same}{failed}{judged}"


def verdicts_text(status: MirrorStatus) -> str:
    """`judged 140 pairs, wrong: stable 2.9 %, canary 14 %; without a verdict: stable 1, canary 3`."""
    parts = [f"judged {status.judged:,} pairs"]
    if status.judged:
        stable, canary = (figure(100.0 * wrong / status.judged, 2) for wrong in status.wrong)
        parts[0] += f", wrong: stable {stable} %, canary {canary} %"
    if any(status.missing):
        parts.append(f"without a verdict: stable {status.missing[0]:,}, canary {status.missing[1]:,}")
    return "; ".join(parts)


def progress_text(state: RolloutState, seen: Observation) -> str:
    """What the phase waits for, for people: `200 mirrored pairs (...), 0 users answered by v-2`."""
    plan, status = state.plan.mirror, _status(seen)
    if plan is None:
        return ""
    of = "judged" if _awaits_verdicts(state) else "mirrored"
    if status is None:
        done = "how many there are cannot be read"
    elif of == "judged":
        done = f"{status.pairs:,} copied, {verdicts_text(status)}"
        done += f"; {status.void}" if status.void is not None else ""
    else:
        done = f"{status.pairs:,} so far"
    failed = f"; {status.failed:,} copies failed" if status is not None and status.failed else ""
    until = f"{plan.min_pairs:,} {of} pairs of answers ({done}{failed})"
    return f"{until}; users answered by {state.canary.id}: 0"
