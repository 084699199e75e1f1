"""Past a dead controller: a rollback through the route table and the store, and the end of what it left."""

from __future__ import annotations

import time
from dataclasses import dataclass

from controller.auth import Identity, Role
from controller.errors import CanaryctlError, UnknownService, Unreachable
from controller.rollout.machine import abandon
from controller.rollout.observation import CommandKind
from controller.rollout.serialization import state_from_json
from controller.settings import Settings
from controller.store.sql import SqlStore
from controller.wiring import cluster


@dataclass(frozen=True, slots=True)
class Direct:
    """What a direct rollback reached, one line each."""

    succeeded: tuple[str, ...]
    failed: tuple[str, ...]
    has_moved: bool  # no request starts on a canary any more; False: nobody could be told


def roll_back_directly(settings: Settings, service: str | None, *, reason: str) -> Direct:
    """Tombstone in the route table, request in the store; each is tried whatever becomes of the other."""
    succeeded: list[str] = []
    failed: list[str] = []
    rollout: str | None = None
    has_moved = False
    try:
        store = SqlStore(settings.database_url)
        names = [row.name for row in store.services()]
        if service is None:
            if len(names) != 1:
                raise UnknownService(f"there are {len(names)} services; name one of {', '.join(names)}")
            service = names[0]
        store.service(service)
        states = [state_from_json(row.state) for row in store.rollouts(service, limit=1)]
        rollout = states[0].id if states and not states[0].is_final else None
        if rollout is None:
            succeeded.append(f"{service}: no rollout runs, already serving {store.service(service).stable}")
            has_moved = True
        else:
            identity = Identity("direct", Role.ADMIN)
            store.append_command(rollout, CommandKind.ROLLBACK, identity, reason=reason, at_s=time.time())
            succeeded.append(f"store: rollback of {rollout} is asked for; the next controller finishes it")
    except UnknownService:
        raise
    except CanaryctlError as exc:
        failed.append(f"store: not reached ({exc})")
    try:
        cluster.connect(settings)
        succeeded += _tombstone(service, rollout)
        has_moved = True
    except CanaryctlError as exc:
        failed.append(f"route table: not reached ({exc})")
    return Direct(tuple(succeeded), tuple(failed), has_moved)


def _tombstone(service: str | None, rollout: str | None) -> list[str]:
    if service is None:
        raise Unreachable("without the store the service must be named; give its name")
    from serving.table.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=2.0)
    sight = traffic.observe(service)
    named = rollout or (sight.rollout if sight is not None and sight.weight_bp else "")
    if sight is None:
        raise Unreachable(f"the table of {service} does not answer")
    if not named:
        return []
    ends_at_s = time.monotonic() + 5.0
    told = traffic.tombstone(service, named)
    while told is not None and not told.applied and time.monotonic() < ends_at_s:
        time.sleep(0.02)
        told = traffic.observe(service)
    if told is None or not told.applied:
        raise Unreachable(f"the table of {service} took the tombstone, but not every router acknowledged it")
    return [f"route table: {named} has a tombstone and no traffic ({told.how})"]


def forget_services(settings: Settings) -> bool:
    """Forget every service whose engines are gone with their cluster; False: there was none.

    A rollout that was under way ends here: it must not begin to act when the name is used again.
    """
    store = SqlStore(settings.database_url)
    rows = store.services()
    for row in rows:
        for rollout in store.running(row.name):
            stored = store.load(rollout)
            if stored is not None:
                over = abandon(stored.state, time.time(), "the service was taken down without a controller")
                store.commit(over, (), expected_version=stored.version, evidence=None)
        store.remove_service(row.name, at_s=time.time())
    store.close()
    return bool(rows)
