"""Controller on fakes: real store, ticks and API; in-memory engines, route table and evidence."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from fastapi import FastAPI

from controller.api.app import make_app
from controller.api.commands import Commands
from controller.api.keys import KeyProblem, key_problem
from controller.api.slow_calls import SlowCalls
from controller.auth import Identity, Role, admin_token, token_digest
from controller.errors import Unreachable
from controller.planning.baseline import MeasuredBaseline
from controller.planning.capacity import Device
from controller.planning.fingerprint import (
    Fingerprint,
    fingerprint_checkpoint,
    fingerprint_external,
    known_architectures,
)
from controller.planning.forecast import forecast
from controller.rollout.plan import Plan
from controller.rollout.state import RolloutState
from controller.runtime.newest_database import NewestDatabase, is_newest
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.runner import Runner
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import LastTick, ServiceWorkers
from controller.settings import Config, Settings, save_config
from controller.spec.policy import PolicySpec
from controller.spec.version import VersionSpec
from controller.store.row_specs import replicas_of
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from controller.wiring.own_process import record_own
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast
from serving.clock import boot_s
from serving.credentials import KeyReference
from serving.loopback import free_ports
from tests.database_rig import sqlite_url
from tests.fakes.plane import (
    FakeEvidence,
    FakeFleet,
    FakeIngress,
    FakeMarks,
    FakeNotifier,
    FakeProbes,
    FakeTraffic,
)

GIB = 1 << 30


class LiveClock:
    """Wall clock with the interface of FakeClock."""

    @property
    def at_s(self) -> float:
        return time.time()

    def now_s(self) -> float:
        return time.time()

    def boot_s(self) -> float:
        return boot_s()


class QuickStore(SqlStore):
    """SqlStore whose rollouts wait 0.1 s, not 10 s, for replicas that have just become ready to stay so."""

    def create_rollout(self, state: RolloutState, **more: Any) -> int:
        return super().create_rollout(replace(state, plan=replace(state.plan, steady_s=0.1)), **more)


class NoTicks:
    """Ticks that never come."""

    def wake(self, service: str) -> None:
        """Nothing ticks."""

    def last_tick(self, service: str) -> LastTick:
        return LastTick()


@dataclass(slots=True)
class FakeEnvironment:
    """Host with `free_bytes` of memory. Fingerprints are real."""

    free_bytes: int = 64 * GIB
    scores: list[tuple[str, str, float, float]] = field(default_factory=list)
    requests: dict[str, str] = field(default_factory=dict)  # recorded requests: id -> service
    silent_logs: set[str] = field(default_factory=set)  # services whose log does not answer
    scored: set[tuple[str, str]] = field(default_factory=set)  # id and metric that have a score
    forgotten_s: dict[str, float] = field(default_factory=dict)  # by service
    written: list[tuple[str, str]] = field(default_factory=list)  # (service, id) of each score
    accepts_scores: bool = True
    is_measuring: bool = True
    is_leading: bool = True
    knows_all: Callable[[str], bool | None] = lambda service: None  # None: its table does not answer
    tables: dict[str, str] = field(default_factory=dict)  # the version that a route table serves, by service
    rate: float | None = None
    traffic: MeasuredBaseline | None = None  # what stable is like; None: not measured
    forecasts: int = 0  # simulations that were asked for
    simulate: Callable[..., tuple[StageForecast, ...]] = forecast

    def fingerprint(self, version: VersionSpec) -> Fingerprint:
        if version.url is not None:
            key = str(version.api_key) if version.api_key is not None else None
            return fingerprint_external(version.url, version.model, key)
        return fingerprint_checkpoint(
            Path(str(version.model)),
            engine_arguments=version.engine_arguments(),
            architectures=known_architectures(),
        )

    def key_problem(self, reference: KeyReference) -> KeyProblem | None:
        return key_problem(reference)

    def is_newest(self, service: str) -> bool | None:
        return self.knows_all(service)

    def serves(self, service: str) -> str | None:
        return self.tables.get(service)

    def devices(self, *, restoring: str | None = None) -> Sequence[Device]:
        return (Device("host", "host", 64 * GIB, self.free_bytes),)

    def kv_bytes(self, version: VersionSpec) -> int:
        return 64 << 20

    def require_leading(self) -> None:
        if not self.is_leading:
            raise Unreachable("another controller leads")

    def require_measuring(self, service: str) -> None:
        if not self.is_measuring:
            raise Unreachable(f"this controller does not measure the traffic of {service}")

    def requests_per_s(self, service: str) -> float | None:
        return self.rate

    def measured(self, service: str) -> MeasuredBaseline | None:
        return self.traffic

    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[StageForecast, ...]:
        self.forecasts += 1
        return self.simulate(plan, policy, traffic)

    def append_scores(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool:
        if not self.accepts_scores or service in self.silent_logs:
            return False
        self.scores += scores
        self.written += [(service, score[0]) for score in scores]
        return True

    def has_request(self, service: str, id: str) -> bool | None:
        return self.requests.get(id) == service

    def has_score(self, service: str, id: str, metric: str) -> bool:
        return self.requests.get(id) == service and (id, metric) in self.scored

    def forgotten_after_s(self, service: str) -> float | None:
        return self.forgotten_s.get(service)


class SharedApi:
    """The HTTP application, built once for one controller after the other: it takes 30 ms."""

    _idle: ClassVar[list[SharedApi]] = []

    def __init__(self) -> None:
        self._controller: FakeController | None = None
        parts: list[Any] = [_Part(self, name) for name in ("store", "commands", "runner", "slow_calls")]
        self._app = make_app(
            *parts[:3],
            base_url=lambda name: f"http://test/{name}/v1",
            version="test",
            slow=parts[3],
            find_key=lambda reference: self.controller.environment.key_problem(reference),
        )

    @classmethod
    def idle(cls) -> SharedApi:
        """One whose controller has ended, or a new one."""
        return cls._idle.pop() if cls._idle else cls()

    def release(self) -> None:
        """Leave the application to a later controller."""
        self._idle.append(self)

    @property
    def controller(self) -> FakeController:
        """The controller that answers now."""
        assert self._controller is not None
        return self._controller

    def of(self, controller: FakeController) -> FastAPI:
        """The application, which answers for this controller from now on."""
        self._controller = controller
        return self._app


class _Part:
    """A part, by its name, of the controller that answers now."""

    def __init__(self, api: SharedApi, name: str) -> None:
        self._api, self._name = api, name

    def __getattr__(self, key: str) -> Any:
        return getattr(getattr(self._api.controller, self._name), key)


class FakeController:
    """A controller without Ray. `start` runs the ticks, `serve` also the HTTP server.

    api: the application of the controller before, which has ended; None: an idle one, until `stop`.
    """

    def __init__(self, home: Path, *, store: SqlStore | None = None, api: SharedApi | None = None) -> None:
        clock = LiveClock()
        self.home = home
        self.store = store or QuickStore(sqlite_url(home / "canaryctl.db"))
        self.fleet = FakeFleet(clock, load_s=0.05, unload_s=0.05)  # type: ignore[arg-type]
        self.traffic = FakeTraffic(clock)  # type: ignore[arg-type]
        self.evidence, self.probes, self.notifier = FakeEvidence(), FakeProbes(), FakeNotifier()
        self.ingress, self.environment = FakeIngress(self.traffic), FakeEnvironment()
        ports = Ports(self.store, self.fleet, self.traffic, self.evidence, self.probes, self.notifier, clock)

        marks = FakeMarks(self.traffic)

        def make_workers(service: str) -> ServiceWorkers:
            keeper = Keeper(self.fleet, self.traffic, self.ingress, self.store, clock)
            newest = NewestDatabase(service, self.store.database, marks, marks.names)
            return ServiceWorkers(Reconciler(ports), keeper, lambda now_s: None, newest.require)

        def replicas(row: ServiceRow) -> int:
            return replicas_of(self.store.version(row.name, row.stable))

        self.environment.knows_all = lambda service: is_newest(
            self.store.database, service, marks.observe, marks.names
        )
        self.runner = Runner(self.store, clock, make_workers, replicas, holder="test")
        self.commands = Commands(self.store, self.environment, clock, self.runner)
        self.slow_calls = SlowCalls()
        token = token_digest(admin_token(home))
        self.store.put_token(token, Identity("admin", Role.ADMIN), at_s=0.0)
        self._api = api
        self._borrowed: SharedApi | None = None
        self._server: uvicorn.Server | None = None
        self._listening: list[socket.socket] = []

    @property
    def app(self) -> FastAPI:
        """The HTTP application."""
        if self._api is None:
            self._api = self._borrowed = SharedApi.idle()
        return self._api.of(self)

    def start(self) -> None:
        """Start the ticks."""
        self.runner.start()

    def serve(self) -> Settings:
        """Start ticks and HTTP server; the settings with which a command line finds it."""
        self.start()
        api, cluster = _listen(), _listen()
        self._listening = [api, cluster]
        config = Config(api_port=api.getsockname()[1], ingress_port=free_ports(1)[0])
        settings = save_config(Settings(home=self.home, database_url=str(self.store)), config)
        # The command line takes any port that accepts connections for a Ray cluster.
        handle = {
            "address": f"127.0.0.1:{cluster.getsockname()[1]}",
            "http_port": config.ingress_port,
            "temp_dir": str(self.home / "ray"),
            "processes": [],
        }
        settings.cluster_path.write_text(json.dumps(handle))
        record_own(settings)
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, log_config=None, access_log=False, lifespan="off")
        )
        threading.Thread(target=self._server.run, kwargs={"sockets": [api]}, daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)
        return settings

    def stop(self) -> None:
        """Stop ticks and server."""
        if self._server is not None:
            self._server.should_exit = True
        self.runner.stop()
        for listener in self._listening:
            listener.close()
        self.store.close()
        if self._borrowed is not None:
            self._borrowed.release()
            self._api = self._borrowed = None

    def picture(self) -> tuple[object, ...]:
        """All state that a refused command must leave unchanged, once what was asked before it is done."""
        rows = self.store.services()
        ends_at_s = time.monotonic() + 60
        while self.runner.is_leading and not all(map(self._is_served, rows)) and time.monotonic() < ends_at_s:
            time.sleep(0.01)
        rollouts = [(row.id, row.version) for service in rows for row in self.store.rollouts(service.name)]
        tables = {
            name: (table.stable, table.canary, table.weight_bp) for name, table in self.traffic.tables.items()
        }
        return rows, rollouts, tables, sorted(self.fleet.engines)

    def _is_served(self, row: ServiceRow) -> bool:
        table = self.traffic.tables.get(row.name)
        return table is not None and table.stable == row.stable


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))
