"""Golden sets that an operator may name: those that the service has, or had in a rollout.

The controller reads the file as its own user, and says of it whether it is there, may be read, and which of
its lines are none of a golden set. So a new path is an admin's to give, and whoever may not is told the same
of each.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.api.attempts import HISTORY_LIMIT
from controller.auth import Identity, Role
from controller.errors import BadInput
from controller.spec.policy import PolicySpec
from controller.spec.service import ServiceSpec
from controller.store.past import past_state
from controller.store.sql import SqlStore


def refuse_new_golden(policy: PolicySpec, spec: ServiceSpec, store: SqlStore, identity: Identity) -> None:
    """Raises BadInput, before anything is read, for a golden set that is new to the service, unless an admin
    asks. spec: the service's."""
    name = policy.preflight.golden if policy.preflight is not None else None
    if name is None or identity.role.covers(Role.ADMIN) or name in _known(spec, store):
        return
    raise BadInput(
        f"policy.preflight.golden {name} is new for {spec.service}: an admin must deploy with it "
        "first, because the controller reads it; leave it out, or use one that the service has"
    )


def _known(spec: ServiceSpec, store: SqlStore) -> Iterator[str]:
    if spec.policy.preflight is not None and spec.policy.preflight.golden is not None:
        yield spec.policy.preflight.golden
    for row in store.rollouts(spec.service, limit=HISTORY_LIMIT):
        state = past_state(row)
        asked = state.plan.preflight if state is not None else None
        if asked is not None and asked.golden is not None:
            yield asked.golden
