"""Statements that several of the store's transactions share.

Invariant: a transaction that writes for a service locks the service's row first (`lock_service`). So they
run one after the other, and what they number (rollouts, events) is committed in that order: a reader who has
seen a number has seen all lower ones. SQLite needs no row lock, its writers wait for each other.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import delete, func, insert, select, update

from controller.auth import Identity
from controller.errors import Conflict, RolloutRunning, StaleToken, UnknownService, UnreadCommand
from controller.rollout.plan import ending_command, is_undo_id
from controller.rollout.serialization import state_from_json
from controller.rollout.state import RolloutState
from controller.store import schema as t
from controller.store.database import Database
from controller.store.rows import AbRow, VersionRow

LEASE = "controller"


def require_token(db: sa.Connection, token: int | None, *, is_last: bool) -> None:
    """Raises StaleToken unless `token` is the lease's (None: the writer is no controller).

    is_last: the lease cannot change hands before this transaction ends, so it MUST wait for nothing more:
    whoever waits for a service's row with the lease's in its hand takes the lease from every service.
    """
    if token is None:
        return
    here = select(t.leases.c.token).where(t.leases.c.name == LEASE)
    if is_last:
        here = here.with_for_update(read=True)
    if (newest := db.execute(here).scalar()) != token:
        raise StaleToken(f"token {token} is not the lease's, {newest} is: another controller acts")


def lock_service(db: sa.Connection, service: str) -> Any | None:
    """The service's row, locked until the transaction ends; None: it does not exist."""
    return db.execute(select(t.services).where(t.services.c.name == service).with_for_update()).first()


def refuse_second(db: sa.Connection, service: str, remedy: str | None = None) -> None:
    """Raises RolloutRunning while the service has a rollout that is not final."""
    running = (t.rollouts.c.service == service) & ~t.rollouts.c.is_final
    other = db.execute(select(t.rollouts.c.id).where(running)).scalar()
    if other is None:
        return
    if remedy is None or is_undo_id(other):
        raise already_running(service, other)
    raise RolloutRunning(f"{service} has rollout {other} running; {remedy}")


def already_running(
    service: str, other: str, state: str = "running", *, before: str | None = None
) -> RolloutRunning:
    """The error of a second rollout on a service. before: the version that a running undo replaces."""
    end_it = ending_command(service, other, before=before)
    if is_undo_id(other):
        return RolloutRunning(
            f"{service} has undo {other} {state}, one at a time; wait for it (canaryctl watch {service}) "
            f"or end it ({end_it}, which serves until it has loaded)"
        )
    return RolloutRunning(
        f"{service} has rollout {other} {state}, one at a time; "
        f"wait for it (canaryctl watch {service}) or end it ({end_it})"
    )


def taken_back(service: str, undo: str, wanted: str, heading: str) -> RolloutRunning:
    """The error of who wants the version of an undo that is itself being taken back."""
    return RolloutRunning(
        f"{service} is returning to {heading}: undo {undo} to {wanted} is taken back, and one at a time "
        f"runs; wait for its end (canaryctl watch {service}), then: canaryctl undo {service} --to {wanted}"
    )


def require_stable(row: Any | None, service: str, stable: str) -> None:
    """Raises Conflict unless the service exists, stays, and serves `stable`."""
    if row is None or row.removing:
        raise Conflict(f"{service} was removed meanwhile; canaryctl up creates it again")
    if row.stable != stable:
        raise Conflict(f"{service} serves {row.stable} now, the plan was made for {stable}; deploy again")


def require_newest(db: sa.Connection, service: str, rollout: str | None) -> None:
    """Raises Conflict when the service's newest rollout is another one. The service MUST be locked."""
    c = t.rollouts.c
    newest = db.execute(select(c.id).where(c.service == service).order_by(c.seq.desc()).limit(1)).scalar()
    if newest != rollout:
        raise Conflict(
            f"{service} had rollout {newest} meanwhile, which may change what is allowed; deploy again"
        )


def next_seq(db: sa.Connection, table: sa.Table, service: str) -> int:
    """The next row's place among the service's rows. The service MUST be locked."""
    return int(
        db.execute(
            select(func.coalesce(func.max(table.c.seq), 0) + 1).where(table.c.service == service)
        ).scalar_one()
    )


def began(database: Database, rollout: str) -> int | None:
    """A number that orders rollouts of all services by their creation; None: it does not exist.

    No time: clocks of two hosts differ, and are set.
    """
    c = t.events.c
    with database.read() as db:
        first = db.execute(select(func.min(c.seq)).where(c.rollout == rollout)).scalar()
    return int(first) if first is not None else None


def move_stable(db: sa.Connection, service: Any | None, before: str, after: RolloutState) -> None:
    """Write the service's stable version if this commit of the rollout moves it, and nothing else did.

    service: the locked row. before: JSON of the state that is replaced. Raises Conflict.
    """
    if service is None or service.stable == after.serving:
        return
    was = state_from_json(before).serving
    if was == after.serving:
        return  # this rollout moved it earlier, or never: the row is a later rollout's
    if service.stable != was:
        raise Conflict(
            f"{service.name} serves {service.stable}, not {was}, from which {after.id} moves it to "
            f"{after.serving}; end it: canaryctl rollback {service.name}"
        )
    db.execute(update(t.services).where(t.services.c.name == service.name).values(stable=after.serving))


def put_version(db: sa.Connection, row: VersionRow, in_production: str | None) -> None:
    """Insert the version, or replace its path and names unless it is in production."""
    c = t.versions.c
    here = (c.service == row.service) & (c.id == row.id)
    if db.execute(select(c.id).where(here)).first() is None:
        db.execute(insert(t.versions).values(t.values_of(row)))
    elif row.id != in_production:
        values = {name: value for name, value in t.values_of(row).items() if name != "created_at_s"}
        db.execute(update(t.versions).where(here).values(values))


def append_event(
    db: sa.Connection, service: str, rollout: str | None, at_s: float, actor: str, text: str
) -> None:
    """Append one line to the service's log."""
    row = {"service": service, "rollout": rollout, "at_s": at_s, "actor": actor, "text": text}
    db.execute(insert(t.events).values(row))


def append_log(db: sa.Connection, state: RolloutState, before: int) -> None:
    """Append the rollout's log lines after number `before`.

    A line that the database refuses, such as one outside its encoding, is written in ASCII: no line keeps a
    state from being committed.
    """
    for line in state.log:
        if line.seq <= before:
            continue
        try:
            with db.begin_nested():
                append_event(db, state.service, state.id, line.at_s, line.actor, line.text)
        except (sa.exc.DataError, UnicodeError):
            actor, text = (ascii(one)[1:-1] for one in (line.actor, line.text))
            append_event(db, state.service, state.id, line.at_s, actor, text)


def unknown_rollout(rollout: str) -> UnknownService:
    """The error of a rollout that is not stored."""
    return UnknownService(f"rollout {rollout} does not exist; canaryctl history lists those that do")


def refuse_unread(db: sa.Connection, state: RolloutState) -> None:
    """Raises UnreadCommand when a command came after the last one that the state has read."""
    unread = (t.commands.c.rollout == state.id) & (t.commands.c.seq > state.commands_through)
    if db.execute(select(t.commands.c.seq).where(unread).limit(1)).first() is not None:
        raise UnreadCommand(f"rollout {state.id} got a command meanwhile; read it before the rollout ends")


def replace_token(
    db: sa.Connection, digest: str, identity: Identity, *, at_s: float, origin: str | None
) -> None:
    """Store the token's identity, and delete the token that its origin held before."""
    c = t.tokens.c
    replaced = c.digest == digest
    if origin is not None:
        # Without an origin: stored by a release that did not keep it.
        replaced |= (c.name == identity.name) & (c.origin.is_(None) | (c.origin == origin))
    db.execute(delete(t.tokens).where(replaced))
    row = {
        "digest": digest,
        "name": identity.name,
        "role": identity.role.value,
        "created_at_s": at_s,
        "origin": origin,
    }
    db.execute(insert(t.tokens).values(row))


def put_ab_test(db: sa.Connection, row: AbRow) -> None:
    """Store a new test. The service MUST be locked. Raises Conflict while another runs on the service."""
    c = t.ab_tests.c
    running = (c.service == row.service) & c.ended_at_s.is_(None)
    if db.execute(select(c.id).where(running)).first() is not None:
        raise Conflict(f"{row.service} has an A/B test already; end it: canaryctl ab stop {row.service}")
    seq = next_seq(db, t.ab_tests, row.service)
    db.execute(insert(t.ab_tests).values(t.values_of(row) | {"seq": seq}))


def end_ab_tests(db: sa.Connection, service: str, at_s: float) -> None:
    """End the service's tests. It MUST be locked and have no rollout, without which none can go on."""
    c = t.ab_tests.c
    here = (c.service == service) & c.ended_at_s.is_(None)
    db.execute(update(t.ab_tests).where(here).values(ended_at_s=at_s))
