"""Which versions run, are wanted, drain or go: the fleet's state, pure (time and reports come in as values).

Rules:
1. Commands only write down what is wanted; `orders` says what is to be done next, and is asked again and
   again. Every order may be done twice. A command with an older fencing token raises StaleToken.
2. Going down: out of the route table, acknowledged; then requests under way may end (or are broken off);
   then Serve takes it down; then its processes are seen to have ended. Only then it is gone.
3. A failed load is taken down and stays failed until `stop`: the controller decides about another try. A
   version that was ready once and loses its engine is not failed: Serve replaces the replica.
4. A version's settings are part of its name: `ensure` of a running one changes its replicas and nothing else.

Invariant: this file reads no clock and knows no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from serving.fleet.types import EngineReport, Launch, Phase, Process, VersionStatus
from serving.table.route_table import StaleToken

SILENT_S = 3.0  # without a report for so long, a replica is looked after
STOP_GRACE_S = 5.0  # for requests that are under way when `stop` comes without a drain
STOP_LIMIT_S = 15.0  # then an engine that neither ends them nor can be told to is taken down with them
PUBLISH_AGAIN_S = 2.0  # a new route table learns the replicas
GONE_KEPT = 20  # versions


@dataclass(frozen=True, slots=True)
class RunApp:
    """Have Serve run the version with its number of replicas."""

    launch: Launch
    running: int  # replicas that report themselves already


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell the route table where the version answers; without urls it leaves the table."""

    launch: Launch
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Break off what is under way there."""

    launch: Launch
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteApp:
    """Have Serve take the version down; report with `is_gone` once its processes have ended."""

    launch: Launch
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """See whether this address still takes connections."""

    launch: Launch
    replica: str
    url: str


Order: TypeAlias = RunApp | Publish | Cancel | DeleteApp | Probe


@dataclass(slots=True)
class _Version:
    launch: Launch
    phase: Phase
    since_s: float
    reports: dict[str, tuple[EngineReport, float]] = field(default_factory=dict)  # with when it came
    processes: set[Process] = field(default_factory=set)  # all that were ever reported
    error: str | None = None
    run_as: Launch | None = None  # what Serve was last told to run
    published: tuple[str, ...] | None = None  # None: not told yet
    published_s: float = 0.0
    out_of_table: bool = False  # no router will send it another request
    again: Launch | None = None  # to be loaded when it is gone
    is_up: bool = False  # an external endpoint answered

    def enter(self, phase: Phase, now_s: float) -> None:
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
    """The state of all versions of all services. One caller at a time."""

    def __init__(self, stored: str | None = None, *, now_s: float = 0.0) -> None:
        """stored: what `to_store` gave before a restart; replicas then report themselves again."""
        self._token = 0
        self._versions: dict[tuple[str, str], _Version] = {}
        data: Mapping[str, Any] = json.loads(stored) if stored else {}
        self._token = data.get("token", 0)
        for one in data.get("versions", ()):
            launch = Launch.from_json(one["launch"])
            version = _Version(launch, one["phase"], one["since_s"], error=one["error"])
            version.processes = {Process(*process) for process in one["processes"]}
            self._versions[launch.service, launch.version] = version

    def to_store(self) -> str:
        """All that a restart must not forget; holds the services' secrets."""
        versions = [
            {
                "launch": one.launch.to_json(),
                "phase": one.phase,
                "since_s": one.since_s,
                "error": one.error,
                "processes": sorted(one.processes),
            }
            for one in self._versions.values()
        ]
        return json.dumps({"token": self._token, "versions": versions})

    # ---- commands

    def ensure(self, launch: Launch, *, token: int, now_s: float) -> None:
        """Wants it loaded and in the route table. Raises StaleToken."""
        self._check(token)
        key = (launch.service, launch.version)
        version = self._versions.get(key)
        if version is None or version.phase == "gone":
            self._versions[key] = _Version(launch, "loading", now_s)
            return
        if version.phase == "stopping":
            version.again = launch
        elif version.phase != "failed":
            version.launch = replace(version.launch, replicas=launch.replicas)
            if version.phase == "draining":
                version.out_of_table = False
                version.enter("ready" if version.urls else "loading", now_s)

    def drain(self, service: str, version: str, *, token: int, now_s: float) -> None:
        """Wants it out of the route table. Raises StaleToken."""
        one = self._commanded(service, version, token)
        if one is not None and one.phase in ("loading", "ready"):
            one.enter("draining", now_s)

    def cancel(self, service: str, version: str, *, token: int) -> tuple[Order, ...]:
        """What breaks off the requests of a draining version. Raises StaleToken."""
        one = self._commanded(service, version, token)
        if one is None or one.phase not in ("draining", "stopping") or one.launch.url is not None:
            return ()
        return (Cancel(one.launch, one.urls),) if one.urls else ()

    def stop(self, service: str, version: str, *, token: int, now_s: float) -> None:
        """Wants it unloaded; a failure is forgotten. Raises StaleToken."""
        one = self._commanded(service, version, token)
        if one is not None:
            one.again = None
            if one.phase != "gone":
                one.enter("stopping", now_s)

    # ---- what was seen

    def report(self, launch: Launch, report: EngineReport, *, now_s: float) -> None:
        """A replica said how it is. One of a version that is not wanted is taken down."""
        key = (launch.service, launch.version)
        version = self._versions.get(key)
        if version is None:
            # The fleet was restarted without its memory: what runs was wanted once.
            version = self._versions[key] = _Version(launch, "loading", now_s, run_as=launch)
        version.processes.update(report.processes)
        version.reports[report.replica] = (report, now_s)
        if report.error is not None:
            version.error = report.error
        if version.phase == "loading":
            if report.phase == "failed":
                version.enter("failed", now_s)
            elif len(version.urls) >= version.launch.replicas:
                version.error = None
                version.enter("ready", now_s)

    def lost(self, service: str, version: str, replica: str) -> None:
        """A replica does not take connections any more."""
        one = self._versions.get((service, version))
        if one is not None:
            one.reports.pop(replica, None)

    def answered(self, service: str, version: str, error: str | None, *, now_s: float) -> None:
        """An external endpoint was tried; error None: it answered."""
        one = self._versions.get((service, version))
        if one is not None:
            one.is_up, one.error = error is None, error
            if one.phase == "loading" and one.is_up:
                one.enter("ready", now_s)

    def ran(self, launch: Launch, error: str | None, *, now_s: float) -> None:
        """Serve took the order to run it, or gave up on it with `error`."""
        one = self._versions.get((launch.service, launch.version))
        if one is not None:
            one.run_as = launch
            if error is not None and one.phase == "loading":
                one.error = error
                one.enter("failed", now_s)

    def published(self, order: Publish, *, is_applied: bool, now_s: float) -> None:
        """The route table took it. is_applied: every router obeys it."""
        one = self._versions.get((order.launch.service, order.launch.version))
        if one is not None:
            one.published, one.published_s = order.urls, now_s
            one.out_of_table = is_applied and not order.urls

    def is_gone(self, launch: Launch, *, now_s: float) -> None:
        """Serve has taken it down and its processes have ended."""
        key = (launch.service, launch.version)
        one = self._versions.get(key)
        if one is None:
            return
        one.reports.clear()
        one.processes.clear()
        one.run_as = None
        one.is_up = False
        if one.phase == "stopping":
            one.enter("gone", now_s)
            if one.again is not None:
                self._versions[key] = _Version(one.again, "loading", now_s)
        self._forget_old()

    # ---- what is to be done, and how it stands

    def orders(self, *, now_s: float) -> tuple[Order, ...]:
        """Everything that is to be done now; done ones are not asked for again."""
        found: list[Order] = []
        for one in self._versions.values():
            found += self._orders_of(one, now_s)
        return tuple(found)

    def sights(self, service: str) -> tuple[VersionStatus, ...]:
        """Every version of the service."""
        return tuple(
            VersionStatus(
                version=name,
                phase=one.phase,
                ready_replicas=len(one.urls),
                in_flight=one.in_flight,
                memory_bytes=one.memory_bytes,
                urls=one.urls,
                last_error=one.error,
                since_s=one.since_s,
                external=one.launch.url is not None,
            )
            for (of, name), one in self._versions.items()
            if of == service
        )

    def owns(self, launch: Launch, replica: str) -> bool:
        """True when the replica is one of this version's."""
        one = self._versions.get((launch.service, launch.version))
        return one is not None and replica in one.reports

    def _orders_of(self, one: _Version, now_s: float) -> Sequence[Order]:
        external = one.launch.url is not None
        if one.phase == "gone":
            return ()
        if one.phase in ("loading", "ready", "draining"):
            orders = [] if one.phase == "draining" else self._publication(one, one.urls, now_s)
            if one.phase == "draining" and not one.out_of_table:
                orders = self._publication(one, (), now_s, force=True)
            if external:
                return [*orders, *([] if one.is_up else [Probe(one.launch, "", str(one.launch.url))])]
            if one.phase != "draining" and one.run_as != one.launch:
                orders.append(RunApp(one.launch, len(one.reports)))
            return [*orders, *self._probes(one, now_s)]
        if one.phase == "stopping" and not one.out_of_table and one.published is not None:
            return self._publication(one, (), now_s, force=True)
        stopping_s = now_s - one.since_s
        if one.phase == "stopping" and one.in_flight and stopping_s < STOP_LIMIT_S:
            cancels = [Cancel(one.launch, one.urls)] if stopping_s >= STOP_GRACE_S else []
            return [*cancels, *self._probes(one, now_s)]
        if one.phase == "failed" and one.run_as is None and not one.processes:
            return ()
        return (DeleteApp(one.launch, tuple(sorted(one.processes))),)

    def _publication(
        self, one: _Version, urls: tuple[str, ...], now_s: float, *, force: bool = False
    ) -> list[Order]:
        if one.published is None and not urls and not force:
            return []
        is_old = now_s - one.published_s >= PUBLISH_AGAIN_S
        return [Publish(one.launch, urls)] if force or is_old or one.published != urls else []

    def _probes(self, one: _Version, now_s: float) -> list[Order]:
        return [
            Probe(one.launch, replica, report.url)
            for replica, (report, heard_s) in one.reports.items()
            if now_s - heard_s > SILENT_S
        ]

    def _check(self, token: int) -> None:
        if token < self._token:
            raise StaleToken(f"fencing token {token} is older than {self._token}; stop acting")
        self._token = token

    def _commanded(self, service: str, version: str, token: int) -> _Version | None:
        self._check(token)
        return self._versions.get((service, version))

    def _forget_old(self) -> None:
        gone = [key for key, one in self._versions.items() if one.phase == "gone"]
        for key in gone[:-GONE_KEPT]:
            del self._versions[key]


class LoadQueue:
    """One load at a time on each device; first come, first served among those whose devices are free."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}  # place -> replica

    def try_acquire(self, replica: str, places: Sequence[str]) -> bool:
        """True when the replica now holds all of the places."""
        if any(self._holders.get(place, replica) != replica for place in places):
            return False
        self._holders.update(dict.fromkeys(places, replica))
        return True

    def release(self, replica: str) -> None:
        """Gives its places back; harmless for one that holds none."""
        self._holders = {place: holder for place, holder in self._holders.items() if holder != replica}

    @property
    def holders(self) -> frozenset[str]:
        """Replicas that hold a place."""
        return frozenset(self._holders.values())
