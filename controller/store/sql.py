"""The store on SQLAlchemy Core: SQLite by default, PostgreSQL by URL, one code.

Invariants: a commit is one transaction (state, pending actions, evidence, log lines, the service's stable
version); it names the version that it replaces, so of two writers one is refused; a token never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    """Everything that outlives the controller. Safe to use from several threads and processes."""

    def __init__(self, url: str, *, mounts: Path = Path("/proc/self/mounts")) -> None:
        """Opens (and on first use makes) the database. Raises BadInput or Unreachable."""
        self._engine = t.open_engine(url, mounts=mounts)
        self._writes = t.writing(self._engine)

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    # --- rollouts: the core's port

    def load(self, rollout: str) -> Stored | None:
        """The rollout as last committed; None: there is none of this id."""
        query = select(t.rollouts.c.state, t.rollouts.c.version, t.rollouts.c.pending)
        with self._engine.begin() as db:
            row = db.execute(query.where(t.rollouts.c.id == rollout)).first()
        if row is None:
            return None
        return Stored(state_from_json(row.state), row.version, actions_from_json(row.pending))

    def running(self, service: str | None = None) -> Sequence[str]:
        """Ids of the rollouts that are not final, or have a notice to deliver, oldest first. None: of all."""
        to_do = ~t.rollouts.c.is_final | (t.rollouts.c.pending != "[]")
        if service is not None:
            to_do &= t.rollouts.c.service == service
        query = select(t.rollouts.c.id).where(to_do).order_by(t.rollouts.c.created_at_s)
        with self._engine.begin() as db:
            return tuple(db.execute(query).scalars())

    def commit(
        self, state: RolloutState, pending: Sequence[Action], *, expected_version: int, evidence: bytes | None
    ) -> int:
        """The new version. evidence None: keep what is stored. Raises StaleWrite when another came first."""
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
        """What people asked of the rollout since `after_seq`, in order."""
        query = (
            select(t.commands)
            .where((t.commands.c.rollout == rollout) & (t.commands.c.seq > after_seq))
            .order_by(t.commands.c.seq)
        )
        with self._engine.begin() as db:
            rows = db.execute(query).all()
        return tuple(
            ManualCommand(r.seq, CommandKind(r.kind), r.actor, r.role, r.reason, r.at_s) for r in rows
        )

    # --- rollouts: beginning, asking, looking back

    def create_rollout(self, state: RolloutState, *, request: str, at_s: float) -> int:
        """Stores a new rollout at version 0. Raises RolloutRunning when the service has one already, and
        Conflict when the service is gone, is going, or serves another version than the plan was made for."""
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
                    raise _already_running(state.service, other)
                # Between the plan and this line the checkpoint was hashed, for minutes where it is large.
                _require_stable(db, state.service, state.stable.id)
                db.execute(insert(t.rollouts).values(values))
                _append_log(db, state, 0)
        except sa.exc.IntegrityError as exc:
            raise _already_running(state.service, "another") from exc
        return 0

    def append_command(
        self, rollout: str, kind: CommandKind, identity: Identity, *, reason: str, at_s: float
    ) -> int:
        """Leaves a person's request for the next tick; returns its number."""
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
        """The evidence snapshot of the last commit that held one; None: none yet."""
        with self._engine.begin() as db:
            return db.execute(select(t.rollouts.c.evidence).where(t.rollouts.c.id == rollout)).scalar()

    def request(self, rollout: str) -> str:
        """What was asked for when the rollout began, JSON. Raises UnknownService when there is none."""
        with self._engine.begin() as db:
            found = db.execute(select(t.rollouts.c.request).where(t.rollouts.c.id == rollout)).scalar()
        if found is None:
            raise UnknownService(f"rollout {rollout} does not exist; canaryctl history lists those that do")
        return str(found)

    def rollouts(self, service: str, *, limit: int = 50) -> tuple[RolloutRow, ...]:
        """The service's rollouts, newest first."""
        c = t.rollouts.c
        query = _ROLLOUT.where(c.service == service).order_by(c.created_at_s.desc(), c.id).limit(limit)
        with self._engine.begin() as db:
            return tuple(RolloutRow(*row) for row in db.execute(query))

    def latest_attempt(self, service: str, canary: str) -> RolloutRow | None:
        """The newest rollout that tried this version, however long ago; None: it was never tried."""
        c = t.rollouts.c
        here = (c.service == service) & (c.canary == canary)
        query = _ROLLOUT.where(here).order_by(c.created_at_s.desc(), c.id).limit(1)
        with self._engine.begin() as db:
            row = db.execute(query).first()
        return RolloutRow(*row) if row else None

    # --- services and their versions

    def services(self) -> tuple[ServiceRow, ...]:
        """All services, by name."""
        with self._engine.begin() as db:
            return tuple(
                ServiceRow(*row) for row in db.execute(select(t.services).order_by(t.services.c.name))
            )

    def service(self, name: str) -> ServiceRow:
        """One service. Raises UnknownService."""
        with self._engine.begin() as db:
            row = db.execute(select(t.services).where(t.services.c.name == name)).first()
            known = db.execute(select(t.services.c.name).order_by(t.services.c.name)).scalars().all()
        if row is None:
            there = f"there are: {', '.join(known)}" if known else "there is none yet: canaryctl up"
            raise UnknownService(f"service {name} does not exist; {there}")
        return ServiceRow(*row)

    def put_service(self, row: ServiceRow, version: VersionRow) -> None:
        """Stores a new service together with its first version. Raises Conflict when there is one already."""
        try:
            with self._writes.begin() as db:
                db.execute(insert(t.services).values(t.values_of(row)))
                _put_version(db, version)
                text = f"service created on {row.stable}"
                _append_event(db, row.name, None, row.created_at_s, "controller", text)
        except sa.exc.IntegrityError as exc:
            raise Conflict(f"{row.name} was made by somebody else just now; read it and try again") from exc

    def mark_removing(self, name: str, identity: Identity, *, at_s: float) -> None:
        """Notes that `down` was asked; the controller takes it away and then calls `remove_service`.

        Raises RolloutRunning: what a rollout has in its hands is not taken away under it.
        """
        running = (t.rollouts.c.service == name) & ~t.rollouts.c.is_final
        with self._writes.begin() as db:
            if (rollout := db.execute(select(t.rollouts.c.id).where(running)).scalar()) is not None:
                raise _still_running(name, rollout)
            db.execute(update(t.services).where(t.services.c.name == name).values(removing=True))
            _append_event(db, name, None, at_s, identity.name, "down was asked")

    def remove_service(self, name: str, *, at_s: float) -> None:
        """Forgets a service and its versions; its rollouts and events stay as history."""
        with self._writes.begin() as db:
            db.execute(delete(t.services).where(t.services.c.name == name))
            db.execute(delete(t.versions).where(t.versions.c.service == name))
            _append_event(db, name, None, at_s, "controller", "service removed")

    def put_version(self, row: VersionRow) -> None:
        """Stores a version. The same id again is the same files, maybe elsewhere: the newer place counts,
        but for the version in production, whose place is the one it runs from."""
        with self._writes.begin() as db:
            _put_version(db, row)

    def version(self, service: str, version: str) -> VersionRow | None:
        """One version of a service; None: not known."""
        here = (t.versions.c.service == service) & (t.versions.c.id == version)
        with self._engine.begin() as db:
            row = db.execute(select(t.versions).where(here)).first()
        return VersionRow(*row) if row else None

    # --- the log

    def append_event(self, service: str, text: str, *, at_s: float, actor: str = "controller") -> None:
        """Adds a line to the service's own log."""
        with self._writes.begin() as db:
            _append_event(db, service, None, at_s, actor, text)

    def events(self, service: str, *, after_seq: int = 0, limit: int = 500) -> tuple[EventRow, ...]:
        """The service's log lines after `after_seq`, oldest first."""
        here = (t.events.c.service == service) & (t.events.c.seq > after_seq)
        with self._engine.begin() as db:
            rows = db.execute(select(t.events).where(here).order_by(t.events.c.seq).limit(limit))
            return tuple(EventRow(*row) for row in rows)

    # --- the lease

    def lease(self) -> Lease:
        """Who acts, or acted last."""
        with self._engine.begin() as db:
            row = db.execute(select(t.leases).where(t.leases.c.name == LEASE)).one()
        return Lease(row.holder, row.token, row.expires_at_s)

    def acquire_lease(self, holder: str, *, now_s: float, ttl_s: float) -> Lease | None:
        """The lease under a token higher than any before; None: another controller holds it.

        One that ends further ahead than two terms was written before the clock was set back: it is void.
        """
        c = t.leases.c
        free = (c.expires_at_s <= now_s) | (c.expires_at_s > now_s + 2 * ttl_s)
        taken = update(t.leases).where((c.name == LEASE) & free)
        with self._writes.begin() as db:
            taken = taken.values(holder=holder, token=c.token + 1, expires_at_s=now_s + ttl_s)
            if db.execute(taken).rowcount != 1:
                return None
            token = db.execute(select(c.token).where(c.name == LEASE)).scalar_one()
        return Lease(holder, token, now_s + ttl_s)

    def renew_lease(self, token: int, *, now_s: float, ttl_s: float) -> bool:
        """True: still ours for `ttl_s`. False: another controller has it."""
        here = (t.leases.c.name == LEASE) & (t.leases.c.token == token)
        with self._writes.begin() as db:
            return db.execute(update(t.leases).where(here).values(expires_at_s=now_s + ttl_s)).rowcount == 1

    def release_lease(self, token: int) -> None:
        """Ends the lease of this token now; one of another token is left alone."""
        here = (t.leases.c.name == LEASE) & (t.leases.c.token == token)
        with self._writes.begin() as db:
            db.execute(update(t.leases).where(here).values(expires_at_s=0.0))

    # --- tokens

    def put_token(self, digest: str, identity: Identity, *, at_s: float) -> None:
        """Lets the token of this digest in; the same again changes nothing."""
        with self._writes.begin() as db:
            db.execute(delete(t.tokens).where(t.tokens.c.digest == digest))
            row = {"digest": digest, "name": identity.name, "role": identity.role.value, "created_at_s": at_s}
            db.execute(insert(t.tokens).values(row))

    def identity(self, digest: str) -> Identity | None:
        """Whose token has this digest; None: nobody's."""
        with self._engine.begin() as db:
            row = db.execute(select(t.tokens).where(t.tokens.c.digest == digest)).first()
        return Identity(row.name, Role(row.role)) if row else None


def _already_running(service: str, other: str) -> RolloutRunning:
    return RolloutRunning(
        f"{service} has rollout {other} running, one at a time; "
        f"wait for it (canaryctl watch {service}) or end it (canaryctl rollback {service})"
    )


def _still_running(service: str, rollout: str) -> RolloutRunning:
    return RolloutRunning(
        f"{service} has rollout {rollout} running; end it first: canaryctl rollback {service} --wait"
    )


def _require_stable(db: sa.Connection, service: str, stable: str) -> None:
    c = t.services.c
    row = db.execute(select(c.stable, c.removing).where(c.name == service)).first()
    if row is None or row.removing:
        raise Conflict(f"{service} was taken down meanwhile; canaryctl up brings it back")
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
