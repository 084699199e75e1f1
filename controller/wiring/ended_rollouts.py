"""The end of stored rollouts that no controller will go on with."""

from __future__ import annotations

import time
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy import func, select

from controller.rollout.machine import abandon
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.store import schema as t
from controller.store.commits import commit_state, end_unread


def end_rollouts(db: sa.Connection, service: str, why: str, *, token: int | None = None) -> None:
    """End a service's as failed, their commands with them: nobody is left to carry them out. One that this
    release cannot read is ended without being read. token: of the lease; None: nobody leads."""
    c = t.rollouts.c
    active = (c.service == service) & (~c.is_final | (c.pending != "[]"))
    for row in db.execute(select(c.id, c.state, c.version).where(active).order_by(c.seq)).all():
        try:
            ended = abandon(state_from_json(row.state), time.time(), why)
        except UnreadableState:
            end_unread(db, row.id, time.time(), why, token=token)
            continue
        asked = select(func.max(t.commands.c.seq)).where(t.commands.c.rollout == row.id)
        read = max(ended.commands_through, db.execute(asked).scalar() or 0)
        ended = replace(ended, commands_through=read)
        commit_state(db, ended, (), expected_version=row.version, evidence=None, token=token)
