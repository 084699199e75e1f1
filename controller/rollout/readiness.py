"""Ready replicas of both arms over time: losses, crash loops, and how long a number of replicas has lasted.

Rules:
1. A fall of the number of ready replicas is a loss; a further fall before one came back is the same loss. The
   canary's replicas that were drained, as in a rolling restart, are not lost.
2. A loss is early when the number had risen within `SOON_S` before it: a replica died soon after it became
   ready. Drained nodes, outages and chance take replicas that were ready for long.
3. `CRASHES` early losses of the canary within `CRASH_WINDOW_S` are a crash loop, if stable lost none from
   `SOON_S` before the first of them on: what takes replicas from both arms is not the canary's. While stable
   has no ready replica nothing is compared: no loss is counted, and the canary is not taken out for this.
4. No weight rises before the number was the same for the plan's `steady_s`. The bake ends only when the
   canary alone lost nothing for as long as it, `CALM_S` at most; past its deadline that is not asked any
   more. An undo rises at once: its smoke test decides.
A fleet that cannot be read has lost nothing.
"""

from __future__ import annotations

from dataclasses import replace

from controller.quantities import duration
from controller.rollout.observation import Observation, answering_replicas, ready_replicas, version_status
from controller.rollout.state import Readiness, RolloutState

# A loop whose engines take up to ten minutes to load is found; three unrelated early losses of one arm alone
# in so short a time are rare.
CRASHES = 3
CRASH_WINDOW_S = 1800.0
SOON_S = 60.0
CALM_S = 600.0


def note_ready(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The state with what the fleet shows of both arms."""
    if seen.versions is None:
        return state
    is_compared = ready_replicas(seen, state.stable.id) > 0
    status = version_status(seen, state.canary.id)
    drained = status.drained_replicas if status is not None else 0
    canary = _noted(
        state.canary_ready,
        answering_replicas(seen, state.canary.id),
        now_s,
        drained=drained,
        is_counted=is_compared,
    )
    # A drain of stable's node may have taken the canary's replicas harder: it is no fault of the canary's.
    stable = _noted(
        state.stable_ready, answering_replicas(seen, state.stable.id), now_s, drained=0, is_counted=False
    )
    if canary is state.canary_ready and stable is state.stable_ready:
        return state
    return replace(state, canary_ready=canary, stable_ready=stable)


def _noted(before: Readiness, count: int, now_s: float, *, drained: int, is_counted: bool) -> Readiness:
    """drained: replicas so far, 0 after the fleet began to count anew. is_counted: an early loss is kept."""
    early_at_s = tuple(at_s for at_s in before.early_losses_at_s if now_s - at_s < CRASH_WINDOW_S)
    if early_at_s != before.early_losses_at_s:
        before = replace(before, early_losses_at_s=early_at_s)
    newly_drained = drained - before.drained if drained >= before.drained else drained
    if drained != before.drained:
        before = replace(before, drained=drained)
    if before.count is None:
        return replace(before, count=count)
    if count == before.count:
        return before
    if 0 < before.count - count <= newly_drained:
        return replace(before, count=count, changed_at_s=now_s)
    after = replace(before, count=count, changed_at_s=now_s, is_falling=count < before.count)
    if not after.is_falling:
        return replace(after, rose_at_s=now_s)
    if before.is_falling:
        return after
    is_early = before.rose_at_s is not None and now_s - before.rose_at_s <= SOON_S
    if is_early and is_counted:
        early_at_s = (*early_at_s, now_s)[-CRASHES:]
    return replace(after, last_lost_at_s=now_s, early_losses_at_s=early_at_s)


def _has_stable_lost(state: RolloutState, since_s: float) -> bool:
    """True: stable lost a replica, too, from `SOON_S` before `since_s` on."""
    lost_at_s = state.stable_ready.last_lost_at_s
    return lost_at_s is not None and lost_at_s >= since_s - SOON_S


def crash_loop(state: RolloutState, seen: Observation) -> str | None:
    """What is said of a canary in a crash loop; None: it is in none."""
    early_at_s = state.canary_ready.early_losses_at_s
    if len(early_at_s) < CRASHES or _has_stable_lost(state, early_at_s[0]):
        return None
    if ready_replicas(seen, state.stable.id) == 0:
        return None
    status = version_status(seen, state.canary.id)
    why = f": {status.last_error}" if status is not None and status.last_error else ""
    times = f"{CRASHES} times within {duration(round(CRASH_WINDOW_S))}"
    return f"crash loop: {state.canary.id} lost a replica soon after it became ready, {times}{why}"


def is_steady(state: RolloutState, now_s: float) -> bool:
    """True: the canary's ready replicas have lasted long enough for a weight to rise."""
    changed_at_s = state.canary_ready.changed_at_s
    return state.plan.undo or changed_at_s is None or now_s - changed_at_s >= state.plan.steady_s


def is_calm(state: RolloutState, now_s: float) -> bool:
    """True: no loss of the canary's replicas delays the end of the bake."""
    return state.is_late(now_s) or _is_undisturbed(state, now_s)


def _is_undisturbed(state: RolloutState, now_s: float) -> bool:
    lost_at_s = state.canary_ready.last_lost_at_s
    if lost_at_s is None or _has_stable_lost(state, lost_at_s):
        return True
    return now_s - lost_at_s >= min(state.plan.bake_s, CALM_S)


def baked_text(state: RolloutState, now_s: float) -> str:
    """`baked: v-new becomes stable`, and whether its replicas came and went to the end."""
    text = f"baked: {state.canary.title} becomes stable"
    return text if _is_undisturbed(state, now_s) else f"{text}; its replicas came and went until then"
