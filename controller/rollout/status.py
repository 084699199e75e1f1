"""Meaning of a rollout state to its users: exit code, effect of `rollback`, urgency of the next tick."""

from __future__ import annotations

from typing import Literal

from controller.rollout.state import LIVE, CauseKind, Phase, RolloutState


def exit_code(state: RolloutState) -> int | None:
    """Exit code of a command that waited for this rollout; None: it is running."""
    match state.phase:
        case Phase.SUCCEEDED:
            return 0
        case Phase.ROLLED_BACK:
            return 6 if state.cause is not None and state.cause.kind is CauseKind.NOT_PROVEN else 5
        case Phase.FAILED:
            return 1
        case _:
            return None


def rollback_effect(
    state: RolloutState | None,
) -> Literal["abort", "switch_back", "restore", "undo", "already"]:
    """What `rollback` would do now. state None: the service has had no rollout.

    A second `rollback` never takes back the first: an undo that runs or has succeeded is left alone, and one
    that ended without its version serving is tried again.
    """
    if state is None:
        return "already"
    if state.plan.undo:
        return "undo" if state.is_final and state.serving == state.stable.id else "already"
    if state.phase is Phase.ROLLED_BACK or state.is_canary_leaving:
        return "already"
    if state.phase in (Phase.SUCCEEDED, Phase.FAILED):
        return "already" if state.serving == state.stable.id else "undo"
    if state.phase is Phase.UNLOADING:
        return "restore"
    return "switch_back" if state.phase is Phase.BAKING else "abort"


def ended_effect(*, is_undo: bool, serves: bool) -> Literal["undo", "already"]:
    """The same of a rollout that has ended, by what every release can read of it. serves: whether its canary
    is in production, as it is after a success."""
    return "undo" if serves != is_undo else "already"


def is_urgent(state: RolloutState) -> bool:
    """True: a weight is being applied or a version is leaving, so the next tick should follow at once."""
    return not state.is_final and (
        state.departure is not None or (state.phase in LIVE and state.acked_at_s is None)
    )
