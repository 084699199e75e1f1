"""Whether a service may be acted on from this database: only if it knows all that was done to the service.

Invariants: the mark is in the route table before what was committed under it is done; what cannot be read is
not taken for good; a table without a mark (new, or of an older release) accepts any database.
"""

from __future__ import annotations

from collections.abc import Callable
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
    has_table: Callable[[str], bool | None],
) -> bool | None:
    """Whether the database knows all that was done to the service; None: not known.

    Without a route table nothing was done that could be compared. has_table: None where Ray does not answer.
    Raises Unreachable.
    """
    table = observe(service)
    if table is None:
        return True if has_table(service) is False else None
    return table.mark is None or leads_to(database, service, table.mark)


class NewestDatabase:
    """The check for one service and one lease. has_table: None where Ray does not answer."""

    def __init__(
        self,
        service: str,
        database: Database,
        tables: MarkedTables,
        has_table: Callable[[str], bool | None],
    ) -> None:
        self._service = service
        self._database = database
        self._tables = tables
        self._has_table = has_table
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
        if table is None and (self._noted is not None or self._has_table(service) is False):
            return  # it was the newest under this lease; or there is no table to compare with
        if table is not None:
            found = table.mark
            if found not in (None, own, self._noted) and not leads_to(self._database, service, found):
                raise OlderDatabase(f"not acting: {older_text(service, table.stable)}")
            if self._noted is None:
                keep_marked(self._database, service, [own] if found is None else [found, own])
            if self._tables.mark(service, own, instead_of=found):
                self._noted = own
                return
        if self._noted is None:
            raise Unreachable(
                f"not acting: the route table of {service} does not answer, so it is not known whether this "
                "database is the newest; it is asked again each second"
            )
