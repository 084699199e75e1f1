"""In-memory fleet without engines: the pure core, whose orders are executed at once.

It passes the same contract suite as `RayFleet` (test_fleet_contract.py).
"""

from __future__ import annotations

from collections.abc import Callable

from serving.fleet.engine_args import CheckpointError, check_checkpoint
from serving.fleet.fleet import FleetCore
from serving.fleet.orders import Cancel, DeleteApp, Order, Probe, Publish, RunApp
from serving.fleet.types import EndpointError, EngineReport, HostProcess, Launch, VersionStatus

ENGINE_BYTES = 1_200_000_000


class MemoryFleet:
    """Versions become ready when `load` is called, or at once with `loads_at_once`."""

    def __init__(self, now_s: Callable[[], float], *, loads_at_once: bool = True) -> None:
        self._now_s = now_s
        self._core = FleetCore()
        self._loads_at_once = loads_at_once
        self.in_flight: dict[str, int] = {}  # by version; set it to simulate requests in flight
        self.published: dict[str, tuple[str, ...]] = {}  # by version: urls last published
        self.unreachable: set[str] = set()  # urls of external endpoints that do not answer

    def ensure(self, launch: Launch, *, token: int) -> None:
        """See `serving.fleet.types.FleetClient`."""
        self._core.ensure(launch, token=token, now_s=self._now_s())

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        """See `serving.fleet.types.FleetClient`. Executes the orders due."""
        for _ in range(4):
            for order in self._core.orders(now_s=self._now_s()):
                self._execute(order)
        return self._core.statuses(service)

    def drain(self, service: str, version: str, *, token: int) -> None:
        """See `serving.fleet.types.FleetClient`."""
        self._core.drain(service, version, token=token, now_s=self._now_s())

    def cancel(self, service: str, version: str, *, token: int) -> None:
        """See `serving.fleet.types.FleetClient`."""
        for order in self._core.cancel(service, version, token=token):
            self._execute(order)

    def stop(self, service: str, version: str, *, token: int) -> None:
        """See `serving.fleet.types.FleetClient`."""
        self._core.stop(service, version, token=token, now_s=self._now_s())

    def load(self, launch: Launch, error: str | None = None) -> None:
        """The engines of this version become ready, or fail with `error`."""
        for index in range(launch.replicas):
            self._report(launch, index, error)

    def _report(self, launch: Launch, index: int, error: str | None) -> None:
        report = EngineReport(
            replica=f"{launch.version}-{index}",
            url=f"http://{launch.version}.{index}.test",
            phase="ready" if error is None else "failed",
            in_flight=self.in_flight.get(launch.version, 0),
            memory_bytes=ENGINE_BYTES,
            processes=(HostProcess("test", index, 0),),
            error=error,
        )
        self._core.on_report(launch, report, now_s=self._now_s())

    def _execute(self, order: Order) -> None:
        launch, now_s = order.launch, self._now_s()
        if isinstance(order, RunApp):
            self._core.on_run(launch, None, now_s=now_s)
            if self._loads_at_once:
                self.load(launch, _broken(launch))
        elif isinstance(order, Publish):
            self.published[launch.version] = order.urls
            self._core.on_published(order, is_applied=True, now_s=now_s)
            if launch.url is None and order.urls:
                self.load(launch)
        elif isinstance(order, Cancel):
            self.in_flight[launch.version] = 0
            self.load(launch)
        elif isinstance(order, DeleteApp):
            self._core.on_gone(launch, now_s=now_s)
        elif isinstance(order, Probe) and launch.url is not None:
            silent = EndpointError(f"{launch.url} does not answer", may_heal=True)
            error = silent if launch.url in self.unreachable else None
            self._core.on_endpoint_probed(launch.service, launch.version, error, now_s=now_s)


def _broken(launch: Launch) -> str | None:
    try:
        check_checkpoint(str(launch.model_dir))
    except CheckpointError as exc:
        return str(exc)
    return None
