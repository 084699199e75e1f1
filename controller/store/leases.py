"""The controller's lease in SQL: one holder at a time, by the database's clock alone (`Database.now_s`)."""

from __future__ import annotations

from sqlalchemy import select, update

from controller.store import schema as t
from controller.store.database import Database
from controller.store.lineage import keep_lease
from controller.store.rows import Lease
from controller.store.statements import LEASE

RELEASED = 0.0  # what `expires_at_s` of a released lease is; no clock of a database reads as little
_HERE = t.leases.c.name == LEASE


def current(database: Database) -> Lease:
    """The current lease, or the last one."""
    c = t.leases.c
    with database.read() as db:
        return Lease(*db.execute(select(c.holder, c.token, c.expires_at_s).where(_HERE)).one())


def acquire(database: Database, holder: str, *, ttl_s: float, above: int = 0) -> Lease | None:
    """The lease, with a token higher than any before and than `above`; None: another controller holds it.

    A lease that expires more than two terms ahead is void: it was written before the database's clock was
    set back, or before this host was started.
    """
    c = t.leases.c
    with database.lead() as db:
        row = db.execute(select(c.token, c.expires_at_s).where(_HERE).with_for_update()).one()
        now_s = database.now_s(db)  # after the lock, which may have been waited for
        if now_s < row.expires_at_s <= now_s + 2 * ttl_s:
            return None
        keep_lease(db)
        lease = Lease(holder, max(row.token, above) + 1, now_s + ttl_s)
        db.execute(update(t.leases).where(_HERE).values(t.values_of(lease)))
    return lease


def renew(database: Database, token: int, *, ttl_s: float) -> bool:
    """True: held for another `ttl_s`. False: another controller holds it, or it was released.

    One that has only lapsed may be renewed; one that was released, perhaps by another thread of its holder,
    is for whoever asks next.

    It need not survive the host, whose boot time starts again: on a slow disk a controller would else lose
    its lease to its own writes.
    """
    with database.lead(is_durable=False) as db:
        held = db.execute(
            select(t.leases.c.token, t.leases.c.expires_at_s).where(_HERE).with_for_update()
        ).one()
        if held.token != token or held.expires_at_s <= RELEASED:
            return False
        expires_at_s = database.now_s(db) + ttl_s
        db.execute(update(t.leases).where(_HERE).values(expires_at_s=expires_at_s))
    return True


def release(database: Database, token: int) -> None:
    """Expire the lease if it still has this token."""
    here = _HERE & (t.leases.c.token == token)
    with database.lead() as db:
        db.execute(update(t.leases).where(here).values(expires_at_s=RELEASED))
