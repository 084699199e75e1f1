"""A rollout of the past. What it did is in its row's columns, which every release can read: its canary,
whether and when it ended. Its state is read to be shown, and may be of another release.

Invariant: nothing that the past holds keeps a service from being ticked, planned for, deployed to or
returned to an earlier version.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

from controller.rollout.serialization import UnreadableState, state_from_json
from controller.rollout.state import RolloutState
from controller.store import schema as t
from controller.store.database import Database
from controller.store.rows import RolloutRow


def rollout_ids(database: Database, service: str, *, limit: int) -> tuple[str, ...]:
    """The ids of the service's rollouts, newest first."""
    c = t.rollouts.c
    query = sa.select(c.id).where(c.service == service).order_by(c.seq.desc()).limit(limit)
    with database.read() as db:
        return tuple(db.execute(query).scalars())


def past_state(row: RolloutRow) -> RolloutState | None:
    """The rollout's state; None: it has ended, and another release wrote it. Raises UnreadableState for one
    that runs, which nobody can go on with."""
    try:
        return state_from_json(row.state)
    except UnreadableState:
        if row.is_final:
            return None
        raise


def found_text(text: str, *keys: str) -> str | None:
    """The text at this place of stored JSON, which another release may have written; None: not there."""
    try:
        value = json.loads(text)
        for key in keys:
            value = value[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None
