"""A whole controller: its parts made and connected, begun, served and ended."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import Literal

import psutil
import uvicorn

from controller import telemetry
from controller.ab.service import AbTests
from controller.api.ab import add_ab_routes
from controller.api.app import make_app, requires
from controller.api.commands import Commands
from controller.auth import Identity, Role, admin_token, token_digest
from controller.errors import BusyPort
from controller.evidence.feed import EvidenceFeeds
from controller.evidence.reader import RecordsReader
from controller.evidence.records import gate_config
from controller.evidence.traffic_meter import TrafficMeter
from controller.installed import own_version
from controller.rollout.serialization import state_from_json
from controller.rollout.state import RolloutState
from controller.runtime.data_plane_ray import (
    PlaneFleet,
    PlaneFront,
    PlaneLog,
    PlaneTraffic,
    probe_target,
    translated,
)
from controller.runtime.probes_http import HttpProbes, Target
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.runner import Runner, ServiceWorkers
from controller.runtime.service_keeper import Keeper
from controller.settings import Settings
from controller.store.ab import AbStore
from controller.store.row_specs import service_spec, version_spec
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from controller.wiring import cluster
from controller.wiring.environment import Environment
from controller.wiring.launches import Versions, wait_until_ready
from serving import loopback


class SystemClock:
    """Wall time."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()


class LogNotifier:
    """Notices as events of the log: a page is an ERROR. Each key once a process."""

    def __init__(self) -> None:
        self._sent: set[str] = set()

    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        """True: it is in the log."""
        if key not in self._sent:
            self._sent.add(key)
            if severity == "page":
                telemetry.alarm("page", key=key, text=text)
            else:
                telemetry.event("notice", key=key, text=text)
        return True


@dataclass(frozen=True, slots=True)
class Built:
    """A controller that has not begun."""

    store: SqlStore
    runner: Runner
    app: object


def build(settings: Settings) -> Built:
    """Everything connected. Raises Unreachable, BadInput."""
    cluster.connect(settings)
    # Only now: Ray reads the environment, and with it the cluster's token, when it is imported.
    from serving.fleet.fleet_ray import RayFleet
    from serving.table.traffic_ray import RayTraffic

    store = SqlStore(settings.database_url)
    clock, traffic, fleet = SystemClock(), RayTraffic(), RayFleet()
    translated(lambda: fleet.open(http_port=settings.config.ingress_port))
    versions, log = Versions(settings, store), PlaneLog(traffic)
    world = Environment(versions, log)
    notifier = LogNotifier()

    def routers(service: str) -> int:
        return service_spec(store.service(service)).routers

    def target(service: str, name: str) -> Target | None:
        return probe_target(fleet, traffic, service, name, secret=store.service(service).secret)

    def preflight(rollout: RolloutState) -> None:
        wait_until_ready(fleet.observe, rollout.service, rollout.stable.id)
        versions.check(rollout)

    def promoted_at_s(service: str, stable: str) -> float:
        row = store.latest_attempt(service, stable)
        state = state_from_json(row.state) if row is not None else None
        return state.entered_at_s if state is not None and state.serving == stable else 0.0

    def make_workers(service: str) -> ServiceWorkers:
        meter = world.meters.setdefault(service, TrafficMeter(lambda stable: promoted_at_s(service, stable)))
        engines, table = PlaneFleet(fleet, versions.launch), PlaneTraffic(traffic)
        reader = RecordsReader(service, log)
        feeds = EvidenceFeeds(reader, store.evidence, lambda rollout: gate_config(store.request(rollout.id)))
        probes = HttpProbes(target=target, preflight=preflight, rate_per_s=world.requests_per_s)
        front = PlaneFront(traffic, routers, fleet.stop_router, time.monotonic)
        ports = Ports(store, engines, table, feeds, probes, notifier, clock)

        def measure(now_s: float) -> None:
            meter.set_stable(store.service(service).stable)
            reader.subscribe("meter", meter)  # not before its first `set_stable`, which starts it anew
            feeds.poll_idle(now_s)
            tests.tick(service, reader, now_s)

        return ServiceWorkers(Reconciler(ports), Keeper(engines, table, front, store, clock), measure)

    def rollout_of(rollout: str) -> RolloutState | None:
        stored = store.load(rollout)
        return stored.state if stored is not None else None

    def replicas(row: ServiceRow) -> int:
        stored = store.version(row.name, row.stable)
        return version_spec(stored).replicas if stored else 1

    runner = Runner(store, clock, make_workers, replicas, holder=_holder())
    commands = Commands(store, world, clock, runner.wake)
    tests = AbTests(AbStore(settings.database_url), commands, clock, rollout_of=rollout_of)
    identity = Identity("admin", Role.ADMIN)
    store.put_token(token_digest(admin_token(settings.home)), identity, at_s=clock.now_s())
    app = make_app(store, commands, runner, base_url=settings.base_url, version=own_version())
    add_ab_routes(app, tests, viewer=requires(store, Role.VIEWER), operator=requires(store, Role.OPERATOR))
    return Built(store, runner, app)


def run_controller(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises BusyPort, Unreachable."""
    telemetry.configure_logging(sys.stderr)
    if not loopback.is_free(settings.config.api_port):
        raise BusyPort(
            f"port {settings.config.api_port} on {settings.host} is taken; is a controller running?"
        )
    built = build(settings)
    _free_dead_lease(built.store)
    built.runner.start()
    telemetry.event("controller started", pid=os.getpid(), api=settings.api_url)
    config = uvicorn.Config(
        built.app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.config.api_port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    try:
        uvicorn.Server(config).run()
    finally:
        built.runner.stop()
        built.store.close()
        telemetry.event("controller stopped", pid=os.getpid())


def _holder() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}"


def _free_dead_lease(store: SqlStore) -> None:
    """A controller of this host that was killed cannot give its lease back: do it for it."""
    lease = store.lease()
    host, _, rest = lease.holder.partition("/")
    pid, _, created = rest.partition("/")
    if host != socket.gethostname() or not pid.isdigit():
        return
    try:
        is_alive = f"{psutil.Process(int(pid)).create_time():.2f}" == created
    except psutil.NoSuchProcess:
        is_alive = False
    if not is_alive:
        store.release_lease(lease.token)
