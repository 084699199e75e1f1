"""The controller's client of the fleet actor: every version of every service in one cluster.

Errors: a stale token raises `StaleFencingToken`. A command that the actor does not confirm within `timeout_s`
raises `FleetUnreachable`; it is idempotent: retry at the next tick. `observe` gives None then, never a guess.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from serving.actor_calls_ray import ActorHandles, Deadline, Patience
from serving.actor_names import FLEET, NAMESPACE, detached
from serving.fleet.actor_ray import FleetActor
from serving.fleet.device_memory import DeviceMemory
from serving.fleet.types import FleetUnreachable, Launch, VersionStatus, one_line
from serving.loopback import HOST
from serving.supervised import LoopState
from serving.table.orders import StaleFencingToken

OPEN_TIMEOUT_S = 60.0


class RayFleet:
    """A `serving.fleet.types.FleetClient`. The caller has called `ray.init`."""

    def __init__(self, namespace: str = NAMESPACE, *, timeout_s: float = 0.25) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._handles = ActorHandles(namespace)
        self._patience = Patience(timeout_s)

    # ---- the cluster

    def open(self, *, http_port: int, http_host: str = HOST) -> None:
        """Create the fleet actor if it does not exist, with Serve's ingress at this address.

        Waits a minute at most. Raises FleetUnreachable.
        """
        options = detached(FLEET, self._namespace)
        deadline = Deadline(OPEN_TIMEOUT_S)
        fleet = ray.remote(FleetActor).options(**options)
        try:
            actor = deadline.run(lambda: fleet.remote(http_host, http_port, self._namespace))
            ray.get(actor.observe.remote(""), timeout=deadline.left_s)
        except (RayError, GetTimeoutError) as exc:
            raise FleetUnreachable(
                f"the fleet actor does not start ({one_line(exc)}); see Ray's logs"
            ) from exc
        self._handles.keep(FLEET, actor)

    def start_router(self, service: str, replicas: int = 1, *, token: int) -> None:
        """Run the service's router in Serve at /{service}. Waits until Serve has accepted it.

        Raises StaleFencingToken, FleetUnreachable.
        """
        self._call("run_router", service, replicas, token, timeout_s=OPEN_TIMEOUT_S)

    def stop_router(self, service: str, *, token: int) -> None:
        """Delete the service's router from Serve. Raises StaleFencingToken, FleetUnreachable."""
        self._call("stop_router", service, token, timeout_s=OPEN_TIMEOUT_S)

    def application(self, name: str) -> tuple[str, str] | None:
        """Serve's (status, message) of an application such as `chat--router`; None: not found."""
        status: tuple[str, str] | None = self._call("application", name, timeout_s=OPEN_TIMEOUT_S)
        return status

    def devices(self) -> tuple[DeviceMemory, ...] | None:
        """Memory of the devices on the fleet's host; None: unreachable."""
        try:
            devices: tuple[DeviceMemory, ...] = self._call("devices")
        except FleetUnreachable:
            return None
        return devices

    def loops(self) -> tuple[LoopState, ...] | None:
        """The background loops of the fleet actor; None: unreachable."""
        try:
            loops: tuple[LoopState, ...] = self._call("loops")
        except FleetUnreachable:
            return None
        return loops

    # ---- versions

    def ensure(self, launch: Launch, *, token: int) -> None:
        """See `FleetClient.ensure`."""
        self._call("ensure", launch, token)

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        """Every version of the service; None: unreachable."""
        try:
            statuses: tuple[VersionStatus, ...] = self._call("observe", service)
        except FleetUnreachable:
            return None
        return statuses

    def drain(self, service: str, version: str, *, token: int) -> None:
        """See `FleetClient.drain`."""
        self._call("drain", service, version, token)

    def cancel(self, service: str, version: str, *, token: int) -> None:
        """See `FleetClient.cancel`."""
        self._call("cancel", service, version, token)

    def stop(self, service: str, version: str, *, token: int) -> None:
        """See `FleetClient.stop`."""
        self._call("stop", service, version, token)

    # ---- inside

    def _call(self, method: str, *values: object, timeout_s: float | None = None) -> Any:
        def work(deadline: Deadline) -> Any:
            actor = self._handles.within(FLEET, deadline)
            return ray.get(getattr(actor, method).remote(*values), timeout=deadline.left_s)

        try:
            if timeout_s is None:
                return work(Deadline(self._timeout_s))
            return self._patience.run(timeout_s, work)
        except RayTaskError as exc:
            if isinstance(exc.cause, StaleFencingToken):
                raise StaleFencingToken(*exc.cause.args) from exc
            raise
        except (GetTimeoutError, RayError, ValueError) as exc:
            # Ray restarts a dead actor under the same name: the next call looks it up again.
            self._handles.forget(FLEET)
            raise FleetUnreachable(f"the fleet actor does not answer ({one_line(exc)})") from exc
