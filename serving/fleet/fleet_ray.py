"""The controller's hand on engines: every version of every service in one cluster, through the fleet actor.

Errors: a stale token raises `StaleToken`. A command that the actor did not confirm within `timeout_s` raises
`FleetUnreachable`; it is idempotent: give it again at the next tick. `observe` is None then, never a guess.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from serving.actor_names import FLEET, NAMESPACE
from serving.fleet.actor_ray import FleetActor
from serving.fleet.device_memory import DeviceMemory
from serving.fleet.types import FleetUnreachable, Launch, VersionStatus, one_line
from serving.loopback_ray import HOST
from serving.table.route_table import StaleToken

OPEN_TIMEOUT_S = 60.0


class RayFleet:
    """Satisfies `serving.fleet.types.Fleet`. `ray.init` comes first and is the caller's."""

    def __init__(self, namespace: str = NAMESPACE, *, timeout_s: float = 0.25) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._actor: Any = None

    # ---- the cluster's life

    def open(self, *, http_port: int, http_host: str = HOST) -> None:
        """Makes the fleet actor if it is not there, with Serve's ingress at this address.

        Waits a minute at most. Raises FleetUnreachable.
        """
        options = {
            "name": FLEET,
            "namespace": self._namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
        }
        try:
            actor = ray.remote(FleetActor).options(**options).remote(http_host, http_port, self._namespace)
            ray.get(actor.observe.remote(""), timeout=OPEN_TIMEOUT_S)
        except (RayError, GetTimeoutError) as exc:
            raise FleetUnreachable(
                f"the fleet actor does not start ({one_line(exc)}); see Ray's logs"
            ) from exc
        self._actor = actor

    def start_router(self, service: str, replicas: int = 1) -> None:
        """Has Serve run the service's router at /{service}. Waits until Serve took the order."""
        self._ask("run_router", service, replicas, timeout_s=OPEN_TIMEOUT_S)

    def stop_router(self, service: str) -> None:
        """Has Serve take the service's router down."""
        self._ask("stop_router", service, timeout_s=OPEN_TIMEOUT_S)

    def application(self, name: str) -> tuple[str, str] | None:
        """Serve's status word and message of an application such as `chat--router`; None: there is none."""
        status: tuple[str, str] | None = self._ask("application", name, timeout_s=OPEN_TIMEOUT_S)
        return status

    def devices(self) -> tuple[DeviceMemory, ...] | None:
        """The memory of the devices on the fleet's host; None: unreachable."""
        try:
            found: tuple[DeviceMemory, ...] = self._ask("devices")
        except FleetUnreachable:
            return None
        return found

    # ---- versions

    def ensure(self, launch: Launch, *, token: int) -> None:
        """Loads it, brings it back from draining, or sets its number of replicas."""
        self._ask("ensure", launch, token)

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        """Every version of the service; None: unreachable."""
        try:
            sights: tuple[VersionStatus, ...] = self._ask("observe", service)
        except FleetUnreachable:
            return None
        return sights

    def drain(self, service: str, version: str, *, token: int) -> None:
        """Takes it out of the route table; requests under way go on."""
        self._ask("drain", service, version, token)

    def cancel(self, service: str, version: str, *, token: int) -> None:
        """Breaks off the requests that are still under way in a draining version."""
        self._ask("cancel", service, version, token)

    def stop(self, service: str, version: str, *, token: int) -> None:
        """Unloads it, also while it loads; forgets a failure."""
        self._ask("stop", service, version, token)

    # ---- inside

    def _ask(self, method: str, *values: object, timeout_s: float | None = None) -> Any:
        try:
            if self._actor is None:
                self._actor = ray.get_actor(FLEET, namespace=self._namespace)
            call = getattr(self._actor, method).remote(*values)
            return ray.get(call, timeout=timeout_s or self._timeout_s)
        except RayTaskError as exc:
            if isinstance(exc.cause, StaleToken):
                raise StaleToken(str(exc.cause)) from exc
            raise
        except (GetTimeoutError, RayError, ValueError) as exc:
            # Ray restarts a dead actor under the same name: look it up again.
            self._actor = None
            raise FleetUnreachable(f"the fleet actor does not answer ({one_line(exc)})") from exc
