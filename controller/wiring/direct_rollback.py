"""Direct rollback without a controller, through the route table and the store."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from controller.auth import Identity, Role
from controller.errors import CanaryctlError, UnknownService, Unreachable
from controller.rollout.machine import abandon
from controller.rollout.observation import CommandKind
from controller.rollout.serialization import state_from_json
from controller.settings import Settings
from controller.store.sql import SqlStore
from controller.wiring import cluster

ACK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class DirectRollback:
    """Result of a direct rollback, one line for each step."""

    succeeded: tuple[str, ...]
    failed: tuple[str, ...]
    has_moved: bool  # no new request goes to a canary; False: the routers may still send some


def roll_back_directly(settings: Settings, service: str | None, *, reason: str) -> DirectRollback:
    """Store a rollback command and tombstone the rollout in the route table, each even if the other fails."""
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
        stable = store.service(service).stable
        states = [state_from_json(row.state) for row in store.rollouts(service, limit=1)]
        rollout = states[0].id if states and not states[0].is_final else None
        if rollout is None:
            succeeded.append(f"{service}: no rollout runs, already serving {stable}")
            has_moved = True
        else:
            identity = Identity("direct", Role.ADMIN)
            store.append_command(rollout, CommandKind.ROLLBACK, identity, reason=reason, at_s=time.time())
            succeeded.append(f"store: rollback of {rollout} requested; the next controller completes it")
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
    return DirectRollback(tuple(succeeded), tuple(failed), has_moved)


def _tombstone(service: str | None, rollout: str | None) -> list[str]:
    """Tombstone the rollout, else the one in the route table, and wait for every router to acknowledge it."""
    if service is None:
        raise Unreachable("the store was not read, so the service must be named; give its name")
    from serving.table.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=2.0)
    split = traffic.observe(service)
    if split is None:
        raise Unreachable(f"the route table of {service} does not answer")
    name = rollout or (split.rollout if split.weight_bp else "")
    if not name:
        return []
    deadline_at_s = time.monotonic() + ACK_TIMEOUT_S
    split = traffic.tombstone(service, name)
    while split is not None and not split.applied and time.monotonic() < deadline_at_s:
        time.sleep(0.02)
        split = traffic.observe(service)
    if split is None or not split.applied:
        raise Unreachable(f"the tombstone is in the table of {service}, but not every router acknowledged it")
    return [f"route table: {name} is tombstoned and gets no traffic ({split.how})"]


def forget_services(settings: Settings) -> bool:
    """Remove every service from the store after its cluster was stopped; False: there was none.

    A running rollout is ended, so that it does not continue when the service's name is used again.
    """
    store = SqlStore(settings.database_url)
    rows = store.services()
    for row in rows:
        for rollout in store.running(row.name):
            stored = store.load(rollout)
            if stored is not None:
                ended = abandon(stored.state, time.time(), "the service was taken down without a controller")
                asked = store.commands(rollout, after_seq=ended.commands_through)
                if asked:  # nobody is left to carry them out
                    ended = replace(ended, commands_through=asked[-1].seq)
                store.commit(ended, (), expected_version=stored.version, evidence=None)
        store.remove_service(row.name, at_s=time.time())
    store.close()
    return bool(rows)
