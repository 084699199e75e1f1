"""The next state of a rollout in one transaction: its log, the stable version that it moves, its outcome."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import func, select, update

from controller.errors import StaleWrite
from controller.rollout.actions import Action
from controller.rollout.serialization import actions_to_json, state_to_json
from controller.rollout.state import RolloutState
from controller.store import schema as t
from controller.store.served import record_outcome
from controller.store.statements import (
    append_event,
    append_log,
    lock_service,
    move_stable,
    refuse_unread,
    require_token,
)


def commit_state(
    db: sa.Connection,
    state: RolloutState,
    pending: Sequence[Action],
    *,
    expected_version: int,
    evidence: bytes | None,
    token: int | None,
) -> int:
    """See `SqlStore.commit`."""
    at_s = state.log[-1].at_s if state.log else state.entered_at_s
    values: dict[str, object] = {
        "state": state_to_json(state),
        "pending": actions_to_json(pending),
        "version": expected_version + 1,
        "log_count": state.log_count,
        "is_final": state.is_final,
        "ended_at_s": at_s if state.is_final else None,
    }
    if evidence is not None:
        values["evidence"] = evidence
    c = t.rollouts.c
    require_token(db, token, is_last=False)
    service = lock_service(db, state.service)
    here = (c.id == state.id) & (c.version == expected_version)
    query = select(c.state, c.log_count, c.is_final).where(here).with_for_update()
    before = db.execute(query).first()
    if before is None:
        raise StaleWrite(f"rollout {state.id} is no longer at version {expected_version}; read it again")
    if state.is_final and not before.is_final:
        refuse_unread(db, state)
    db.execute(update(t.rollouts).where(here).values(values))
    append_log(db, state, before.log_count)
    move_stable(db, service, before.state, state)
    if service is not None and not before.is_final:
        record_outcome(db, state)
    require_token(db, token, is_last=True)
    return expected_version + 1


def end_unread(db: sa.Connection, rollout: str, at_s: float, why: str, *, token: int | None) -> None:
    """End a rollout whose state another release wrote, by its columns alone; the state stays as it is."""
    c = t.rollouts.c
    require_token(db, token, is_last=False)
    service = db.execute(select(c.service).where(c.id == rollout)).scalar_one()
    lock_service(db, service)
    values = {"is_final": True, "ended_at_s": func.coalesce(c.ended_at_s, at_s), "pending": "[]"}
    db.execute(update(t.rollouts).where(c.id == rollout).values(**values, version=c.version + 1))
    append_event(db, service, rollout, at_s, "controller", f"ended without being read: {why}")
    require_token(db, token, is_last=True)
