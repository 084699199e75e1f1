"""SQL store on SQLAlchemy Core: one code for SQLite (default) and PostgreSQL (by URL).

Invariants: a commit is one transaction (state, pending actions, evidence, log lines, the service's stable
version) and names the version that it replaces, so of two writers one is refused; fencing tokens only rise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import delete, insert, select, update

from controller.auth import Identity, Role
from controller.errors import Conflict, RolloutRunning, StaleWrite, UnknownService
from controller.rollout.actions import Action
from controller.rollout.observation import CommandKind, ManualCommand
from controller.rollout.ports import Stored
from controller.rollout.serialization import (
    actions_from_json,
    actions_to_json,
    state_from_json,
    state_to_json,
)
from controller.rollout.state import RolloutState
from controller.store import schema as t
from controller.store.rows import EventRow, Lease, RolloutRow, ServiceRow, VersionRow

LEASE = "controller"
_ROLLOUT = select(*(t.rollouts.c[name] for name in RolloutRow.__slots__))


class SqlStore:
    """All persistent state. Safe to use from several threads and processes."""

    def __init__(self, url: str, *, mounts: Path = Path("/proc/self/mounts")) -> None:
        """Open the database, creating it on first use. Raises BadInput or Unreachable."""
        self._engine = t.open_engine(url, mounts=mounts)
        self._writes = t.writing(self._engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _first(self, query: sa.Select[Any]) -> Any | None:
        with self._engine.begin() as db:
            return db.execute(query).first()

    def _all(self, query: sa.Select[Any]) -> Sequence[Any]:
        with self._engine.begin() as db:
            return db.execute(query).all()

    # --- rollouts: the port `Store`

    def load(self, rollout: str) -> Stored | None:
        """The rollout as last committed; None: it does not exist."""
        query = select(t.rollouts.c.state, t.rollouts.c.version, t.rollouts.c.pending)
        row = self._first(query.where(t.rollouts.c.id == rollout))
        if row is None:
            return None
        return Stored(state_from_json(row.state), row.version, actions_from_json(row.pending))

    def running(self, service: str | None = None) -> Sequence[str]:
        """Ids of rollouts that are not final or have pending notices, oldest first. service None: of all."""
        active = ~t.rollouts.c.is_final | (t.rollouts.c.pending != "[]")
        if service is not None:
            active &= t.rollouts.c.service == service
        query = select(t.rollouts.c.id).where(active).order_by(t.rollouts.c.created_at_s)
        return tuple(row.id for row in self._all(query))

    def commit(
        self, state: RolloutState, pending: Sequence[Action], *, expected_version: int, evidence: bytes | None
    ) -> int:
        """The new version. evidence None: keep the stored one. Raises StaleWrite when another was first."""
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
        here = (t.rollouts.c.id == state.id) & (t.rollouts.c.version == expected_version)
        with self._writes.begin() as db:
            before = db.execute(select(t.rollouts.c.log_count).where(here)).scalar()
            if before is None or db.execute(update(t.rollouts).where(here).values(values)).rowcount != 1:
                raise StaleWrite(
                    f"rollout {state.id} is no longer at version {expected_version}; read it again"
                )
            _append_log(db, state, before)
            service = t.services.c.name == state.service
            db.execute(update(t.services).where(service).values(stable=state.serving))
        return expected_version + 1

    def commands(self, rollout: str, *, after_seq: int) -> tuple[ManualCommand, ...]:
        """Manual commands of the rollout after `after_seq`, in order."""
        query = (
            select(t.commands)
            .where((t.commands.c.rollout == rollout) & (t.commands.c.seq > after_seq))
            .order_by(t.commands.c.seq)
        )
        return tuple(
            ManualCommand(row.seq, CommandKind(row.kind), row.actor, row.role, row.reason, row.at_s)
            for row in self._all(query)
        )

    # --- rollouts: creation, commands, history

    def create_rollout(self, state: RolloutState, *, request: str, at_s: float) -> int:
        """Store a new rollout; its version, 0. Raises RolloutRunning when the service has one, Conflict when
        the service is removed or being removed, or serves another version than the plan was made for."""
        values = {
            "id": state.id,
            "service": state.service,
            "canary": state.canary.id,
            "version": 0,
            "state": state_to_json(state),
            "pending": "[]",
            "request": request,
            "log_count": state.log_count,
            "is_final": state.is_final,
            "created_at_s": at_s,
        }
        running = (t.rollouts.c.service == state.service) & ~t.rollouts.c.is_final
        try:
            with self._writes.begin() as db:
                if (other := db.execute(select(t.rollouts.c.id).where(running)).scalar()) is not None:
                    raise already_running(state.service, other)
                # Hashing the checkpoint may have taken minutes since the plan was made.
                _require_stable(db, state.service, state.stable.id)
                db.execute(insert(t.rollouts).values(values))
                _append_log(db, state, 0)
        except sa.exc.IntegrityError as exc:
            raise already_running(state.service, "another") from exc
        return 0

    def append_command(
        self, rollout: str, kind: CommandKind, identity: Identity, *, reason: str, at_s: float
    ) -> int:
        """Queue a manual command for the next tick; its sequence number."""
        values = {
            "rollout": rollout,
            "kind": kind.value,
            "actor": identity.name,
            "role": identity.role.value,
            "reason": reason,
            "at_s": at_s,
        }
        with self._writes.begin() as db:
            return int(db.execute(insert(t.commands).values(values).returning(t.commands.c.seq)).scalar_one())

    def evidence(self, rollout: str) -> bytes | None:
        """The newest committed evidence snapshot; None: none yet."""
        row = self._first(select(t.rollouts.c.evidence).where(t.rollouts.c.id == rollout))
        return row.evidence if row else None

    def request(self, rollout: str) -> str:
        """The request that created the rollout, JSON. Raises UnknownService for an unknown rollout."""
        row = self._first(select(t.rollouts.c.request).where(t.rollouts.c.id == rollout))
        if row is None:
            raise UnknownService(f"rollout {rollout} does not exist; canaryctl history lists those that do")
        return str(row.request)

    def rollouts(self, service: str, *, limit: int = 50) -> tuple[RolloutRow, ...]:
        """The service's rollouts, newest first."""
        c = t.rollouts.c
        query = _ROLLOUT.where(c.service == service).order_by(c.created_at_s.desc(), c.id).limit(limit)
        return tuple(RolloutRow(*row) for row in self._all(query))

    def attempts(self, service: str, canary: str, *, limit: int = 100) -> tuple[RolloutRow, ...]:
        """The rollouts of this version, newest first, however long ago."""
        c = t.rollouts.c
        query = _ROLLOUT.where((c.service == service) & (c.canary == canary))
        return tuple(
            RolloutRow(*row) for row in self._all(query.order_by(c.created_at_s.desc(), c.id).limit(limit))
        )

    def latest_attempt(self, service: str, canary: str) -> RolloutRow | None:
        """The newest rollout of this version; None: it was never tried."""
        return next(iter(self.attempts(service, canary, limit=1)), None)

    # --- services and their versions

    def services(self) -> tuple[ServiceRow, ...]:
        """All services, by name."""
        return tuple(ServiceRow(*row) for row in self._all(select(t.services).order_by(t.services.c.name)))

    def service(self, name: str) -> ServiceRow:
        """One service. Raises UnknownService."""
        row = self._first(select(t.services).where(t.services.c.name == name))
        if row is None:
            known = ", ".join(service.name for service in self.services())
            hint = f"there are: {known}" if known else "there is none yet: canaryctl up"
            raise UnknownService(f"service {name} does not exist; {hint}")
        return ServiceRow(*row)

    def put_service(self, row: ServiceRow, version: VersionRow) -> None:
        """Store a new service and its first version. Raises Conflict when it exists already."""
        try:
            with self._writes.begin() as db:
                db.execute(insert(t.services).values(t.values_of(row)))
                _put_version(db, version)
                text = f"service created on {row.stable}"
                _append_event(db, row.name, None, row.created_at_s, "controller", text)
        except sa.exc.IntegrityError as exc:
            raise Conflict(
                f"{row.name} was created by someone else meanwhile; read it and try again"
            ) from exc

    def mark_removing(self, name: str, identity: Identity, *, at_s: float) -> None:
        """Mark the service for removal; the controller stops it and then calls `remove_service`.

        Raises RolloutRunning: a running rollout must be ended first.
        """
        running = (t.rollouts.c.service == name) & ~t.rollouts.c.is_final
        with self._writes.begin() as db:
            if (rollout := db.execute(select(t.rollouts.c.id).where(running)).scalar()) is not None:
                raise RolloutRunning(
                    f"{name} has rollout {rollout} running; end it first: canaryctl rollback {name} --wait"
                )
            db.execute(update(t.services).where(t.services.c.name == name).values(removing=True))
            _append_event(db, name, None, at_s, identity.name, "removal requested")

    def remove_service(self, name: str, *, at_s: float) -> None:
        """Delete a service and its versions; its rollouts and events stay as history."""
        with self._writes.begin() as db:
            db.execute(delete(t.services).where(t.services.c.name == name))
            db.execute(delete(t.versions).where(t.versions.c.service == name))
            _append_event(db, name, None, at_s, "controller", "service removed")

    def put_version(self, row: VersionRow) -> None:
        """Store a version. The same id is the same files, maybe at a new path: the new path replaces the old,
        except for the version in production, which keeps the path that it runs from."""
        with self._writes.begin() as db:
            _put_version(db, row)

    def version(self, service: str, version: str) -> VersionRow | None:
        """One version of a service; None: unknown."""
        here = (t.versions.c.service == service) & (t.versions.c.id == version)
        row = self._first(select(t.versions).where(here))
        return VersionRow(*row) if row else None

    # --- the log

    def events(self, service: str, *, after_seq: int = 0, limit: int = 500) -> tuple[EventRow, ...]:
        """The service's log lines after `after_seq`, oldest first."""
        here = (t.events.c.service == service) & (t.events.c.seq > after_seq)
        query = select(t.events).where(here).order_by(t.events.c.seq).limit(limit)
        return tuple(EventRow(*row) for row in self._all(query))

    # --- the lease

    def lease(self) -> Lease:
        """The current lease, or the last one."""
        c = t.leases.c
        [row] = self._all(select(c.holder, c.token, c.expires_at_s).where(c.name == LEASE))
        return Lease(*row)

    def acquire_lease(self, holder: str, *, now_s: float, ttl_s: float) -> Lease | None:
        """The lease, with a token higher than any before; None: another controller holds it.

        A lease that expires more than two terms ahead is void: it was written before the clock was set back.
        """
        c = t.leases.c
        free = (c.expires_at_s <= now_s) | (c.expires_at_s > now_s + 2 * ttl_s)
        acquired = {"holder": holder, "token": c.token + 1, "expires_at_s": now_s + ttl_s}
        with self._writes.begin() as db:
            if db.execute(update(t.leases).where((c.name == LEASE) & free).values(acquired)).rowcount != 1:
                return None
            token = db.execute(select(c.token).where(c.name == LEASE)).scalar_one()
        return Lease(holder, token, now_s + ttl_s)

    def renew_lease(self, token: int, *, now_s: float, ttl_s: float) -> bool:
        """True: held for another `ttl_s`. False: another controller holds it."""
        here = (t.leases.c.name == LEASE) & (t.leases.c.token == token)
        with self._writes.begin() as db:
            return db.execute(update(t.leases).where(here).values(expires_at_s=now_s + ttl_s)).rowcount == 1

    def release_lease(self, token: int) -> None:
        """Expire the lease if it still has this token."""
        here = (t.leases.c.name == LEASE) & (t.leases.c.token == token)
        with self._writes.begin() as db:
            db.execute(update(t.leases).where(here).values(expires_at_s=0.0))

    # --- tokens

    def put_token(self, digest: str, identity: Identity, *, at_s: float) -> None:
        """Store or replace the identity of a bearer token, by its digest."""
        with self._writes.begin() as db:
            db.execute(delete(t.tokens).where(t.tokens.c.digest == digest))
            row = {"digest": digest, "name": identity.name, "role": identity.role.value, "created_at_s": at_s}
            db.execute(insert(t.tokens).values(row))

    def identity(self, digest: str) -> Identity | None:
        """Owner of the bearer token with this digest; None: unknown token."""
        row = self._first(select(t.tokens).where(t.tokens.c.digest == digest))
        return Identity(row.name, Role(row.role)) if row else None


def already_running(service: str, other: str, state: str = "running") -> RolloutRunning:
    """The error of a second rollout on a service."""
    return RolloutRunning(
        f"{service} has rollout {other} {state}, one at a time; "
        f"wait for it (canaryctl watch {service}) or end it (canaryctl rollback {service})"
    )


def _require_stable(db: sa.Connection, service: str, stable: str) -> None:
    c = t.services.c
    row = db.execute(select(c.stable, c.removing).where(c.name == service)).first()
    if row is None or row.removing:
        raise Conflict(f"{service} was removed meanwhile; canaryctl up creates it again")
    if row.stable != stable:
        raise Conflict(f"{service} serves {row.stable} now, the plan was made for {stable}; deploy again")


def _put_version(db: sa.Connection, row: VersionRow) -> None:
    c = t.versions.c
    here = (c.service == row.service) & (c.id == row.id)
    if db.execute(select(c.id).where(here)).first() is None:
        db.execute(insert(t.versions).values(t.values_of(row)))
        return
    in_production = select(t.services.c.stable).where(t.services.c.name == row.service)
    moved = update(t.versions).where(here & c.id.not_in(in_production))
    db.execute(moved.values(spec=row.spec, fingerprint=row.fingerprint))


def _append_event(
    db: sa.Connection, service: str, rollout: str | None, at_s: float, actor: str, text: str
) -> None:
    row = {"service": service, "rollout": rollout, "at_s": at_s, "actor": actor, "text": text}
    db.execute(insert(t.events).values(row))


def _append_log(db: sa.Connection, state: RolloutState, before: int) -> None:
    for line in state.log:
        if line.seq > before:
            _append_event(db, state.service, state.id, line.at_s, line.actor, line.text)
