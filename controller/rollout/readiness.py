"""Ready replicas of both arms over time: losses, crash loops, and how long a number of replicas has lasted.

Rules:
1. A fall of the number of ready replicas is a loss; a further fall before one came back is the same loss.
2. `CRASHES` losses of the canary within `CRASH_WINDOW_S` are a crash loop, unless stable had as many: what
   takes replicas from both arms is not the canary's.
3. No weight rises before the number was the same for the plan's `steady_s`. The bake ends only when nothing
   was lost for as long as it, `CALM_S` at most. An undo rises at once: its smoke test decides.
A fleet that cannot be read has lost nothing.
"""

from __future__ import annotations

from dataclasses import replace

from controller.quantities import duration
from controller.rollout.observation import Observation, VersionPhase, version_status
from controller.rollout.state import Readiness, RolloutState

# A loop whose engines take up to ten minutes to load is found; three unrelated losses in so short a time are
# rare, and where nodes come and go stable loses replicas too.
CRASHES = 3
CRASH_WINDOW_S = 1800.0
CALM_S = 600.0


def note_ready(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    """The state with what the fleet shows of both arms."""
    if seen.versions is None:
        return state
    canary = _noted(state.canary_ready, _up(seen, state.canary.id), now_s)
    stable = _noted(state.stable_ready, _up(seen, state.stable.id), now_s)
    return replace(state, canary_ready=canary, stable_ready=stable)


def _up(seen: Observation, version: str) -> int:
    """Replicas that answer, also of a version that is still loading others."""
    status = version_status(seen, version)
    is_up = status is not None and status.phase in (VersionPhase.LOADING, VersionPhase.READY)
    return max(0, status.ready_replicas) if status is not None and is_up else 0


def _noted(before: Readiness, count: int, now_s: float) -> Readiness:
    lost_at_s = tuple(at_s for at_s in before.lost_at_s if now_s - at_s < CRASH_WINDOW_S)
    if before.count is None:
        return replace(before, count=count)
    if count == before.count:
        return before if lost_at_s == before.lost_at_s else replace(before, lost_at_s=lost_at_s)
    is_loss = count < before.count and not before.is_falling
    return Readiness(
        count=count,
        changed_at_s=now_s,
        is_falling=count < before.count,
        lost_at_s=(*lost_at_s, now_s)[-2 * CRASHES :] if is_loss else lost_at_s,
    )


def crash_loop(state: RolloutState, seen: Observation) -> str | None:
    """What is said of a canary in a crash loop; None: it is in none."""
    lost, of_stable = len(state.canary_ready.lost_at_s), len(state.stable_ready.lost_at_s)
    if lost < CRASHES or lost <= of_stable:
        return None
    status = version_status(seen, state.canary.id)
    why = f": {status.last_error}" if status is not None and status.last_error else ""
    within = duration(round(CRASH_WINDOW_S))
    return f"crash loop: {state.canary.id} lost a ready replica {lost} times within {within}{why}"


def is_steady(state: RolloutState, now_s: float) -> bool:
    """True: the canary's ready replicas have lasted long enough for a weight to rise."""
    changed_at_s = state.canary_ready.changed_at_s
    return state.plan.undo or changed_at_s is None or now_s - changed_at_s >= state.plan.steady_s


def is_calm(state: RolloutState, now_s: float) -> bool:
    """True: no replica of the canary was lost for long enough to end the bake."""
    lost_at_s = state.canary_ready.lost_at_s
    return not lost_at_s or now_s - lost_at_s[-1] >= min(state.plan.bake_s, CALM_S)
