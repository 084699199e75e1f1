"""The controller's client of route tables and records logs, through Ray.

Errors: a stale token raises `StaleFencingToken`, an invalid split `BadSplit`. An actor that does not answer
within `timeout_s` (it is restarting, the cluster is gone) gives None, never a guess: retry at the next tick.
Every command is idempotent, so one that timed out may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from serving.access import ClientRules
from serving.actor_names import FLEET, NAMESPACE, detached, records_name, table_name
from serving.messages import Arm, RecordPage, Replica, RouteTable, ScoreRecord, SplitStatus
from serving.table.records_actor import RecordsActor
from serving.table.route_table import SILENCE_S, BadSplit, Split, StaleFencingToken
from serving.table.table_actor import TableActor


class RayTraffic:
    """Client of every route table and records log of one Ray cluster. The caller has called `ray.init`."""

    def __init__(self, namespace: str = NAMESPACE, *, timeout_s: float = 0.25) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._handles: dict[str, Any] = {}

    # ---- lifecycle of a service

    def open(self, service: str, secret: str, *, silence_s: float | None = SILENCE_S) -> None:
        """Create the service's two actors if they do not exist, and wait a minute at most. Raises RayError.

        secret: root of the service's two secrets.   silence_s: how long the table waits for a
        heartbeat before it withdraws the canary; None: without limit. Ignored when the actor exists.
        """
        table = ray.remote(TableActor).options(**detached(table_name(service), self._namespace))
        records = ray.remote(RecordsActor).options(**detached(records_name(service), self._namespace))
        self._handles[table_name(service)] = table.remote(service, silence_s)
        self._handles[records_name(service)] = records.remote()
        opened = self._handles[table_name(service)].open.remote(secret)
        ready = self._handles[records_name(service)].append_scores.remote(())
        ray.get([opened, ready], timeout=60)

    def close(self, service: str) -> None:
        """End the service's two actors and delete its table."""
        for name in (table_name(service), records_name(service)):
            actor = self._actor(name)
            if actor is not None:
                if name == table_name(service):
                    self._call(name, "close")
                ray.kill(actor, no_restart=True)
            self._handles.pop(name, None)

    def start_router(self, service: str, replicas: int = 1) -> None:
        """Start the service's router behind Serve's ingress at /{service}; does not wait for it.

        Raises ValueError when there is no fleet actor.
        """
        fleet = ray.get_actor(FLEET, namespace=self._namespace)
        fleet.run_router.remote(service, replicas)

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

    def tombstone(self, service: str, rollout: str) -> SplitStatus | None:
        """Withdraw the rollout's canary permanently, without a token; None: unreachable."""
        status: SplitStatus | None = self._call(table_name(service), "tombstone", rollout)
        return status

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
        actor = self._actor(name)
        if actor is None:
            return default
        try:
            return ray.get(getattr(actor, method).remote(*values), timeout=self._timeout_s)
        except RayTaskError as exc:
            if isinstance(exc.cause, StaleFencingToken | BadSplit):
                raise type(exc.cause)(str(exc.cause)) from exc
            raise
        except GetTimeoutError:
            return default
        except RayError:
            # The actor died. Ray restarts it under the same name: the next call looks it up again.
            self._handles.pop(name, None)
            return default

    def _actor(self, name: str) -> Any | None:
        if name not in self._handles:
            try:
                self._handles[name] = ray.get_actor(name, namespace=self._namespace)
            except ValueError:
                return None
        return self._handles[name]
