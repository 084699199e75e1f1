"""SQL store on SQLAlchemy Core: one code for SQLite (default) and PostgreSQL (by URL).

Invariants: a commit is one transaction (state, pending actions, evidence, log lines, the service's stable
version) and names the version that it replaces and the lease's token, so of two writers one is refused;
fencing tokens only rise; no order and no lease depends on a host's wall clock; what a transaction writes
depends only on what it has read itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import delete, insert, select, update

from controller.auth import Identity, Role
from controller.errors import Conflict, UnknownService
from controller.rollout.actions import Action
from controller.rollout.observation import CommandKind, ManualCommand
from controller.rollout.ports import Stored
from controller.rollout.serialization import (
    actions_from_json,
    state_from_json,
    state_to_json,
)
from controller.rollout.state import RolloutState
from controller.store import leases
from controller.store import schema as t
from controller.store.commits import commit_state
from controller.store.database import MOUNTS, Database
from controller.store.lineage import append_removal
from controller.store.rows import AbRow, EventRow, Lease, RolloutRow, ServedRow, ServiceRow, VersionRow
from controller.store.served import forget_served, put_served, served_rows
from controller.store.statements import (
    append_event,
    append_log,
    end_ab_tests,
    lock_service,
    next_seq,
    put_ab_test,
    put_version,
    refuse_second,
    replace_token,
    require_newest,
    require_stable,
    require_token,
    unknown_rollout,
)
from controller.store.turns import Turn

ANY_ROLLOUT = "any"
_ROLLOUT = select(*(t.rollouts.c[name] for name in RolloutRow.__slots__))
_SERVICE = select(*(t.services.c[name] for name in ServiceRow.__slots__))
_VERSION = select(*(t.versions.c[name] for name in VersionRow.__slots__))


class SqlStore:
    """All persistent state. Safe to use from several threads and processes."""

    def __init__(
        self,
        url: str,
        *,
        mounts: Path = MOUNTS,
        clock: Callable[[], float] | None = None,
        may_migrate: bool = True,
        may_create: bool = True,
    ) -> None:
        """Open the database, see `Database`. Raises BadInput or Unreachable."""
        self.database = Database(
            url, mounts=mounts, clock=clock, may_migrate=may_migrate, may_create=may_create
        )

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def _first(self, query: sa.Select[Any]) -> Any | None:
        with self.database.read() as db:
            return db.execute(query).first()

    def _all(self, query: sa.Select[Any]) -> Sequence[Any]:
        with self.database.read() as db:
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
        """Ids of rollouts that are not final or have pending notices, oldest first within a service.

        service None: of all.
        """
        active = ~t.rollouts.c.is_final | (t.rollouts.c.pending != "[]")
        if service is not None:
            active &= t.rollouts.c.service == service
        query = select(t.rollouts.c.id).where(active)
        return tuple(row.id for row in self._all(query.order_by(t.rollouts.c.service, t.rollouts.c.seq)))

    def commit(
        self,
        state: RolloutState,
        pending: Sequence[Action],
        *,
        expected_version: int,
        evidence: bytes | None,
        token: int | None = None,
    ) -> int:
        """The new version. evidence None: keep the stored one. token: the lease's; None: not a controller.

        Raises StaleWrite when another was first, UnreadCommand when the rollout would end without having read
        a command, StaleToken when another controller acts, Conflict when it would move a stable version that
        is not the one it moves from.
        """
        with self.database.write(Turn.ROUTINE if state.departure is None else Turn.URGENT) as db:
            return commit_state(
                db, state, pending, expected_version=expected_version, evidence=evidence, token=token
            )

    def commands(self, rollout: str, *, after_seq: int) -> tuple[ManualCommand, ...]:
        """Manual commands of the rollout after `after_seq`, in order."""
        c = t.commands.c
        query = select(t.commands).where((c.rollout == rollout) & (c.seq > after_seq)).order_by(c.seq)
        return tuple(
            ManualCommand(row.seq, CommandKind(row.kind), row.actor, row.role, row.reason, row.at_s)
            for row in self._all(query)
        )

    # --- rollouts: creation, commands, history

    def create_rollout(
        self,
        state: RolloutState,
        *,
        request: str,
        at_s: float,
        version: VersionRow | None = None,
        newest: str | None = ANY_ROLLOUT,
        ab_test: AbRow | None = None,
    ) -> int:
        """Store a new rollout and its canary's row; its version, 0.

        version: the canary as deployed; its names are kept on the rollout too. None: it is stored already.
        newest: the service's newest rollout when it was decided to start this one, None: there was none.
        ab_test: the test that this rollout runs, which replaces the service's last one.
        Raises RolloutRunning when the service has one, Conflict when it is removed or being removed, serves
        another version than was planned for, or has had another rollout since.
        """
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
        if version is not None:
            values |= {name: getattr(version, name) for name in ("name", "source", "actor", "message")}
        with self.database.write() as db:
            service = lock_service(db, state.service)
            refuse_second(db, state.service)
            # Hashing the checkpoint may have taken minutes since the plan was made.
            require_stable(service, state.service, state.stable.id)
            if newest != ANY_ROLLOUT:
                require_newest(db, state.service, newest)
            if version is not None:
                put_version(db, version, state.stable.id)
            db.execute(insert(t.rollouts).values(values | {"seq": next_seq(db, t.rollouts, state.service)}))
            append_log(db, state, 0)
            if ab_test is not None:
                end_ab_tests(db, state.service, at_s)
                put_ab_test(db, ab_test)
        return 0

    def append_command(
        self, rollout: str, kind: CommandKind, identity: Identity, *, reason: str, at_s: float
    ) -> int | None:
        """Queue a manual command for the next tick; its sequence number, None: the rollout has ended.

        A queued command is read by the rollout before it ends. Raises UnknownService for an unknown rollout.
        """
        values = {
            "rollout": rollout,
            "kind": kind.value,
            "actor": identity.name,
            "role": identity.role.value,
            "reason": reason,
            "at_s": at_s,
        }
        c = t.rollouts.c
        with self.database.write(Turn.URGENT) as db:
            # The lock orders this with the commit that ends the rollout, and with other commands.
            row = db.execute(select(c.is_final).where(c.id == rollout).with_for_update()).first()
            if row is None:
                raise unknown_rollout(rollout)
            if row.is_final:
                return None
            return int(db.execute(insert(t.commands).values(values).returning(t.commands.c.seq)).scalar_one())

    def evidence(self, rollout: str) -> bytes | None:
        """The newest committed evidence snapshot; None: none yet."""
        row = self._first(select(t.rollouts.c.evidence).where(t.rollouts.c.id == rollout))
        return row.evidence if row else None

    def request(self, rollout: str) -> str:
        """The request that created the rollout, JSON. Raises UnknownService for an unknown rollout."""
        row = self._first(select(t.rollouts.c.request).where(t.rollouts.c.id == rollout))
        if row is None:
            raise unknown_rollout(rollout)
        return str(row.request)

    def rollout(self, rollout: str) -> RolloutRow | None:
        """One rollout by its columns, also where its state cannot be read; None: it does not exist."""
        row = self._first(_ROLLOUT.where(t.rollouts.c.id == rollout))
        return RolloutRow(*row) if row is not None else None

    def canaries(self, service: str, *, limit: int) -> tuple[str, ...]:
        """The canaries of the service's rollouts, newest first."""
        c = t.rollouts.c
        query = select(c.canary).where(c.service == service).order_by(c.seq.desc()).limit(limit)
        return tuple(row.canary for row in self._all(query))

    def rollouts(self, service: str, *, limit: int = 50) -> tuple[RolloutRow, ...]:
        """The service's rollouts, newest first."""
        c = t.rollouts.c
        newest_first = _ROLLOUT.where(c.service == service).order_by(c.seq.desc())
        return tuple(RolloutRow(*row) for row in self._all(newest_first.limit(limit)))

    def attempts(self, service: str, canary: str, *, limit: int | None = None) -> tuple[RolloutRow, ...]:
        """The rollouts of this version, newest first, however long ago. limit None: all of them."""
        c = t.rollouts.c
        here = _ROLLOUT.where((c.service == service) & (c.canary == canary))
        rows = self._all(here.order_by(c.seq.desc()).limit(limit))
        return tuple(RolloutRow(*row) for row in rows)

    def latest_attempt(self, service: str, canary: str) -> RolloutRow | None:
        """The newest rollout of this version; None: it was never tried."""
        return next(iter(self.attempts(service, canary, limit=1)), None)

    # --- services and their versions

    def services(self) -> tuple[ServiceRow, ...]:
        """All services, by name."""
        return tuple(ServiceRow(*row) for row in self._all(_SERVICE.order_by(t.services.c.name)))

    def service(self, name: str) -> ServiceRow:
        """One service. Raises UnknownService."""
        row = self._first(_SERVICE.where(t.services.c.name == name))
        if row is None:
            known = ", ".join(service.name for service in self.services())
            hint = f"there are: {known}" if known else "there is none yet: canaryctl up"
            raise UnknownService(f"service {name} does not exist; {hint}")
        return ServiceRow(*row)

    def put_service(self, row: ServiceRow, version: VersionRow) -> None:
        """Store a new service and its first version. Raises Conflict when it exists already."""
        with self.database.write() as db:
            try:
                db.execute(insert(t.services).values(t.values_of(row)))
            except sa.exc.IntegrityError as exc:
                text = f"{row.name} was created by someone else meanwhile; read it and try again"
                raise Conflict(text) from exc
            put_version(db, version, None)
            put_served(db, row.name, version.id, None)
            text = f"service created on {row.stable}"
            append_event(db, row.name, None, row.created_at_s, "controller", text)

    def set_keys(
        self,
        name: str,
        changed: Callable[[ServiceRow], str],
        identity: Identity,
        *,
        keys: Sequence[str],
        at_s: float,
    ) -> None:
        """Change these keys of a service's spec. changed: the new spec, of the row as it is now: others may
        have changed other keys since it was read. Raises UnknownService: it is gone."""
        with self.database.write() as db:
            row = lock_service(db, name)
            if row is None:
                raise UnknownService(f"service {name} does not exist; it was removed meanwhile")
            spec = changed(ServiceRow(*row))
            db.execute(update(t.services).where(t.services.c.name == name).values(spec=spec))
            append_event(db, name, None, at_s, identity.name, f"{' and '.join(keys)} changed")

    def mark_removing(self, name: str, identity: Identity, *, at_s: float) -> None:
        """Mark the service for removal; the controller stops it and then calls `remove_service`.

        Raises RolloutRunning: a running rollout must be ended first; UnknownService: it is gone.
        """
        with self.database.write() as db:
            service = lock_service(db, name)
            if service is None:
                raise UnknownService(f"service {name} does not exist; it was removed meanwhile")
            refuse_second(db, name, f"end it first: canaryctl rollback {name} --wait")
            if service.removing:
                return
            db.execute(update(t.services).where(t.services.c.name == name).values(removing=True))
            append_removal(db, name, at_s, identity.name, "removal requested")

    def remove_service(self, name: str, *, at_s: float, token: int | None = None) -> None:
        """Delete a service and its versions; its rollouts and events stay as history. Raises RolloutRunning,
        and StaleToken when another controller acts. token: the lease's; None: no controller writes."""
        with self.database.write() as db:
            require_token(db, token, is_last=False)
            if lock_service(db, name) is None:
                return
            refuse_second(db, name, f"end it first: canaryctl rollback {name} --wait")
            db.execute(delete(t.services).where(t.services.c.name == name))
            db.execute(delete(t.versions).where(t.versions.c.service == name))
            forget_served(db, name)
            append_removal(db, name, at_s, "controller", "service removed")
            require_token(db, token, is_last=True)

    def put_version(self, row: VersionRow) -> None:
        """Store a version. The same id is the same files, maybe at a new path: the new path replaces the old,
        except for the version in production, which keeps the path that it runs from."""
        with self.database.write() as db:
            service = lock_service(db, row.service)
            put_version(db, row, service.stable if service is not None else None)

    def version(self, service: str, version: str) -> VersionRow | None:
        """One version of a service; None: unknown."""
        row = self._first(_VERSION.where((t.versions.c.service == service) & (t.versions.c.id == version)))
        return VersionRow(*row) if row else None

    def served(self, service: str) -> tuple[ServedRow, ...]:
        """The versions that have served since `put_service`, newest first, as they served last."""
        with self.database.read() as db:
            return served_rows(db, service)

    # --- the log

    def events(self, service: str, *, after_seq: int = 0, limit: int = 500) -> tuple[EventRow, ...]:
        """The service's log lines after `after_seq`, oldest first."""
        here = (t.events.c.service == service) & (t.events.c.seq > after_seq)
        rows = self._all(select(t.events).where(here).order_by(t.events.c.seq).limit(limit))
        return tuple(EventRow(*row) for row in rows)

    def last_event(self, service: str) -> EventRow | None:
        """The newest line of the service's log; None: it has none."""
        newest_first = select(t.events).where(t.events.c.service == service).order_by(t.events.c.seq.desc())
        row = self._first(newest_first.limit(1))
        return EventRow(*row) if row is not None else None

    # --- the lease

    def lease(self) -> Lease:
        """The current lease, or the last one."""
        return leases.current(self.database)

    def acquire_lease(self, holder: str, *, ttl_s: float, above: int = 0) -> Lease | None:
        """The lease, with a token above any before and `above`; None: another controller holds it."""
        return leases.acquire(self.database, holder, ttl_s=ttl_s, above=above)

    def renew_lease(self, token: int, *, ttl_s: float) -> bool:
        """True: held for another `ttl_s`. False: another controller holds it."""
        return leases.renew(self.database, token, ttl_s=ttl_s)

    def release_lease(self, token: int) -> None:
        """Expire the lease if it still has this token."""
        leases.release(self.database, token)

    # --- tokens

    def put_token(self, digest: str, identity: Identity, *, at_s: float, origin: str | None = None) -> None:
        """Store or replace the identity of a bearer token, by its digest.

        origin: the host and file that hold the token; the token that it held before becomes invalid.
        """
        with self.database.write() as db:
            replace_token(db, digest, identity, at_s=at_s, origin=origin)

    def forget_tokens(self, identity: Identity, *, origin: str) -> None:
        """Delete the identity's tokens of this origin, so that they are valid for no controller."""
        c = t.tokens.c
        with self.database.write() as db:
            db.execute(delete(t.tokens).where((c.name == identity.name) & (c.origin == origin)))

    def identity(self, digest: str, *, since_s: float = 0.0) -> Identity | None:
        """Owner of this bearer token; None: unknown, or a controller's that was stored before `since_s`."""
        c = t.tokens.c
        is_valid = c.origin.is_(None) | (c.created_at_s >= since_s)
        row = self._first(select(t.tokens).where((c.digest == digest) & is_valid))
        return Identity(row.name, Role(row.role)) if row else None
