"""What is kept of ended rollouts: everything but the state from which their evidence would go on."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import func, select, update

from controller.store import schema as t
from controller.store.database import Database

LARGE_BYTES = 256 << 10  # far above what people are shown of a rollout


def large_evidence(database: Database) -> tuple[str, ...]:
    """Ids of the ended rollouts whose stored evidence is large."""
    c = t.rollouts.c
    here = select(c.id).where(c.is_final & (func.length(c.evidence) > LARGE_BYTES))
    with database.read() as db:
        return tuple(db.execute(here).scalars())


def shorten_evidence(database: Database, rollout: str, shorten: Callable[[bytes], bytes]) -> None:
    """Replace the evidence of an ended rollout by `shorten` of it; does nothing for any other."""
    c = t.rollouts.c
    here = (c.id == rollout) & c.is_final
    with database.read() as db:
        stored = db.execute(select(c.evidence).where(here)).scalar()
    if stored is None:
        return
    short = shorten(stored)  # outside a transaction: it may take a second
    with database.write() as db:
        db.execute(update(t.rollouts).where(here).values(evidence=short))
