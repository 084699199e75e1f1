"""Whether a service may be acted on from this database: only if it knows all that was done to the service.

Invariants: the mark is in the route table before what was committed under it is done; what cannot be read is
not taken for good; a service that has no mark of its own (it is new, was removed, or an older release served
it) is begun by no database but one that leads to every mark of this cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from controller.errors import OlderDatabase, StaleToken, Unreachable
from controller.store.database import Database
from controller.store.lineage import keep_marked, leads_to, own_mark
from serving.messages import DatabaseMark, SplitStatus

ACCEPT = "restore the newest one, or go back to what this one says: canaryctl up --accept-database"


class MarkedTables(Protocol):
    """The part of `serving.table.traffic_ray.RayTraffic` that is used here."""

    def observe(self, service: str) -> SplitStatus | None: ...
    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool: ...


def older_text(service: str, stable: str | None = None) -> str:
    """What is wrong with a database that does not lead to the service's mark. stable: what users get."""
    users = f", which sends users to {stable}," if stable is not None else ""
    return (
        f"the route table of {service}{users} was set from another database than this one, which is an older "
        f"copy or a second one; {ACCEPT}"
    )


def is_newest(
    database: Database,
    service: str,
    observe: Callable[[str], SplitStatus | None],
    names: Callable[[], Sequence[str] | None],
) -> bool | None:
    """Whether the database knows all that was done to the service; None: not known.

    names: of the services with a route table; None where Ray does not answer. Raises Unreachable.
    """
    table = observe(service)
    if table is not None and table.mark is not None:
        return leads_to(database, service, table.mark)
    found = names()
    if found is None or (table is None and service in found):
        return None
    try:
        return _other_from_elsewhere(database, service, observe, found) is None
    except Unreachable:
        return None


def _other_from_elsewhere(
    database: Database,
    service: str,
    observe: Callable[[str], SplitStatus | None],
    names: Sequence[str],
) -> str | None:
    """Another service whose mark this database does not lead to; None: there is none. Raises Unreachable."""
    for name in names:
        if name == service:
            continue
        table = observe(name)
        if table is None:
            raise Unreachable(_silent_text(name))
        if table.mark is not None and not leads_to(database, name, table.mark):
            return name
    return None


def _silent_text(service: str) -> str:
    return (
        f"not acting: the route table of {service} does not answer, so it is not known whether this "
        "database is the newest; it is asked again each second"
    )


class NewestDatabase:
    """The check for one service and one lease. names: of the services with a route table; None where Ray
    does not answer."""

    def __init__(
        self,
        service: str,
        database: Database,
        tables: MarkedTables,
        names: Callable[[], Sequence[str] | None],
    ) -> None:
        self._service = service
        self._database = database
        self._tables = tables
        self._names = names
        self._noted: DatabaseMark | None = None  # under this lease; None: nothing yet

    def require(self, token: int) -> None:
        """MUST come before each tick. Raises OlderDatabase where another is newer, Unreachable where that
        cannot be read, StaleToken when the lease is another's."""
        service = self._service
        own = own_mark(self._database, service)
        if own.token != token:
            raise StaleToken(f"token {token} is not the lease's, {own.token} is: another controller acts")
        if own == self._noted:
            return
        if self._noted is not None and not leads_to(self._database, service, self._noted):
            raise OlderDatabase(
                f"not acting on {service}: the database was replaced by an older copy while this controller "
                f"used it; {ACCEPT}"
            )
        table = self._tables.observe(service)
        if table is None:
            self._require_without(service)
            return
        found = table.mark
        if found is None and self._noted is None:
            self._require_others(service, self._names())
        if found not in (None, own, self._noted) and not leads_to(self._database, service, found):
            raise OlderDatabase(f"not acting: {older_text(service, table.stable)}")
        if self._noted is None:
            keep_marked(self._database, service, [own] if found is None else [found, own])
        if self._tables.mark(service, own, instead_of=found):
            self._noted = own
        elif self._noted is None:
            raise Unreachable(_silent_text(service))

    def _require_without(self, service: str) -> None:
        """As `require`, of a service whose table was not read."""
        if self._noted is not None:
            return  # it was the newest under this lease
        names = self._names()
        if names is None or service in names:
            raise Unreachable(_silent_text(service))
        self._require_others(service, names)

    def _require_others(self, service: str, names: Sequence[str] | None) -> None:
        """As `require`, of a service that has no mark."""
        if names is None:
            raise Unreachable(_silent_text(service))
        other = _other_from_elsewhere(self._database, service, self._tables.observe, names)
        if other is not None:
            raise OlderDatabase(f"not acting on {service}: {older_text(other)}")
