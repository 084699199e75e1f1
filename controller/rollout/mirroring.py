"""Phase Mirroring: when it is over, and when it shows that the canary cannot serve.

Rules:
1. It ends with `min_pairs` pairs, or at its deadline with as many as there are; their number is recorded.
   Without traffic there is nothing to copy, and the stages still have their own proofs.
2. A canary none of whose copies was answered is rolled back: at once after FAILED_COPIES of them, else at the
   deadline. No user was served by it.
3. Figures that cannot be read neither pass nor fail it.
"""

from __future__ import annotations

from controller.rollout.observation import MirrorStatus, Observation
from controller.rollout.state import RolloutState

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
    return status.pairs >= plan.min_pairs or state.is_late(now_s)


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
    return f"mirrored {status.pairs} of {plan.min_pairs} pairs{same}{failed}"
