"""Which versions have served since their service was created, what each replaced, and which were undone.

A rollout is counted once it has ended with its canary in production: a version that was rolled back while
it baked has not served.
"""

from __future__ import annotations

import sqlalchemy as sa

from controller.rollout.state import RolloutState
from controller.store import schema as t
from controller.store.rows import ServedRow, VersionRow

_NAMES = VersionRow.__slots__
_HISTORY = sa.select(*(t.served.c[name] for name in (*_NAMES, "place", "before", "undone")))


def served_rows(db: sa.Connection, service: str) -> tuple[ServedRow, ...]:
    """The versions that have served, newest first."""
    query = _HISTORY.where(t.served.c.service == service).order_by(t.served.c.place.desc())
    return tuple(ServedRow(VersionRow(*row[: len(_NAMES)]), *row[len(_NAMES) :]) for row in db.execute(query))


def put_served(db: sa.Connection, service: str, version: str, before: str | None) -> None:
    """Record that the stored version serves now, as it is stored. The service MUST be locked."""
    c = t.served.c
    db.execute(sa.delete(t.served).where((c.service == service) & (c.id == version)))
    here = (t.versions.c.service == service) & (t.versions.c.id == version)
    newest = sa.select(sa.func.coalesce(sa.func.max(c.place), 0)).where(c.service == service)
    place = db.execute(newest).scalar_one() + 1
    columns = [t.versions.c[name] for name in _NAMES]
    row = sa.select(*columns, sa.literal(place), sa.literal(before, sa.String)).where(here)
    db.execute(sa.insert(t.served).from_select([*_NAMES, "place", "before"], row))


def record_outcome(db: sa.Connection, state: RolloutState) -> None:
    """Record a rollout that has just ended. The service MUST be locked."""
    if not state.is_final or state.serving != state.canary.id:
        return
    c = t.served.c
    if state.plan.undo:
        replaced = (c.service == state.service) & (c.id == state.stable.id)
        db.execute(sa.update(t.served).where(replaced).values(undone=state.id))
    # What an undo replaced is what somebody wanted to be rid of, so there is no way back to it.
    before = state.canary.id if state.plan.undo else state.stable.id
    put_served(db, state.service, state.canary.id, before)


def forget_served(db: sa.Connection, service: str) -> None:
    """Delete the record of a removed service."""
    db.execute(sa.delete(t.served).where(t.served.c.service == service))
