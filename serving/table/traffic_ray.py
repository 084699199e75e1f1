"""The controller's hand on traffic: the route table and the records of a service, through Ray.

Errors: a stale token raises `StaleToken`, a wrong split `BadSplit`. What cannot be reached within `timeout_s`
(the actor is restarting, the cluster is gone) is None, never a guess: call again at the next tick. Every
command is idempotent, so one that timed out may be repeated whether it arrived or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from serving.actor_names import FLEET, NAMESPACE, records_name, table_name
from serving.messages import Arm, RecordPage, Replica, RouteTable, ScoreRecord, SplitStatus
from serving.table.records_actor import RecordsActor
from serving.table.route_table import SILENCE_S, BadSplit, Split, StaleToken
from serving.table.table_actor import TableActor


class RayTraffic:
    """Every route table and records log of one Ray cluster. `ray.init` comes first and is the caller's."""

    def __init__(self, namespace: str = NAMESPACE, *, timeout_s: float = 0.25) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._handles: dict[str, Any] = {}

    # ---- a service's life

    def open(self, service: str, secret: str, *, silence_s: float | None = SILENCE_S) -> None:
        """Makes the service's two actors if they are not there. Waits for them, a minute at most.

        secret: what its engines accept routers by.   silence_s: how long the controller may be silent before
        the canary is withdrawn; None: for ever. Only counts when the actor is made. Raises RayError.
        """
        options = {
            "namespace": self._namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
        }
        table = ray.remote(TableActor).options(name=table_name(service), **options)
        records = ray.remote(RecordsActor).options(name=records_name(service), **options)
        self._handles[table_name(service)] = table.remote(service, silence_s)
        self._handles[records_name(service)] = records.remote()
        opened = self._handles[table_name(service)].open.remote(secret)
        ready = self._handles[records_name(service)].append_scores.remote(())
        ray.get([opened, ready], timeout=60)

    def close(self, service: str) -> None:
        """Ends the service's two actors and forgets its table."""
        for name in (table_name(service), records_name(service)):
            actor = self._actor(name)
            if actor is not None:
                if name == table_name(service):
                    self._ask(name, "close")
                ray.kill(actor, no_restart=True)
            self._handles.pop(name, None)

    def start_router(self, service: str, replicas: int = 1) -> None:
        """Has the fleet actor run the service's router behind Serve's ingress at /{service}; returns at once.

        Raises ValueError when there is no fleet actor.
        """
        fleet = ray.get_actor(FLEET, namespace=self._namespace)
        fleet.run_router.remote(service, replicas)

    # ---- the split

    def set_split(self, service: str, split: Split, *, token: int) -> SplitStatus | None:
        """Publishes the split unless it holds already, and says how far it is applied; None: unreachable."""
        status: SplitStatus | None = self._ask(table_name(service), "set_split", split.checked(), token)
        return status

    def observe(self, service: str) -> SplitStatus | None:
        """The present split and how far it is applied; None: unreachable."""
        sight: SplitStatus | None = self._ask(table_name(service), "observe")
        return sight

    def heartbeat(self, service: str, token: int) -> bool:
        """Tells the table that the controller lives; False: unreachable."""
        return self._ask(table_name(service), "heartbeat", token, default=False) is None

    def tombstone(self, service: str, rollout: str) -> SplitStatus | None:
        """Withdraws the rollout's canary for ever, without a token; None: unreachable."""
        sight: SplitStatus | None = self._ask(table_name(service), "tombstone", rollout)
        return sight

    def table(self, service: str) -> RouteTable | None:
        """What routers are given, secret included; None: unreachable."""
        table: RouteTable | None = self._ask(table_name(service), "table")
        return table

    def routers(self, service: str) -> Mapping[str, float] | None:
        """Seconds since each router's last poll, by router; None: unreachable."""
        routers: Mapping[str, float] | None = self._ask(table_name(service), "routers")
        return routers

    def set_replicas(
        self, service: str, version: str, replicas: Sequence[Replica], *, external: bool = False
    ) -> int | None:
        """Publishes where a version answers; none takes it out. The change made; None: unreachable."""
        arm = Arm(version, tuple(replicas), external)
        change: int | None = self._ask(table_name(service), "set_replicas", arm)
        return change

    def is_replicas_applied(self, service: str, version: str) -> bool | None:
        """True when no live router uses this version's former replicas any more; None: unreachable."""
        applied: bool | None = self._ask(table_name(service), "is_replicas_applied", version)
        return applied

    # ---- the evidence

    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None:
        """The next events of the log; None: unreachable."""
        page: RecordPage | None = self._ask(records_name(service), "read", after_seq, limit)
        return page

    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool:
        """Appends scores behind all that the log holds; False: unreachable, send them again."""
        return self._ask(records_name(service), "append_scores", tuple(scores), default=False) is None

    # ---- inside

    def _ask(self, name: str, method: str, *values: object, default: object = None) -> Any:
        actor = self._actor(name)
        if actor is None:
            return default
        try:
            return ray.get(getattr(actor, method).remote(*values), timeout=self._timeout_s)
        except RayTaskError as exc:
            cause = exc.cause
            if isinstance(cause, StaleToken | BadSplit):
                raise type(cause)(str(cause)) from exc
            raise
        except GetTimeoutError:
            return default
        except RayError:
            # The actor died: the next call looks it up again, for Ray restarts it under the same name.
            self._handles.pop(name, None)
            return default

    def _actor(self, name: str) -> Any | None:
        if name not in self._handles:
            try:
                self._handles[name] = ray.get_actor(name, namespace=self._namespace)
            except ValueError:
                return None
        return self._handles[name]
