"""Removal of all services without a controller: from the store alone, after this host's cluster was stopped.

Invariant: what another host's controller leads is never removed; that host alone knows what serves it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from controller.errors import Conflict, LostDatabase, Unreachable
from controller.runtime.service_loop import CONTROLLER_LEASE_S
from controller.settings import Settings
from controller.store.database_url import parsed_url
from controller.store.rows import Lease
from controller.store.sql import SqlStore
from controller.wiring.ended_rollouts import end_rollouts
from controller.wiring.lease_holder import host_of, lease_holder, own_pid, release_orphaned_lease

POLL_S = 0.2


def refuse_while_led(settings: Settings) -> None:
    """Raises Conflict while a controller leads the services of this database, or another host's did last.

    A database that does not answer is no reason to leave this host's cluster running.
    """
    try:
        with closing(SqlStore(settings.database_url, may_create=False)) as store:
            if not store.services():
                return
            # Before the lease is taken, which makes this host the last to lead: a repeated `down` asks again.
            if _is_shared(settings):
                _refuse_elsewhere(store.lease(), has_cluster=settings.cluster_path.exists())
            with _lead(store):
                pass
    except Unreachable:
        return


def forget_services(settings: Settings) -> bool:
    """Remove every service from the store after its cluster was stopped; False: there was none.

    A running rollout is ended, so that it does not continue when the service's name is used again. Raises
    Conflict while a controller leads.
    """
    try:
        with closing(SqlStore(settings.database_url, may_create=False)) as store:
            if not store.services():
                return False
            with _lead(store) as token:
                return _forget(store, token)
    except LostDatabase:
        return False


def _is_shared(settings: Settings) -> bool:
    """Whether other hosts may use the database."""
    return parsed_url(settings.database_url).get_backend_name() != "sqlite"


def _refuse_elsewhere(last: Lease, *, has_cluster: bool) -> None:
    """Raises Conflict where a controller of another host led last: the services may be served there.

    has_cluster: this host has, or had before it was restarted, a cluster; another's may serve all the same.
    """
    (name, boot), (own_name, own_boot) = host_of(last.holder), host_of(lease_holder())
    if not name or (name == own_name and boot in ("", own_boot)):
        return
    is_namesake = name == own_name
    if is_namesake and has_cluster:
        return
    where = f"another host named {name}, or on this one before it was restarted," if is_namesake else name
    raise Conflict(
        f"a controller on {where} led the services of this database last, and may serve them: run "
        "canaryctl down there; if that host is gone, run canaryctl up here, then canaryctl down"
    )


@contextmanager
def _lead(
    store: SqlStore,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[int]:
    """The lease's token, so that no controller acts meanwhile. Raises Conflict: one does."""
    release_orphaned_lease(store)
    first, ends_at_s = store.lease(), clock() + 2 * CONTROLLER_LEASE_S
    while (own := store.acquire_lease(lease_holder(), ttl_s=CONTROLLER_LEASE_S)) is None:
        now = store.lease()
        is_renewed = (now.token, now.expires_at_s) != (first.token, first.expires_at_s)
        if is_renewed or clock() >= ends_at_s:
            if (pid := own_pid(now.holder)) is not None:
                raise Conflict(
                    f"a controller of this host, process {pid}, leads the services of this database; run "
                    f"canaryctl down with its CANARYCTL_HOME, or, if it does not answer: kill {pid}, then: "
                    "canaryctl down"
                )
            name, _ = host_of(now.holder)
            raise Conflict(
                f"a controller on {name} leads the services of this database ({now.holder}); run "
                "canaryctl down there, with its CANARYCTL_HOME"
            )
        sleep(POLL_S)
    try:
        yield own.token
    finally:
        store.release_lease(own.token)


def _forget(store: SqlStore, token: int) -> bool:
    rows = store.services()
    for row in rows:
        with store.database.write() as db:
            end_rollouts(db, row.name, "the service was taken down without a controller", token=token)
        store.remove_service(row.name, at_s=time.time(), token=token)
    return bool(rows)
