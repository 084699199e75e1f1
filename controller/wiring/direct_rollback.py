"""Direct rollback without a controller, through the route table and the store."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace

from controller.auth import Identity, Role
from controller.errors import CanaryctlError, UnknownService, Unreachable
from controller.rollout.machine import abandon
from controller.rollout.observation import CommandKind
from controller.rollout.plan import is_undo_id
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
    """Tombstone the rollout in the route table, then store a rollback command, each even if the other fails.

    The table comes first: it alone moves traffic, and the database may be what is broken. Only without a name
    is the store read before. Raises UnknownService when neither knows the service.
    """
    rollback = _Rollback(settings, reason)
    if service is None:
        service = rollback.only_service()
    if service is not None:
        rollback.tombstone(service, None)
        running = rollback.command(service)
        if running is not None:
            rollback.tombstone(service, running)
    if rollback.unknown is not None and not rollback.succeeded:
        raise rollback.unknown
    return DirectRollback(tuple(rollback.succeeded), tuple(rollback.failed), rollback.has_moved)


class _Rollback:
    """Steps of one direct rollback. Whatever a step raises becomes a line, and the next step follows."""

    def __init__(self, settings: Settings, reason: str) -> None:
        self._settings = settings
        self._reason = reason
        self._tombstoned: set[str] = set()
        self._was_connected = False  # without a Ray cluster no router sends anything anywhere
        self.succeeded: list[str] = []
        self.failed: list[str] = []
        self.has_moved = False
        self.unknown: UnknownService | None = None  # the store does not know the service

    def only_service(self) -> str | None:
        """The one service of the store; None: it could not be read. Raises UnknownService."""
        try:
            with closing(SqlStore(self._settings.database_url)) as store:
                names = [row.name for row in store.services()]
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with the store must not end this command
            self.failed.append(f"store: not reached ({_line(exc)}); name the service")
            return None
        if not names:
            raise UnknownService("no service exists, so nothing can be rolled back; start one: canaryctl up")
        if len(names) > 1:
            raise UnknownService(f"there are {len(names)} services; name one of {', '.join(names)}")
        return names[0]

    def tombstone(self, service: str, rollout: str | None) -> None:
        """Tombstone the rollout (None: the one in the route table), and wait until every router knows."""
        if rollout in self._tombstoned:
            return
        try:
            cluster.connect(self._settings)
            self._was_connected = True
            name, how = _tombstone(service, rollout)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with Ray must not keep the store's step back
            line = f"route table: not reached ({_line(exc)})"
            if line not in self.failed:
                self.failed.append(line)
            return
        self.has_moved = True
        if name:
            self._tombstoned.add(name)
            self.succeeded.append(f"route table: {name} is tombstoned and gets no traffic ({how})")

    def command(self, service: str) -> str | None:
        """Store the command; the rollout that it is for, None: none runs, or the store failed."""
        try:
            with closing(SqlStore(self._settings.database_url)) as store:
                return self._command(store, service)
        except UnknownService as exc:
            self.unknown = exc
            self.failed.append(f"store: {_line(exc)}")
        except Exception as exc:  # noqa: BLE001 - as above
            self.failed.append(f"store: not reached ({_line(exc)})")
        return None

    def _command(self, store: SqlStore, service: str) -> str | None:
        stable = store.service(service).stable
        # Not the row's state: it may have a form that only another release can read.
        newest = next(iter(store.rollouts(service, limit=1)), None)
        if newest is not None and newest.ended_at_s is None and is_undo_id(newest.id):
            self.succeeded.append(f"store: undo {newest.id} is under way; the next controller completes it")
            self.has_moved = True
            return None
        if newest is not None and newest.ended_at_s is None:
            identity, now_s = Identity("direct", Role.ADMIN), time.time()
            queued = store.append_command(
                newest.id, CommandKind.ROLLBACK, identity, reason=self._reason, at_s=now_s
            )
            if queued is not None:
                self.succeeded.append(
                    f"store: rollback of {newest.id} requested; the next controller completes it"
                )
                return newest.id
            stable = store.service(service).stable
        self.succeeded.append(f"store: {service}: no rollout runs, already serving {stable}")
        self.has_moved = self.has_moved or not self._was_connected
        return None


def _line(exc: Exception) -> str:
    """First line of the error; with its kind when it is none of ours."""
    text = (str(exc).splitlines() or [""])[0]
    return text if isinstance(exc, CanaryctlError) else f"{type(exc).__name__}: {text}"


def _tombstone(service: str, rollout: str | None) -> tuple[str, str]:
    """(rollout, how the table is applied), once every router acknowledged it; ('', '') when it holds none."""
    from serving.table.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=2.0)
    split = traffic.observe(service)
    if split is None:
        raise Unreachable(f"the route table of {service} does not answer")
    name = rollout or (split.rollout if split.weight_bp else "")
    if not name or is_undo_id(name):
        return "", ""  # an undo is on its way to the version before already
    deadline_at_s = time.monotonic() + ACK_TIMEOUT_S
    split = traffic.tombstone(service, name)
    while split is not None and not split.applied and time.monotonic() < deadline_at_s:
        time.sleep(0.02)
        split = traffic.observe(service)
    if split is None or not split.applied:
        raise Unreachable(f"the tombstone is in the table of {service}, but not every router acknowledged it")
    return name, split.how


def forget_services(settings: Settings) -> bool:
    """Remove every service from the store after its cluster was stopped; False: there was none.

    A running rollout is ended, so that it does not continue when the service's name is used again.
    """
    with closing(SqlStore(settings.database_url)) as store:
        return _forget(store)


def _forget(store: SqlStore) -> bool:
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
    return bool(rows)
