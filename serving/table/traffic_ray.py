"""The controller's client of route tables and records logs, through Ray.

Errors: a stale token raises `StaleFencingToken`, an invalid split `BadSplit`. An actor that does not answer
within `timeout_s`, its look-up included (it is restarting, Ray's head hangs, the cluster is gone), gives
None, never a guess: retry at the next tick. Every command is idempotent, so one that timed out may be
repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from serving.access import ClientRules
from serving.actor_calls_ray import ActorHandles, Deadline, Patience
from serving.actor_names import FLEET, NAMESPACE, detached, records_name, table_name
from serving.messages import Arm, DatabaseMark, RecordPage, Replica, RouteTable, ScoreRecord, SplitStatus
from serving.supervised import LoopState
from serving.table.orders import BadSplit, Split, StaleFencingToken, UnitKeyInUse
from serving.table.records_actor import RecordsActor
from serving.table.route_table import SILENCE_S
from serving.table.table_actor import TableActor

OPEN_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 10.0


class RayTraffic:
    """Client of every route table and records log of one Ray cluster. The caller has called `ray.init`."""

    def __init__(self, namespace: str = NAMESPACE, *, timeout_s: float = 0.25) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._handles = ActorHandles(namespace)
        self._patience = Patience(timeout_s)

    # ---- lifecycle of a service

    def open(self, service: str, secret: str, *, token: int, silence_s: float | None = SILENCE_S) -> None:
        """Create the service's two actors if they do not exist. Raises StaleFencingToken, RayError.

        Waits a minute at most, and `timeout_s` while Ray has not answered since it last waited in vain.
        secret: root of the service's two secrets.   silence_s: how long the table waits for a
        heartbeat before it withdraws the canary; None: without limit. Ignored when the actor exists.
        """
        self._patience.run(
            OPEN_TIMEOUT_S, lambda deadline: self._open(service, secret, token, silence_s, deadline)
        )

    def _open(
        self, service: str, secret: str, token: int, silence_s: float | None, deadline: Deadline
    ) -> None:
        table = ray.remote(TableActor).options(**detached(table_name(service), self._namespace))
        records = ray.remote(RecordsActor).options(**detached(records_name(service), self._namespace))
        table_actor = deadline.run(lambda: table.remote(service, silence_s))
        records_actor = deadline.run(lambda: records.remote())
        self._handles.keep(table_name(service), table_actor)
        self._handles.keep(records_name(service), records_actor)
        opened, ready = table_actor.open.remote(secret, token), records_actor.append_scores.remote(())
        try:
            ray.get([opened, ready], timeout=deadline.left_s)
        except RayTaskError as exc:
            raise _own(exc) from exc

    def close(self, service: str, *, token: int) -> None:
        """End the service's two actors and delete its table; waits as `open` does.

        An actor is ended by its handle, so one that another controller has started since lives on. Raises
        StaleFencingToken, and ends neither then; RayError.
        """
        self._patience.run(CLOSE_TIMEOUT_S, lambda deadline: self._close(service, token, deadline))

    def _close(self, service: str, token: int, deadline: Deadline) -> None:
        for name in (table_name(service), records_name(service)):
            try:
                actor = self._handles.within(name, deadline)
                if name == table_name(service):
                    self._call(name, "close", token)
                deadline.run(partial(ray.kill, actor, no_restart=True))
            except ValueError:
                continue  # it has ended
            finally:
                self._handles.forget(name)

    def start_router(self, service: str, replicas: int = 1, *, token: int) -> None:
        """Start the service's router behind Serve's ingress at /{service}; does not wait for it, nor hear
        that the token is stale.

        Raises ValueError when there is no fleet actor, RayError when Ray does not answer.
        """
        fleet = self._patience.run(CLOSE_TIMEOUT_S, lambda deadline: self._handles.within(FLEET, deadline))
        fleet.run_router.remote(service, replicas, token)

    # ---- the split

    def set_split(self, service: str, split: Split, *, token: int) -> SplitStatus | None:
        """Publish the split if it differs, and return how far it is applied; None: unreachable."""
        status: SplitStatus | None = self._call(table_name(service), "set_split", split.checked(), token)
        return status

    def set_clients(self, service: str, rules: ClientRules, *, token: int) -> bool:
        """Publish who may use the service; False: unreachable."""
        return self._call(table_name(service), "set_clients", rules, token, default=False) is None

    def observe(self, service: str) -> SplitStatus | None:
        """The current split, and how far it is applied; None: unreachable."""
        status: SplitStatus | None = self._call(table_name(service), "observe")
        return status

    def heartbeat(self, service: str, token: int) -> bool:
        """Renew the table's wait for the controller; False: unreachable."""
        return self._call(table_name(service), "heartbeat", token, default=False) is None

    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool:
        """Note how far the database is, if `instead_of` is what is noted; False: another is, or it is
        unreachable."""
        try:
            return bool(self._call(table_name(service), "mark", mark, instead_of) == mark)
        except AttributeError:
            return True  # a table that an older release started keeps none

    def tombstone(self, service: str, rollout: str) -> SplitStatus | None:
        """Withdraw the rollout's canary permanently, without a token; None: unreachable."""
        status: SplitStatus | None = self._call(table_name(service), "tombstone", rollout)
        return status

    def destroy_unit_key(self, service: str, rollout: str, *, token: int) -> bool | None:
        """Destroy the key of a rollout's units: nobody can compute them again. False: it had none.

        None: unreachable. Raises StaleFencingToken, UnitKeyInUse.
        """
        is_destroyed: bool | None = self._call(table_name(service), "destroy_unit_key", rollout, token)
        return is_destroyed

    def loops(self, service: str) -> tuple[LoopState, ...] | None:
        """The background loops of the service's table actor; None: unreachable."""
        loops: tuple[LoopState, ...] | None = self._call(table_name(service), "loops")
        return loops

    def table(self, service: str) -> RouteTable | None:
        """The routers' table, with the data secret; None: unreachable."""
        table: RouteTable | None = self._call(table_name(service), "table")
        return table

    def routers(self, service: str) -> Mapping[str, float] | None:
        """Seconds since each router's last poll, by router; None: unreachable."""
        routers: Mapping[str, float] | None = self._call(table_name(service), "routers")
        return routers

    def set_replicas(
        self, service: str, version: str, replicas: Sequence[Replica], *, external: bool = False
    ) -> int | None:
        """Publish a version's replicas; without any it leaves the table. None: unreachable."""
        arm = Arm(version, tuple(replicas), external)
        change: int | None = self._call(table_name(service), "set_replicas", arm)
        return change

    def are_replicas_applied(self, service: str, version: str) -> bool | None:
        """True when no router with a lease uses this version's former replicas; None: unreachable."""
        applied: bool | None = self._call(table_name(service), "are_replicas_applied", version)
        return applied

    # ---- the evidence

    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None:
        """The next events of the log; None: unreachable."""
        page: RecordPage | None = self._call(records_name(service), "read", after_seq, limit)
        return page

    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool:
        """Append scores to the log; False: unreachable, send them again."""
        return self._call(records_name(service), "append_scores", tuple(scores), default=False) is None

    # ---- inside

    def _call(self, name: str, method: str, *values: object, default: object = None) -> Any:
        """The method's result; `default`: unreachable within the client's time-out, the look-up included."""
        deadline = Deadline(self._timeout_s)
        try:
            actor = self._handles.within(name, deadline)
            return ray.get(getattr(actor, method).remote(*values), timeout=deadline.left_s)
        except RayTaskError as exc:
            raise _own(exc) from exc
        except (GetTimeoutError, ValueError):
            return default
        except RayError:
            # The actor died. Ray restarts it under the same name: the next call looks it up again.
            self._handles.forget(name)
            return default


def _own(exc: RayTaskError) -> Exception:
    """The error of ours that a call in an actor raised, or Ray's own."""
    cause = exc.cause
    if isinstance(cause, StaleFencingToken | BadSplit | UnitKeyInUse):
        return type(cause)(*cause.args)
    own: Exception = exc
    return own
