"""The data plane in the core's words: versions become launches, sights of fleet and table become ours.

Foreign exceptions are translated here, once. Every call returns within 50 ms, but for the first `open` and
the `close` of a service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from controller.errors import StaleToken, Unreachable
from controller.rollout.actions import SetSplit
from controller.rollout.observation import SplitStatus, VersionPhase, VersionStatus
from controller.runtime.probes_http import Target
from controller.spec.service import VersionSpec
from serving.fleet import types as plane
from serving.messages import RecordPage, ScoreRecord
from serving.messages import SplitStatus as TableStatus
from serving.table.route_table import Split, StaleFencingToken, root_url

REOPEN_S = 10.0  # a front that was opened is looked after so often

T = TypeVar("T")


class TrafficClient(Protocol):
    """`serving.table.traffic_ray.RayTraffic`, as far as it is used here."""

    def open(self, service: str, secret: str) -> None: ...
    def close(self, service: str) -> None: ...
    def set_split(self, service: str, split: Split, *, token: int) -> TableStatus | None: ...
    def observe(self, service: str) -> TableStatus | None: ...
    def heartbeat(self, service: str, token: int) -> bool: ...
    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None: ...
    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool: ...


class RouterClient(TrafficClient, Protocol):
    """The same with its routers, which a table in memory has none of."""

    def start_router(self, service: str, replicas: int = 1) -> None: ...


def translated(call: Callable[[], T]) -> T:
    """What `call` gives; the plane's exceptions as ours."""
    try:
        return call()
    except StaleFencingToken as exc:
        raise StaleToken(str(exc)) from exc
    except plane.FleetUnreachable as exc:
        raise Unreachable(str(exc)) from exc


class PlaneFleet:
    """The core's Fleet. `launch` says what starting a version takes, given service, version and replicas."""

    def __init__(self, fleet: plane.FleetClient, launch: Callable[[str, str, int], plane.Launch]) -> None:
        self._fleet = fleet
        self._launch = launch

    def ensure(self, service: str, version: str, replicas: int, *, token: int) -> None:
        """Have the version run."""
        launch = self._launch(service, version, replicas)
        translated(lambda: self._fleet.ensure(launch, token=token))

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        """Every version that holds anything; None: the fleet cannot be read."""
        sights = translated(lambda: self._fleet.observe(service))
        if sights is None:
            return None
        return tuple(_version_sight(one) for one in sights if one.phase != "gone")

    def drain(self, service: str, version: str, *, token: int) -> None:
        """Out of rotation; what is under way goes on."""
        translated(lambda: self._fleet.drain(service, version, token=token))

    def cancel(self, service: str, version: str, *, token: int) -> None:
        """End what is under way."""
        translated(lambda: self._fleet.cancel(service, version, token=token))

    def stop(self, service: str, version: str, *, token: int) -> None:
        """Unload."""
        translated(lambda: self._fleet.stop(service, version, token=token))


class PlaneTraffic:
    """The core's Traffic."""

    def __init__(self, traffic: TrafficClient) -> None:
        self._traffic = traffic

    def set_split(self, service: str, rollout: str, split: SetSplit, *, token: int) -> SplitStatus | None:
        """Publish. The salt is the rollout's id: each rollout draws its units anew."""
        rollout_salt = rollout or service
        wanted = Split(rollout, rollout_salt, split.stable, split.canary, split.weight_bp, split.stage)
        sight = translated(lambda: self._traffic.set_split(service, wanted, token=token))
        if sight is None:
            raise Unreachable(f"the route table of {service} does not answer")
        return _split_sight(sight)

    def observe(self, service: str) -> SplitStatus | None:
        """The table; None: it cannot be read."""
        sight = translated(lambda: self._traffic.observe(service))
        return _split_sight(sight) if sight is not None else None

    def heartbeat(self, service: str, *, token: int) -> None:
        """The controller lives."""
        if not translated(lambda: self._traffic.heartbeat(service, token)):
            raise Unreachable(f"the route table of {service} does not answer")

    def is_tombstoned(self, service: str, rollout: str) -> bool:
        """True when a direct rollback ended this rollout."""
        sight = translated(lambda: self._traffic.observe(service))
        return sight is not None and rollout in sight.tombstoned


class PlaneFront:
    """The keeper's Front: the service's two actors and its routers. `routers`: how many a service has."""

    def __init__(
        self,
        traffic: RouterClient,
        routers: Callable[[str], int],
        stop_router: Callable[[str], None],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._traffic = traffic
        self._routers = routers
        self._stop_router = stop_router
        self._monotonic_s = monotonic_s
        self._looked_at_s: dict[str, float] = {}

    def open(self, service: str, secret: str, *, token: int) -> None:
        """Actors and routers are there; looked after now and then, for all of it is idempotent."""
        now_s = self._monotonic_s()
        if now_s - self._looked_at_s.get(service, -REOPEN_S) < REOPEN_S:
            return
        if service not in self._looked_at_s or self._traffic.observe(service) is None:
            self._traffic.open(service, secret)
            self._traffic.start_router(service, self._routers(service))
        self._looked_at_s[service] = now_s

    def is_open(self, service: str) -> bool | None:
        """True: its table answers."""
        return self._traffic.observe(service) is not None

    def close(self, service: str, *, token: int) -> None:
        """End the routers and the actors."""
        if self._looked_at_s.pop(service, None) is not None or self._traffic.observe(service) is not None:
            translated(lambda: self._stop_router(service))
            self._traffic.close(service)


class PlaneLog:
    """The ordered records log of a service."""

    def __init__(self, traffic: TrafficClient) -> None:
        self._traffic = traffic

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        """The next events; None: the log cannot be read."""
        return self._traffic.read_records(service, after_seq, limit)

    def append(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool:
        """Append (id, metric, value, at_s) scores; False: they were not taken."""
        records = [ScoreRecord(0, name, metric, value, at_s) for name, metric, value, at_s in scores]
        return self._traffic.append_scores(service, records)


def probe_target(
    fleet: plane.FleetClient, traffic: TrafficClient, service: str, version: str, *, secret: str
) -> Target | None:
    """Where to ask one version; None: fleet or table cannot be read now."""
    sights, table = fleet.observe(service), traffic.observe(service)
    if sights is None or table is None:
        return None
    sight = next((one for one in sights if one.version == version), None)
    if sight is None:
        return None
    # Not below any fence that stands: the present table's own mark.
    headers = {"x-canaryctl-secret": secret, "x-canaryctl-revision": f"{table.epoch}.{table.revision}"}
    return Target(sight.urls, {} if sight.external else headers, None if sight.external else service)


def _version_sight(sight: plane.VersionStatus) -> VersionStatus:
    return VersionStatus(
        version=sight.version,
        phase=VersionPhase(sight.phase),
        ready_replicas=sight.ready_replicas,
        in_flight=sight.in_flight,
        memory_bytes=sight.memory_bytes,
        last_error=sight.last_error,
        since_s=sight.since_s,
    )


def _split_sight(sight: TableStatus) -> SplitStatus:
    return SplitStatus(
        epoch=sight.epoch,
        revision=sight.revision,
        stable=sight.stable or "",
        canary=sight.canary,
        weight_bp=sight.weight_bp,
        applied=sight.applied,
        how=sight.how,
    )


def launch_of(
    service: str,
    version: str,
    secret: str,
    spec: VersionSpec,
    *,
    replicas: int,
    on_gpu: bool,
    memory_bytes: int | None,
) -> plane.Launch:
    """What starting this version takes."""
    if spec.url is not None:
        return plane.Launch(service, version, secret, url=root_url(spec.url))
    arguments = spec.engine_arguments()
    # These two are the launch's own words; dtype auto leaves the choice to the engine's defaults.
    arguments.pop("tensor_parallel_size", None)
    if arguments.get("dtype") == "auto":
        del arguments["dtype"]
    return plane.Launch(
        service,
        version,
        secret,
        model_dir=spec.model,
        engine_args=arguments,
        replicas=replicas,
        gpus_per_replica=_gpus(spec) if on_gpu else 0.0,
        tensor_parallel=spec.tensor_parallel_size,
        memory_bytes=memory_bytes,
    )


def _gpus(spec: VersionSpec) -> float:
    """GPUs a replica: what was asked for, else half a device where the engine takes no more than that."""
    if spec.gpus is not None:
        return float(spec.gpus)
    shares = spec.gpu_memory_utilization is not None and spec.gpu_memory_utilization <= 0.5
    return float(spec.tensor_parallel_size) * (0.5 if shares else 1.0)
