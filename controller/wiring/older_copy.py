"""A database that does not know what users get now: found before a controller starts, or accepted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from controller.errors import Unreachable
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.settings import Settings
from controller.store.lineage import adopt_in, leads_to
from controller.store.sql import SqlStore
from controller.wiring import now_served
from controller.wiring.ended_rollouts import end_rollouts
from serving.messages import DatabaseMark

TABLES_WAIT_S = 20.0
UNKNOWN = "the database is an older copy, and what became of this rollout is not known"


@dataclass(frozen=True, slots=True)
class OlderCopy:
    """A service that the database does not know as it is served."""

    service: str
    line: str  # for people
    mark: DatabaseMark | None  # in its route table
    is_stored: bool = True  # False: the database has no such service

    @property
    def then(self) -> str:
        """What becomes of the service once the copy is accepted."""
        if self.is_stored:
            return "the service goes back to what the database says, once that is loaded"
        return "no controller keeps that service; to end what serves: canaryctl down, then canaryctl up"


def older_copies(settings: Settings) -> tuple[OlderCopy, ...]:
    """The services whose users get what their stored state does not lead to, or of which something was
    decided since that the database does not know. Raises Unreachable where a table cannot be read."""
    with closing(_opened(settings)) as store:
        has_services = bool(store.services())
    tables = now_served.read_tables(settings, None, wait_s=TABLES_WAIT_S if has_services else 0.0)
    if tables is None and not has_services:
        return ()  # it leads to nothing that a controller could do
    silent = [one.service for one in tables or () if one.split is None]
    if tables is None or silent:
        what = f"the route table of {silent[0]} does" if silent else "the route tables do"
        raise Unreachable(
            f"{what} not answer, so it is not known whether the database is an older copy; try again"
        )
    with closing(_opened(settings)) as store:  # after the tables: what runs goes on
        stored = {row.name: row.stable for row in store.services()}
        found = []
        for one in tables:
            mark = one.split.mark if one.split is not None else None
            line = _difference(store, one, mark, stored.get(one.service))
            if line is not None:
                found.append(OlderCopy(one.service, line, mark, one.service in stored))
        return tuple(found)


def accept(settings: Settings, copies: tuple[OlderCopy, ...]) -> None:
    """Let controllers act from this database though it is older. What became of the rollouts that run in it
    is not known, so they end: what users were taken off is not given to them again."""
    with closing(_opened(settings)) as store, store.database.write() as db:  # all of it, or nothing
        for copy in sorted(copies, key=lambda one: one.service):
            end_rollouts(db, copy.service, UNKNOWN)
        # Last: it locks the lease, and whoever holds that waits for no service (`statements.require_token`).
        adopt_in(db, [one.mark for one in copies if one.mark is not None])


def _difference(
    store: SqlStore, served: now_served.Served, mark: DatabaseMark | None, stable: str | None
) -> str | None:
    """What the database does not know of the service, as one line; None: nothing. stable: what it stores,
    None: it has no such service."""
    name, serves = served.service, served.serves
    if mark is not None and leads_to(store.database, name, mark):
        return None
    if stable is None:
        # Without a mark it may be the remains of a service that was removed.
        return (
            f"{name}: users get {serves} by the route table, and this database has no {name}"
            if mark
            else None
        )
    if serves not in (None, stable) and not _is_of_running(store, name, str(serves)):
        return f"{name}: users get {serves} by the route table, but by this database {stable}"
    if mark is None:
        return None  # of an older release, or without a controller since it was started
    return f"{name}: users get {serves} by the route table, and this database lacks what was decided last"


def _is_of_running(store: SqlStore, service: str, version: str) -> bool:
    """Whether a rollout that has not ended is of this version; True, too, of one that cannot be read."""
    newest = next(iter(store.rollouts(service, limit=1)), None)
    if newest is None or newest.ended_at_s is not None:
        return False
    try:
        state = state_from_json(newest.state)
    except UnreadableState:
        return True
    return version in (state.stable.id, state.canary.id)


def _opened(settings: Settings) -> SqlStore:
    return SqlStore(settings.database_url, may_create=False)  # the next controller would migrate it, too
