"""State of the fleet: the phase of every version, and the orders due next. Pure: time is a parameter.

Rules:
1. Commands only change the desired state; `orders` lists what is due and is called repeatedly. Every order is
   idempotent. A command with an older fencing token raises StaleFencingToken.
2. To stop a version: it leaves the route table, which routers acknowledge; its requests in flight end or are
   aborted; Serve deletes it; its processes end. Only then is it gone.
3. A failed load is deleted from Serve and stays failed until `stop`: the controller decides about a retry. A
   version that was ready and loses its engine is not failed: Serve replaces the replica.
4. A version's settings never change under its name: `ensure` of a running one only changes its replicas.
5. An endpoint that does not answer its probe says why at once. It has failed at once if that cannot heal by
   itself (401, 403, 404, a redirect, a key that cannot be read), else after a minute. Once ready it is probed
   on and keeps its place in the route table: what it answers users is judged there.

Invariant: this file reads no clock and imports no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from serving.fleet.types import EndpointError, EngineReport, HostProcess, Launch, VersionPhase, VersionStatus
from serving.table.route_table import StaleFencingToken

REPORT_TIMEOUT_S = 3.0  # without a report for this long, a replica is probed
STOP_GRACE_S = 5.0  # until requests in flight are aborted, after a `stop` without a drain
STOP_LIMIT_S = 15.0  # until an engine that does not end its requests is deleted with them
REPUBLISH_S = 2.0  # so that a new route table gets the replicas
ENDPOINT_LOAD_S = 60.0  # until an endpoint that does not answer its probe has failed
ENDPOINT_PROBE_S = 10.0  # between probes of a ready endpoint
GONE_LIMIT = 20  # versions


@dataclass(frozen=True, slots=True)
class RunApp:
    """Run the version in Serve with its number of replicas."""

    launch: Launch
    running: int  # replicas that already report


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish the version's addresses in the route table; without urls it leaves the table."""

    launch: Launch
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Abort the requests in flight at these addresses."""

    launch: Launch
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteApp:
    """Delete the version from Serve; call `on_gone` once its processes have ended."""

    launch: Launch
    processes: tuple[HostProcess, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Check whether this address accepts connections."""

    launch: Launch
    replica: str
    url: str


Order: TypeAlias = RunApp | Publish | Cancel | DeleteApp | Probe


@dataclass(slots=True)
class _Version:
    launch: Launch
    phase: VersionPhase
    since_s: float
    reports: dict[str, tuple[EngineReport, float]] = field(default_factory=dict)  # by replica, with its time
    processes: set[HostProcess] = field(default_factory=set)  # all that were ever reported
    error: str | None = None
    run_as: Launch | None = None  # the launch that Serve has accepted last
    published: tuple[str, ...] | None = None  # None: never published
    published_s: float = 0.0
    out_of_table: bool = False  # no router will send it another request
    reload_as: Launch | None = None  # to be loaded when it is gone
    is_up: bool = False  # an external endpoint has answered its probe
    probed_s: float = 0.0  # when it was last probed

    def enter(self, phase: VersionPhase, now_s: float) -> None:
        if self.phase != phase:
            self.phase, self.since_s = phase, now_s

    @property
    def urls(self) -> tuple[str, ...]:
        if self.launch.url is not None:
            return (self.launch.url,) if self.is_up else ()
        ready = [report.url for report, _ in self.reports.values() if report.phase == "ready"]
        return tuple(sorted(ready))

    @property
    def in_flight(self) -> int:
        return sum(report.in_flight for report, _ in self.reports.values())

    @property
    def memory_bytes(self) -> int | None:
        if self.phase == "gone":
            return 0
        known = [r.memory_bytes for r, _ in self.reports.values() if r.memory_bytes is not None]
        return sum(known) if known else None


class FleetCore:
    """State of all versions of all services. Not thread-safe."""

    def __init__(self, stored: str | None = None) -> None:
        """stored: result of `to_store` before a restart; replicas then report again."""
        self._versions: dict[tuple[str, str], _Version] = {}
        state: Mapping[str, Any] = json.loads(stored) if stored else {}
        self._token: int = state.get("token", 0)
        for data in state.get("versions", ()):
            launch = Launch.from_json(data["launch"])
            entry = _Version(launch, data["phase"], data["since_s"], error=data["error"])
            entry.processes = {HostProcess(*process) for process in data["processes"]}
            self._versions[launch.service, launch.version] = entry

    def to_store(self) -> str:
        """The state that survives a restart, as JSON; holds the services' secrets."""
        versions = [
            {
                "launch": entry.launch.to_json(),
                "phase": entry.phase,
                "since_s": entry.since_s,
                "error": entry.error,
                "processes": sorted(entry.processes),
            }
            for entry in self._versions.values()
        ]
        return json.dumps({"token": self._token, "versions": versions})

    # ---- commands

    def ensure(self, launch: Launch, *, token: int, now_s: float) -> None:
        """Request that it is loaded and in the route table. Raises StaleFencingToken."""
        self._check(token)
        key = (launch.service, launch.version)
        entry = self._versions.get(key)
        if entry is None or entry.phase == "gone":
            self._versions[key] = _Version(launch, "loading", now_s)
            return
        if entry.phase == "stopping":
            entry.reload_as = launch
        elif entry.phase != "failed":
            entry.launch = replace(entry.launch, replicas=launch.replicas)
            if entry.phase == "draining":
                entry.out_of_table = False
                entry.enter("ready" if entry.urls else "loading", now_s)

    def drain(self, service: str, version: str, *, token: int, now_s: float) -> None:
        """Request that it leaves the route table. Raises StaleFencingToken."""
        entry = self._find(service, version, token)
        if entry is not None and entry.phase in ("loading", "ready"):
            entry.enter("draining", now_s)

    def cancel(self, service: str, version: str, *, token: int) -> tuple[Order, ...]:
        """The order that aborts a draining version's requests. Raises StaleFencingToken."""
        entry = self._find(service, version, token)
        if entry is None or entry.phase not in ("draining", "stopping") or entry.launch.url is not None:
            return ()
        return (Cancel(entry.launch, entry.urls),) if entry.urls else ()

    def stop(self, service: str, version: str, *, token: int, now_s: float) -> None:
        """Request that it is unloaded; clears a failure. Raises StaleFencingToken."""
        entry = self._find(service, version, token)
        if entry is not None:
            entry.reload_as = None
            if entry.phase != "gone":
                entry.enter("stopping", now_s)

    # ---- events

    def on_report(self, launch: Launch, report: EngineReport, *, now_s: float) -> None:
        """A replica reported its status."""
        key = (launch.service, launch.version)
        entry = self._versions.get(key)
        if entry is None:
            # The fleet has lost its stored state: adopt what runs.
            entry = self._versions[key] = _Version(launch, "loading", now_s, run_as=launch)
        entry.processes.update(report.processes)
        entry.reports[report.replica] = (report, now_s)
        if report.error is not None:
            entry.error = report.error
        if entry.phase == "loading":
            if report.phase == "failed":
                entry.enter("failed", now_s)
            elif len(entry.urls) >= entry.launch.replicas:
                entry.error = None
                entry.enter("ready", now_s)
        elif entry.phase == "ready" and len(entry.urls) >= entry.launch.replicas:
            entry.error = None  # of an engine that died and was replaced

    def on_replica_lost(self, service: str, version: str, replica: str) -> None:
        """A replica no longer accepts connections."""
        entry = self._versions.get((service, version))
        if entry is not None:
            entry.reports.pop(replica, None)

    def on_endpoint_probed(
        self, service: str, version: str, error: EndpointError | None, *, now_s: float
    ) -> None:
        """An external endpoint was probed; error None: it answered."""
        entry = self._versions.get((service, version))
        if entry is not None:
            entry.is_up, entry.probed_s = entry.is_up or error is None, now_s
            entry.error = error.text if error is not None else None
            if entry.phase == "loading" and entry.is_up:
                entry.enter("ready", now_s)
            elif (
                entry.phase == "loading"
                and error is not None
                and (not error.may_heal or now_s - entry.since_s >= ENDPOINT_LOAD_S)
            ):
                entry.enter("failed", now_s)

    def on_run(self, launch: Launch, error: str | None, *, now_s: float) -> None:
        """Serve has accepted the launch; `error`: it was refused."""
        entry = self._versions.get((launch.service, launch.version))
        if entry is not None:
            entry.run_as = launch
            if error is not None and entry.phase == "loading":
                entry.error = error
                entry.enter("failed", now_s)

    def on_published(self, order: Publish, *, is_applied: bool, now_s: float) -> None:
        """The route table has accepted the order. is_applied: every router obeys it."""
        entry = self._versions.get((order.launch.service, order.launch.version))
        if entry is not None:
            entry.published, entry.published_s = order.urls, now_s
            entry.out_of_table = is_applied and not order.urls

    def on_gone(self, launch: Launch, *, now_s: float) -> None:
        """Serve has deleted it and its processes have ended."""
        key = (launch.service, launch.version)
        entry = self._versions.get(key)
        if entry is None:
            return
        entry.reports.clear()
        entry.processes.clear()
        entry.run_as = None
        entry.is_up = False
        if entry.phase == "stopping":
            entry.enter("gone", now_s)
            if entry.reload_as is not None:
                self._versions[key] = _Version(entry.reload_as, "loading", now_s)
        gone = [key for key, entry in self._versions.items() if entry.phase == "gone"]
        for key in gone[:-GONE_LIMIT]:
            del self._versions[key]

    # ---- orders and status

    def orders(self, *, now_s: float) -> tuple[Order, ...]:
        """Everything that is due now; completed orders are not repeated."""
        return tuple(order for entry in self._versions.values() for order in self._orders_of(entry, now_s))

    def statuses(self, service: str) -> tuple[VersionStatus, ...]:
        """Every version of the service."""
        return tuple(
            VersionStatus(
                version=name,
                # Without a ready replica it serves nobody, until Serve has replaced its engines.
                phase="loading" if entry.phase == "ready" and not entry.urls else entry.phase,
                ready_replicas=len(entry.urls),
                in_flight=entry.in_flight,
                memory_bytes=entry.memory_bytes,
                urls=entry.urls,
                last_error=entry.error,
                since_s=entry.since_s,
                external=entry.launch.url is not None,
            )
            for (of, name), entry in self._versions.items()
            if of == service
        )

    def owns(self, launch: Launch, replica: str) -> bool:
        """True when the replica belongs to this version."""
        entry = self._versions.get((launch.service, launch.version))
        return entry is not None and replica in entry.reports

    def _orders_of(self, entry: _Version, now_s: float) -> Sequence[Order]:
        match entry.phase:
            case "loading" | "ready":
                is_run = entry.run_as == entry.launch or entry.launch.url is not None
                run = [] if is_run else [RunApp(entry.launch, len(entry.reports))]
                return [*self._publish_if_due(entry, now_s), *run, *self._probes(entry, now_s)]
            case "draining":
                publish = [] if entry.out_of_table else [Publish(entry.launch, ())]
                return [*publish, *self._probes(entry, now_s)]
            case "stopping" if not entry.out_of_table and entry.published is not None:
                return (Publish(entry.launch, ()),)
            case "stopping" if entry.in_flight and now_s - entry.since_s < STOP_LIMIT_S:
                cancel = [Cancel(entry.launch, entry.urls)] if now_s - entry.since_s >= STOP_GRACE_S else []
                return [*cancel, *self._probes(entry, now_s)]
            case "failed" if entry.run_as is None and not entry.processes:
                return ()
            case "gone":
                return ()
        return (DeleteApp(entry.launch, tuple(sorted(entry.processes))),)

    def _publish_if_due(self, entry: _Version, now_s: float) -> list[Order]:
        if entry.published is None and not entry.urls:
            return []
        is_due = entry.published != entry.urls or now_s - entry.published_s >= REPUBLISH_S
        return [Publish(entry.launch, entry.urls)] if is_due else []

    def _probes(self, entry: _Version, now_s: float) -> list[Order]:
        if entry.launch.url is not None:
            is_due = not entry.is_up or now_s - entry.probed_s >= ENDPOINT_PROBE_S
            return [Probe(entry.launch, "", entry.launch.url)] if is_due else []
        return [
            Probe(entry.launch, replica, report.url)
            for replica, (report, reported_s) in entry.reports.items()
            if now_s - reported_s > REPORT_TIMEOUT_S
        ]

    def _check(self, token: int) -> None:
        if token < self._token:
            raise StaleFencingToken(f"fencing token {token} is older than {self._token}; stop acting")
        self._token = token

    def _find(self, service: str, version: str, token: int) -> _Version | None:
        self._check(token)
        return self._versions.get((service, version))


class LoadQueue:
    """Lock of each device while an engine loads on it: one load at a time."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}  # place -> replica

    def try_acquire(self, replica: str, places: Sequence[str]) -> bool:
        """True when the replica now holds all of these devices."""
        if any(self._holders.get(place, replica) != replica for place in places):
            return False
        self._holders.update(dict.fromkeys(places, replica))
        return True

    def release(self, replica: str) -> None:
        """Release the replica's devices, if it holds any."""
        self._holders = {place: holder for place, holder in self._holders.items() if holder != replica}

    @property
    def holders(self) -> frozenset[str]:
        """Replicas that hold a device."""
        return frozenset(self._holders.values())
