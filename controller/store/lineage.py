"""How far a database is, and whether it is the newest: it must know all that was done from any other.

A controller leaves a mark in the route table before it acts: its lease, and the newest event of the service
or of any service's removal, whose own table is gone. A database leads to a mark if it once gave that lease,
and has that very event. An older copy lacks the lease or the event, also one that was restored under the
lease and has given the event's number to another since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import delete, func, insert, select, update

from controller.store import schema as t
from controller.store.database import Database
from controller.store.statements import LEASE, append_event
from serving.messages import DatabaseMark

LEASES = "leases"  # name of the row with earlier leases
MARKED = "marked leases"  # name of the row with those of each service's mark
REMOVAL = "newest removal"  # name of the row with the number of that event
LIMIT = 300  # earlier leases that are remembered beside those

_LEASE = select(t.leases.c.token, t.leases.c.holder).where(t.leases.c.name == LEASE)


def keep_lease(db: sa.Connection) -> None:
    """Remember the current lease as an earlier one, in the transaction that gives the next."""
    token, holder = db.execute(_LEASE).one()
    newest = db.execute(select(func.max(t.events.c.seq))).scalar() or 0
    _put(db, (*_earlier(db), DatabaseMark(token, _short(holder), newest)))


def append_removal(db: sa.Connection, service: str, at_s: float, actor: str, text: str) -> None:
    """Append an event of the service's removal, which moves the mark of every service."""
    append_event(db, service, None, at_s, actor, text)
    _write(db, REMOVAL, str(db.execute(select(func.max(t.events.c.seq))).scalar() or 0))


def keep_marked(database: Database, service: str, marks: Sequence[DatabaseMark]) -> None:
    """Remember the leases of these marks, one of which the service's route table has, until the next call
    and however many are given meanwhile. MUST come before the table is marked. Raises Unreachable."""
    leases = [[one.token, one.holder] for one in marks]
    with database.read() as db:
        if _marked(db).get(service) == leases:
            return
    with database.write() as db:
        db.execute(_LEASE.with_for_update()).one()  # one writer at a time
        names = db.execute(select(t.services.c.name)).scalars().all()
        kept = {name: found for name, found in _marked(db).items() if name in names}
        _write(db, MARKED, json.dumps({**kept, service: leases}))


def own_mark(database: Database, service: str) -> DatabaseMark:
    """The mark of this database's current lease. Raises Unreachable."""
    with database.read() as db:
        return _own(db, service)


def leads_to(database: Database, service: str, mark: DatabaseMark) -> bool:
    """Whether this database knows all that was done until the mark of the service, which it need not have.
    Raises Unreachable."""
    with database.read() as db:
        earlier = _earlier(db)
        if mark in earlier:  # as a person accepted it
            return True
        marks = [one for one in (_own(db, service), *earlier) if one.token == mark.token]
        if not mark.event:  # of an earlier release, or before the first event
            return any(one.holder == mark.holder and one.seq >= mark.seq for one in marks)
        is_leased = any(one.holder == mark.holder for one in marks)
        return is_leased and _event(db, t.events.c.seq == mark.seq) == (mark.seq, mark.event)


def adopt(database: Database, marks: Sequence[DatabaseMark]) -> None:
    """See `adopt_in`."""
    with database.write() as db:
        adopt_in(db, marks)


def adopt_in(db: sa.Connection, marks: Sequence[DatabaseMark]) -> None:
    """Let this database lead to these marks, because a person said so; its next lease has a higher token."""
    db.execute(_LEASE.with_for_update()).one()  # no lease is given meanwhile
    _put(db, (*_earlier(db), *marks))
    token = max((mark.token for mark in marks), default=0)
    behind = (t.leases.c.name == LEASE) & (t.leases.c.token < token)
    if db.execute(select(t.leases.c.token).where(behind)).first() is not None:
        keep_lease(db)
        db.execute(update(t.leases).where(behind).values(token=token, holder="", expires_at_s=0.0))


def _own(db: sa.Connection, service: str) -> DatabaseMark:
    token, holder = db.execute(_LEASE).one()
    own = _event(db, t.events.c.service == service)
    removal = db.execute(select(t.meta.c.value).where(t.meta.c.name == REMOVAL)).scalar()
    if removal is not None and int(removal) > own[0]:
        own = _event(db, t.events.c.seq == int(removal))
    return DatabaseMark(token, _short(holder), *own)


def _event(db: sa.Connection, where: sa.ColumnElement[bool]) -> tuple[int, str]:
    """Number and digest of the newest event of these; zero and nothing without one."""
    c = t.events.c
    newest = select(c.seq, c.service, c.at_s, c.actor, c.text).where(where).order_by(c.seq.desc()).limit(1)
    row = db.execute(newest).one_or_none()
    if row is None:
        return 0, ""
    return row.seq, _short(json.dumps([*row]))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _earlier(db: sa.Connection) -> tuple[DatabaseMark, ...]:
    text = db.execute(select(t.meta.c.value).where(t.meta.c.name == LEASES)).scalar()
    return tuple(DatabaseMark(*one) for one in json.loads(text or "[]"))


def _marked(db: sa.Connection) -> dict[str, list[list[int | str]]]:
    """Token and holder of the leases whose mark a route table may have, by service."""
    text = db.execute(select(t.meta.c.value).where(t.meta.c.name == MARKED)).scalar()
    found: dict[str, list[list[int | str]]] = json.loads(text or "{}")
    return found


def _put(db: sa.Connection, marks: Sequence[DatabaseMark]) -> None:
    marked = [lease for leases in _marked(db).values() for lease in leases]
    older = [one for one in marks[:-LIMIT] if [one.token, one.holder] in marked]
    _write(db, LEASES, json.dumps([one.as_json() for one in (*older, *marks[-LIMIT:])]))


def _write(db: sa.Connection, name: str, value: str) -> None:
    db.execute(delete(t.meta).where(t.meta.c.name == name))
    db.execute(insert(t.meta).values(name=name, value=value))
