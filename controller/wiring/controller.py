"""The controller process: builds and connects its parts, serves the API, stops."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from controller import telemetry
from controller.ab.service import AbTests
from controller.api.ab import add_ab_routes
from controller.api.app import make_app
from controller.api.bearer_auth import TokenLookups, requires
from controller.api.commands import Commands
from controller.api.event_stream import Streams
from controller.api.slow_calls import SlowCalls
from controller.auth import Role
from controller.errors import BusyPort, LostDatabase, Unreachable
from controller.evidence.feed import EvidenceFeeds
from controller.evidence.reader import RecordsReader
from controller.evidence.records import gate_config
from controller.evidence.score_join import IdBudget
from controller.evidence.traffic_meter import TrafficMeter
from controller.installed import own_version
from controller.judging.examiner import Examiner
from controller.judging.served import ServedJudges
from controller.rollout.state import RolloutState
from controller.runtime.data_plane_ray import (
    FleetAdapter,
    IngressAdapter,
    RecordsAdapter,
    TrafficAdapter,
    probe_target,
    translated,
)
from controller.runtime.newest_database import NewestDatabase, is_newest
from controller.runtime.notifier_log import LogNotifier
from controller.runtime.outage_watch import OutageWatch
from controller.runtime.probes_http import HttpProbes
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.runner import Runner
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import ServiceWorkers
from controller.settings import Settings
from controller.spec.service import ServiceSpec
from controller.store.ab import AbStore
from controller.store.past import past_state
from controller.store.row_specs import replicas_of, service_spec
from controller.store.sql import SqlStore
from controller.wiring import cluster
from controller.wiring.connections import Connections, bounded_protocol, max_connections
from controller.wiring.direct_orders import carry_out_orders
from controller.wiring.elsewhere import no_service
from controller.wiring.environment import HostEnvironment
from controller.wiring.evidence_retention import EvidenceRetention
from controller.wiring.launches import Versions
from controller.wiring.lease_holder import lease_holder, release_orphaned_lease
from controller.wiring.now_served import BRIEF_S, TIMEOUT_S, listed, serving_now
from controller.wiring.own_process import forget_own, record_own
from controller.wiring.state_folder import AdminToken, remember_database
from serving import loopback
from serving.access import ClientRules
from serving.clock import boot_s
from serving.fleet.judge_engine import JudgeEngineStatus, judge_engine


class SystemClock:
    """Wall time, and boot time."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def boot_s(self) -> float:
        """Seconds of CLOCK_BOOTTIME, which cannot be set."""
        return boot_s()


@dataclass(frozen=True, slots=True)
class Controller:
    """The parts of a controller that are started and stopped."""

    store: SqlStore
    runner: Runner
    app: FastAPI


def build(settings: Settings) -> Controller:
    """A connected controller that is not started. Raises Unreachable, BadInput.

    It creates no database: where one is missing, what this cluster serves may be in the one that was lost.
    `canaryctl up` creates it with a new cluster.
    """
    try:
        store = SqlStore(settings.database_url, may_create=False)
    except LostDatabase as exc:
        if settings.cluster_path.exists():
            raise
        raise Unreachable(no_service(settings)) from exc  # nothing was begun here, so nothing is lost
    cluster.connect(settings)
    # After connect: Ray reads the environment, and with it the cluster's token, when it is imported.
    from serving.fleet.fleet_ray import RayFleet
    from serving.table.open_tables_ray import OpenTables
    from serving.table.traffic_ray import RayTraffic

    clock, traffic, fleet, tables = SystemClock(), RayTraffic(), RayFleet(), OpenTables()
    translated(lambda: fleet.open(http_port=settings.config.ingress_port))
    versions, log = Versions(settings, store, fleet.observe), RecordsAdapter(traffic)
    versions.measure_devices()
    environment = HostEnvironment(
        versions, log, has_variable=lambda name: cluster.has_variable(settings, name)
    )
    notifier, budget, examiner = LogNotifier(), IdBudget(), Examiner()

    def with_table(timeout_s: float = TIMEOUT_S) -> Sequence[str]:
        return tables.services(timeout_s)

    def knows_all(service: str) -> bool | None:
        # Briefly, as the table itself is asked: a rollback waits for this.
        names = partial(listed, partial(with_table, BRIEF_S))
        return is_newest(store.database, service, traffic.observe, names)

    def engine_of(service: str, version: str) -> JudgeEngineStatus:
        secret = store.service(service).secret
        return translated(lambda: judge_engine(fleet, service, version, secret))

    def make_workers(service: str) -> ServiceWorkers:
        # Anew with every lease: what was measured under an earlier one may be hours old.
        meter = TrafficMeter(lambda stable: versions.promoted_at_s(service, stable))
        environment.meters[service] = meter
        environment.measuring.discard(service)
        engines, table = FleetAdapter(fleet, versions.launch), TrafficAdapter(traffic, engine_of)
        reader = environment.readers[service] = RecordsReader(service, log, budget, elapsed_s=time.monotonic)
        feeds = EvidenceFeeds(reader, store.evidence, lambda rollout: gate_config(store.request(rollout.id)))
        probes = HttpProbes(
            target=lambda name, version: probe_target(fleet, traffic, versions.address(name, version)),
            preflight=versions.preflight,
            rate_per_s=environment.requests_per_s,
        )
        ingress = IngressAdapter(
            traffic,
            lambda name: service_spec(store.service(name)).routers,
            lambda name: _client_rules(service_spec(store.service(name))),
            fleet.stop_router,
            time.monotonic,
        )
        judges = ServedJudges(examiner, partial(engine_of, service))
        ports = Ports(store, engines, table, feeds, probes, notifier, clock, judges)

        def measure(now_s: float) -> None:
            meter.set_stable(store.service(service).stable)
            reader.subscribe("meter", meter)  # not before its first `set_stable`, which starts it anew
            feeds.poll_idle(now_s)
            environment.measuring.add(service)
            tests.tick(service, reader, now_s)

        newest = NewestDatabase(service, store.database, traffic, partial(listed, with_table))
        keeper = Keeper(engines, table, ingress, store, clock)
        outages = OutageWatch(service, meter, notifier, clock.boot_s)
        return ServiceWorkers(Reconciler(ports), keeper, measure, newest.require, outages)

    def rollout_of(rollout: str) -> RolloutState | None:
        row = store.rollout(rollout)
        return past_state(row) if row is not None else None

    shorten_evidence = EvidenceRetention(store.database)

    def before_services() -> None:
        carry_out_orders(settings, store, knows_all)
        shorten_evidence(clock.boot_s())

    runner = Runner(
        store,
        clock,
        make_workers,
        lambda row: replicas_of(store.version(row.name, row.stable)),
        holder=lease_holder(),
        on_removed=environment.forget,
        before_services=before_services,
    )
    environment.serving = lambda name: serving_now(name, traffic.observe, fleet.observe, with_table)
    environment.knows_all = knows_all
    environment.is_reading = lambda: runner.is_leading
    commands = Commands(store, environment, clock, runner)
    tests = AbTests(AbStore(store.database), commands, clock, rollout_of=rollout_of)
    admin = AdminToken(settings.home, store, clock)
    admin.store()
    remember_database(settings)
    slow, lookups = SlowCalls(), TokenLookups(admin, held=admin.held)
    viewer, operator = requires(lookups, Role.VIEWER), requires(lookups, Role.OPERATOR)
    app = make_app(
        store,
        commands,
        runner,
        base_url=settings.base_url,
        version=own_version(),
        lookups=lookups,
        slow=slow,
        streams=Streams(max_connections() // 2),
        find_key=environment.key_problem,
    )
    add_ab_routes(app, tests, viewer=viewer, operator=operator, slow=slow)
    return Controller(store, runner, app)


def run_controller(settings: Settings) -> None:
    """Run a controller until SIGTERM or SIGINT. Raises BusyPort, Unreachable."""
    telemetry.configure_logging(sys.stderr)
    if not loopback.is_free(settings.config.api_port):
        raise BusyPort(
            f"port {settings.config.api_port} on {settings.host} is taken; is a controller running?"
        )
    controller = build(settings)
    config = uvicorn.Config(
        controller.app,
        host=settings.host,
        port=settings.config.api_port,
        http=bounded_protocol(Connections()),
        ws="none",  # its protocol would take the connection out of these bounds
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    _stop_on_signals(server)
    release_orphaned_lease(controller.store)
    record_own(settings)
    controller.runner.start()
    telemetry.event("controller started", pid=os.getpid(), api=settings.api_url)
    try:
        server.run()
    finally:
        controller.runner.stop()
        controller.store.close()
        forget_own(settings)
        telemetry.event("controller stopped", pid=os.getpid())


def _stop_on_signals(server: uvicorn.Server) -> None:
    """Have SIGTERM and SIGINT stop the server, from before it starts until this process ends.

    uvicorn raises the signal once more when it has stopped, under the handler from before it started: with
    the default one, the process would end there with the lease held and a tick half done.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _client_rules(spec: ServiceSpec) -> ClientRules:
    """What routers must know of a service's clients; the cap of the service shared out among them."""
    clients = spec.clients
    cap = None if clients.burst_cap is None else clients.burst_cap / spec.routers
    return ClientRules(clients.access(), clients.cookie, cap, clients.late_commit)
