"""Undo: an earlier version of a service again, by one command and without proof. Which one, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controller.api.proposal import new_rollout_id, preflight_s, version_ref
from controller.auth import Identity
from controller.errors import BadInput
from controller.planning.ladder import time_limits
from controller.rollout.machine import begin
from controller.rollout.plan import UNDO_PREFIX, Plan
from controller.rollout.state import RolloutState
from controller.spec.label import title
from controller.spec.service import dump
from controller.store.row_specs import fingerprint_of, label_of, service_spec, version_spec
from controller.store.rows import ServedRow, ServiceRow, VersionRow

# The replaced version stays loaded for so long after the switch: the error guard can still return to it.
BAKE_S = 60.0
SHOWN = 5


def way_back(served: Sequence[ServedRow], stable: str) -> str | None:
    """The version that an undo of `stable` returns to; None: it is the service's first.

    A version that an undo brought back is its own: what it replaced is what somebody wanted to be rid of.
    """
    return next((one.before for one in served if one.version.id == stable), None)


def way_back_of(running: RolloutState) -> str:
    """The version that somebody who wants the way back wants while this rollout runs."""
    return running.canary.id if running.plan.undo else running.stable.id


def named_version(name: str, service: str, known: Sequence[VersionRow]) -> str:
    """The one of `known` whose id or name (as tables show it) is `name`, or whose id begins with it.

    Raises BadInput, naming those that have served.
    """
    matches = (
        [one for one in known if one.id == name],
        [one for one in known if label_of(one).shown == name],
        [one for one in known if one.id.startswith(name)],
    )
    found = list(dict.fromkeys(one.id for one in next(filter(None, matches), [])))
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"version {name} is ambiguous: {', '.join(found[:SHOWN])}; write more of its id")
    shown = ", ".join(title(one.id, label_of(one).shown) for one in known[:SHOWN])
    served = f"that have: {shown}" if known else "no other has"
    raise BadInput(f"version {name} has not served in {service} ({served}); deploy it instead")


def begin_undo(
    row: ServiceRow, stable: VersionRow, target: VersionRow, identity: Identity, reason: str, *, now_s: float
) -> tuple[RolloutState, dict[str, Any]]:
    """The rollout of an undo from `stable` to `target`, and the request to be stored with it."""
    policy, before, after = service_spec(row).policy, version_spec(stable), version_spec(target)
    scales = not (before.is_external or after.is_external)
    plan = Plan(
        risk="none",
        reasons=(f"by {identity.name} ({identity.role.value}): {reason or 'no reason given'}",),
        stages=(),
        holdback_bp=0,
        bake_s=BAKE_S,
        preflight_s=preflight_s(fingerprint_of(target)),
        **time_limits(policy),
        replicas=after.replicas if scales else None,
        stable_replicas=before.replicas if scales else None,
        undo=True,
    )
    refs = version_ref(stable), version_ref(target)
    id = new_rollout_id(UNDO_PREFIX)
    state = begin(id, row.name, stable=refs[0], canary=refs[1], plan=plan, now_s=now_s)
    request = {
        "undo": target.id,
        "version": dump(after),
        "policy": dump(policy),
        "gate": policy.gate_policy().to_mapping(),
        "stages": [],
        "actor": identity.name,
        "reason": reason,
    }
    return state, request
