"""Undo: an earlier version of a service again, by one command and without proof. Which one, and its plan."""

from __future__ import annotations

from collections.abc import Sequence

from controller.auth import Identity
from controller.errors import BadInput
from controller.rollout.plan import Plan
from controller.rollout.state import Phase, RolloutState
from controller.spec.policy import PolicySpec

# The replaced version stays loaded for so long after the switch: the error guard can still return to it.
BAKE_S = 60.0
SHOWN = 5


def predecessor(history: Sequence[RolloutState], stable: str) -> str | None:
    """The version that `stable` replaced when it was last promoted; None: it replaced none.

    history: the service's rollouts, newest first.
    """
    for state in history:
        if _has_promoted(state) and state.canary.id == stable:
            return state.stable.id
    return None


def earlier_versions(history: Sequence[RolloutState], stable: str) -> tuple[str, ...]:
    """Versions that have served, newest first, without `stable`."""
    served: dict[str, None] = {}
    for state in history:
        if _has_promoted(state):
            served[state.canary.id] = None
        served[state.stable.id] = None
    return tuple(version for version in served if version != stable)


def undone_by(history: Sequence[RolloutState], version: str) -> RolloutState | None:
    """The undo that took `version` out of service, if it did not serve again since; None: there is none."""
    for state in history:
        if not state.is_final or not _has_promoted(state):
            continue
        if state.canary.id == version:
            return None
        if state.plan.undo and state.stable.id == version:
            return state
    return None


def named_version(name: str, service: str, known: Sequence[str]) -> str:
    """The one of `known` that is `name` or begins with it. Raises BadInput, naming those that have served."""
    found = [version for version in known if version == name] or [
        version for version in known if version.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"version {name} is ambiguous: {', '.join(found[:SHOWN])}; write more of it")
    served = f"that have: {', '.join(known[:SHOWN])}" if known else "no other has"
    raise BadInput(f"version {name} has not served in {service} ({served}); deploy it instead")


def undo_plan(
    policy: PolicySpec,
    identity: Identity,
    reason: str,
    *,
    replicas: int | None,
    stable_replicas: int | None,
) -> Plan:
    """The plan of an undo, with the time limits of the service's policy."""
    by = f"by {identity.name} ({identity.role.value}): {reason or 'no reason given'}"
    return Plan(
        risk="none",
        reasons=(by,),
        stages=(),
        holdback_bp=0,
        bake_s=BAKE_S,
        load_s=policy.load_timeout,
        smoke_s=policy.smoke_timeout,
        promote_s=policy.promote_timeout,
        drain_s=policy.drain_timeout,
        unload_s=policy.unload_timeout,
        unreadable_s=policy.unreadable_timeout,
        unready_s=policy.unready_timeout,
        replicas=replicas,
        stable_replicas=stable_replicas,
        undo=True,
    )


def _has_promoted(state: RolloutState) -> bool:
    """True: the rollout made its canary the stable version."""
    is_over = state.phase in (Phase.SUCCEEDED, Phase.FAILED)
    return is_over and not state.plan.twin and state.serving == state.canary.id
