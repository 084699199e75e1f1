"""State of the fleet: the phase of every version, and the orders due next. Pure: time is a parameter.

Rules:
1. Commands only change the desired state; `orders` lists what is due and is called repeatedly. Every order is
   idempotent. A command with an older fencing token raises StaleFencingToken.
2. To stop a version: it leaves the route table (where a judge never is), which routers acknowledge; requests
   in flight end or are aborted; Serve deletes it; its processes end. Only then is it gone.
3. A failed load is deleted from Serve and stays failed until `stop`: the controller decides about a retry. A
   version that was ready and loses its engine is not failed: Serve replaces the replica.
4. A version's settings never change under its name: `ensure` of a running one only changes its replicas.
5. An endpoint that does not answer its probe says why at once. It has failed at once if that cannot heal by
   itself (401, 403, 404, a redirect, a key that cannot be read), else after a minute. Once ready it is probed
   on and keeps its place in the route table: what it answers users is judged there.
6. A replica that Serve stops (`closing`) leaves the table first: its report is answered `is_unpublished` once
   every router has acknowledged a table without it.
7. A replica whose reports stop is asked. One that does not answer leaves the table, at once while another
   replica of its version answers, else at its sixth silence in a row (about 15 s): the last one may only be
   slow. At its 24th (a minute), or its 60th while it loads, it has hung and is killed, so that Serve replaces
   it; on a busy host it has longer, because the fleet asks later too. A silence during which its process used
   no CPU time counts for three. Silences are counted, not timed, so that a corrected clock makes nobody hang.

Invariant: this file reads no clock (`now_s`: seconds of CLOCK_BOOTTIME) and imports no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving.fleet.orders import Cancel, DeleteApp, Order, Probe, Publish, Replace, RunApp
from serving.fleet.types import (
    EndpointError,
    EngineReport,
    HostProcess,
    Launch,
    ReplicaState,
    VersionPhase,
    VersionStatus,
)
from serving.table.orders import StaleFencingToken

REPORT_TIMEOUT_S = 3.0  # without a report for this long, a replica is probed
STOP_GRACE_S = 5.0  # until requests in flight are aborted, after a `stop` without a drain
STOP_LIMIT_S = 15.0  # until an engine that does not end its requests is deleted with them
REPUBLISH_S = 2.0  # so that a new route table gets the replicas
ENDPOINT_LOAD_S = 60.0  # until an endpoint that does not answer its probe has failed
ENDPOINT_PROBE_S = 10.0  # between probes of a ready endpoint
LOAD_PUBLISH_S = 0.5  # between two publications of requests in flight
HUNG_SILENCES = 6  # in a row, each of 2.5 s or more: the last replica of a version leaves the route table
REPLACED_SILENCES = 24  # in a row: a hung replica is killed, so that Serve replaces it
STILL_SILENCES = 3  # that one counts for, of a process that uses no CPU time meanwhile: it is not just slow
LOADING_SILENCES = 60  # the same while it loads, which may hold up everything else in its process
GONE_LIMIT = 20  # versions


@dataclass(slots=True)
class _Version:
    launch: Launch
    phase: VersionPhase
    since_s: float
    reports: dict[str, tuple[EngineReport, float]] = field(default_factory=dict)  # by replica, with its time
    processes: set[HostProcess] = field(default_factory=set)  # all that were ever reported
    error: str | None = None
    run_as: Launch | None = None  # the launch that Serve has accepted last
    silences: dict[str, int] = field(default_factory=dict)  # probes without an answer, in a row; by replica
    published: Publish | None = None  # None: never published by this fleet
    may_be_published: bool = False  # by a fleet before, whose addresses are not known
    published_s: float = 0.0
    routed_urls: frozenset[str] = frozenset()  # addresses that some router may still send requests to
    out_of_table: bool = False  # no router will send it another request
    reload_as: Launch | None = None  # to be loaded when it is gone
    is_up: bool = False  # an external endpoint has answered its probe
    probed_s: float = 0.0  # when it was last probed
    drained: int = 0  # replicas that said, ready until then, that Serve stops them

    def enter(self, phase: VersionPhase, now_s: float) -> None:
        if self.phase != phase:
            self.phase, self.since_s = phase, now_s

    @property
    def urls(self) -> tuple[str, ...]:
        if self.launch.url is not None:
            return (self.launch.url,) if self.is_up else ()
        ready = {name: one.url for name, (one, _) in self.reports.items() if one.phase == "ready"}
        answering = [url for name, url in ready.items() if not self.silences.get(name)]
        if not answering:
            answering = [url for name, url in ready.items() if self.silences.get(name, 0) < HUNG_SILENCES]
        return tuple(sorted(answering))

    @property
    def publication(self) -> Publish:
        """What the route table should hold."""
        urls = self.urls
        load = {report.url: report.in_flight for report, _ in self.reports.values()}
        in_flight = tuple(load.get(url, 0) for url in urls) if len(urls) > 1 else ()
        return Publish(self.launch, urls, in_flight)

    @property
    def has_left(self) -> bool:
        """True when a replica waits until no router sends to it."""
        return any(report.phase == "closing" for report, _ in self.reports.values())

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

    def __init__(self, stored: str | None = None, *, now_s: float = 0.0) -> None:
        """stored: result of `to_store` before a restart; replicas then report again. Phases begin anew, for
        the clock may be another host's."""
        self._versions: dict[tuple[str, str], _Version] = {}
        state: Mapping[str, Any] = json.loads(stored) if stored else {}
        self._token: int = state.get("token", 0)
        for data in state.get("versions", ()):
            launch = Launch.from_json(data["launch"])
            entry = _Version(launch, data["phase"], now_s, error=data["error"])
            entry.may_be_published = launch.is_routed
            entry.processes = {HostProcess(*process) for process in data["processes"]}
            self._versions[launch.service, launch.version] = entry

    def to_store(self) -> str:
        """The state that survives a restart, as JSON; holds the services' secrets."""
        versions = [
            {
                "launch": entry.launch.to_json(),
                "phase": entry.phase,
                "error": entry.error,
                "processes": sorted(entry.processes),
            }
            for entry in self._versions.values()
        ]
        return json.dumps({"token": self._token, "versions": versions})

    # ---- commands

    def ensure(self, launch: Launch, *, token: int, now_s: float) -> None:
        """Request that it is loaded and in the route table. Raises StaleFencingToken."""
        self.require(token)
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
            if report.phase == "closing":
                return
            # The fleet has lost its stored state: adopt what runs.
            entry = _Version(launch, "loading", now_s, run_as=launch, may_be_published=launch.is_routed)
            self._versions[key] = entry
        entry.processes.update(report.processes)
        before = entry.reports.get(report.replica)
        entry.drained += before is not None and before[0].phase == "ready" and report.phase == "closing"
        entry.reports[report.replica] = (report, now_s)
        entry.silences.pop(report.replica, None)
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
            entry.silences.pop(replica, None)

    def on_replica_probed(
        self,
        service: str,
        version: str,
        replica: str,
        state: ReplicaState | None,
        *,
        now_s: float,
        is_still: bool = False,
    ) -> None:
        """A replica whose reports had stopped was asked; state None: it did not answer in time.

        is_still: since it was asked before, its process has used no CPU time.
        """
        entry = self._versions.get((service, version))
        found = entry.reports.get(replica) if entry is not None else None
        if entry is None or found is None:
            return
        report, _ = found
        if state is None:
            silences = entry.silences.get(replica, 0) + (STILL_SILENCES if is_still else 1)
            entry.silences[replica] = silences
            if silences >= HUNG_SILENCES and report.phase != "loading":
                entry.error = f"an engine at {report.url} has hung; it is replaced"
            return
        entry.silences.pop(replica, None)
        phase = report.phase
        if phase == "ready" and not state.is_ready:
            phase = "closing"
        entry.reports[replica] = (replace(report, in_flight=state.in_flight, phase=phase), now_s)

    def on_endpoint_probed(
        self, service: str, version: str, error: EndpointError | None, *, now_s: float
    ) -> None:
        """An external endpoint was probed; error None: it answered."""
        entry = self._versions.get((service, version))
        if entry is None:
            return
        entry.is_up, entry.probed_s = entry.is_up or error is None, now_s
        entry.error = error.text if error is not None else None
        if entry.phase == "loading":
            if entry.is_up:
                entry.enter("ready", now_s)
            elif error is not None and (not error.may_heal or now_s - entry.since_s >= ENDPOINT_LOAD_S):
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
            entry.published, entry.published_s = order, now_s
            entry.routed_urls = frozenset(order.urls) | (frozenset() if is_applied else entry.routed_urls)
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
                drained_replicas=entry.drained,
            )
            for (of, name), entry in self._versions.items()
            if of == service
        )

    def replicas(self, launch: Launch) -> tuple[str, ...]:
        """The replicas of this version that have reported and are not lost."""
        entry = self._versions.get((launch.service, launch.version))
        return tuple(entry.reports) if entry is not None else ()

    def fence_epoch(self, service: str) -> int:
        """The highest epoch of a fence at one of the service's replicas."""
        entries = [entry for (of, _), entry in self._versions.items() if of == service]
        return max((one.fence_epoch for entry in entries for one, _ in entry.reports.values()), default=0)

    def is_unpublished(self, launch: Launch, url: str) -> bool:
        """True when no router sends this version's requests to this address."""
        entry = self._versions.get((launch.service, launch.version))
        if entry is None or entry.phase == "gone":
            return True
        if entry.published is None:
            return not entry.may_be_published
        return url not in entry.routed_urls and url not in entry.published.urls

    def _orders_of(self, entry: _Version, now_s: float) -> Sequence[Order]:
        match entry.phase:
            case "loading" | "ready":
                is_run = entry.run_as == entry.launch or entry.launch.url is not None
                run = [] if is_run else [RunApp(entry.launch, len(entry.reports))]
                return [*self._publish_if_due(entry, now_s), *run, *self._probes(entry, now_s)]
            case "draining":
                is_out = entry.out_of_table or not entry.launch.is_routed
                return [*([] if is_out else [Publish(entry.launch, ())]), *self._probes(entry, now_s)]
            case "stopping" if not entry.out_of_table and (entry.published or entry.may_be_published):
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
        wanted, published = entry.publication, entry.published
        if published is None:
            return [wanted] if entry.launch.is_routed and (wanted.urls or entry.has_left) else []
        is_due = (
            published.urls != wanted.urls
            or not entry.routed_urls <= set(wanted.urls)
            or (published.in_flight != wanted.in_flight and now_s - entry.published_s >= LOAD_PUBLISH_S)
            or now_s - entry.published_s >= REPUBLISH_S
        )
        return [wanted] if is_due else []

    def _probes(self, entry: _Version, now_s: float) -> list[Order]:
        if entry.launch.url is not None:
            is_due = not entry.is_up or now_s - entry.probed_s >= ENDPOINT_PROBE_S
            return [Probe(entry.launch, "", entry.launch.url)] if is_due else []
        orders: list[Order] = []
        for replica, (report, reported_s) in entry.reports.items():
            limit = LOADING_SILENCES if report.phase == "loading" else REPLACED_SILENCES
            if entry.silences.get(replica, 0) >= limit:
                orders.append(Replace(entry.launch, replica, report.processes))
            elif now_s - reported_s > REPORT_TIMEOUT_S:
                orders.append(Probe(entry.launch, replica, report.url, next(iter(report.processes), None)))
        return orders

    def require(self, token: int) -> None:
        """Take the token of a command. Raises StaleFencingToken when a younger one has been used."""
        if token < self._token:
            older = f"fencing token {token} is older than {self._token}; stop acting"
            raise StaleFencingToken(older, self._token)
        self._token = token

    def _find(self, service: str, version: str, token: int) -> _Version | None:
        self.require(token)
        return self._versions.get((service, version))
