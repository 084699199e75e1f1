"""Fingerprints, launches and preflight of versions, from files, the store and this host's devices."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from controller import telemetry
from controller.background import Background
from controller.errors import CanaryctlError, Conflict, UnknownService, Unreachable
from controller.installed import engine_release
from controller.planning.capacity import Device, gpu_share, need_bytes, require_fit
from controller.planning.fingerprint import (
    Fingerprint,
    fingerprint_checkpoint,
    fingerprint_external,
    known_architectures,
)
from controller.planning.judge_engine import left_by, require_judge_fit
from controller.planning.reservations import Reservation, unreserved
from controller.rollout.judge import needed_engine
from controller.rollout.judge_plan import JudgeEngine
from controller.rollout.serialization import state_from_json
from controller.rollout.state import RolloutState
from controller.runtime.checkpoint_process import parsed_apart
from controller.settings import Settings
from controller.spec.service import stored_version
from controller.spec.version import VersionSpec
from controller.store.digest_cache import cached_digests
from controller.store.past import past_state
from controller.store.row_specs import comparable_fingerprint, fingerprint_of, version_spec
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.store.statements import began
from serving.actor_names import judge_service, judged_service
from serving.credentials import judge_root
from serving.fleet.cluster_memory_ray import cluster_devices
from serving.fleet.types import FleetUnreachable, Launch, VersionStatus

STABLE_WAIT_S = 45.0  # below the deadline of the preflight
FLEET_WAIT_S = 10.0  # an actor may be busy while an engine loads
MEASURE_LIMIT_S = 120.0  # of all nodes; one that hangs is measured anew
HASH_WAIT_S = 600.0  # for another request that hashes the same checkpoint


class Versions:
    """Fingerprints, launches and preflight of the services' versions."""

    def __init__(
        self,
        settings: Settings,
        store: SqlStore,
        observe: Callable[[str], Sequence[VersionStatus] | None] = lambda service: None,
        start: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """observe: the fleet's versions of a service; None: it cannot be read. start: runs work beside the
        ticks; None: in a thread."""
        self._settings = settings
        self._store = store
        self._observe = observe
        self._hashing = KeyedLocks()  # by checkpoint: the second caller finds the cache
        self._release = engine_release()
        self._launches: dict[tuple[str, ...], Launch] = {}
        self._measuring = Background("devices", limit_s=MEASURE_LIMIT_S, start=start)
        self._devices: Sequence[Device] | None = None  # as last measured; None: not yet
        self._devices_fault = ""  # of the last measurement that failed

    def fingerprint(self, spec: VersionSpec) -> Fingerprint:
        """The version's fingerprint, from its files. Raises BadCheckpoint; Unreachable while another call
        hashes the same checkpoint for over `HASH_WAIT_S`."""
        if spec.url is not None:
            key = str(spec.api_key) if spec.api_key is not None else None
            return fingerprint_external(spec.url, spec.model, key)
        path = Path(str(spec.checkpoint))
        is_hashed = self._hashing.held(str(path.resolve()), timeout_s=HASH_WAIT_S)
        with is_hashed, cached_digests(self._settings.digests_path) as digests:
            return fingerprint_checkpoint(
                path,
                engine_arguments=spec.engine_arguments(),
                engine_release=self._release,
                architectures=known_architectures(),
                cache=digests,
                private=self._settings.home,
                apart=parsed_apart,
            )

    def devices(
        self, *, restoring: str | None = None, rollout: RolloutState | None = None
    ) -> Sequence[Device]:
        """The devices of the cluster, with the memory that is free now and reserved for no other version.

        restoring: the service that returns to an earlier version, whose own versions reserve nothing: what
        serves may be what is wrong. rollout: for its canary, so only what began before it is reserved: of two
        rollouts that planned into the same memory at once, the earlier one loads. May wait some seconds for
        a node.
        """
        found = self._devices = devices()
        return unreserved(found, self._reservations(restoring, rollout))

    def measure_devices(self) -> None:
        """Measure the devices of the cluster beside the ticks, for `launch`; returns at once."""
        self._measuring.begin("devices", self._measure)

    def _measure(self) -> None:
        try:
            self._devices = devices()
        except Exception as exc:  # noqa: BLE001 - told by `launch`, and tried again by the next tick
            self._devices_fault = str(exc)

    def _known_devices(self) -> Sequence[Device]:
        """The devices as last measured. Raises Unreachable where they are not yet: the next tick may know."""
        if self._devices is None:
            self.measure_devices()
        if self._devices is None:
            why = self._devices_fault or "they are being measured"
            raise Unreachable(f"the cluster's devices are not known yet ({why}); trying again")
        return self._devices

    def _reservations(self, restoring: str | None, rollout: RolloutState | None) -> tuple[Reservation, ...]:
        """Replicas of stable versions and canaries that are not ready.

        Raises Unreachable while the fleet does not say which are: what is loaded would count twice.
        """
        seen = began(self._store.database, rollout.id) if rollout is not None else None
        found: list[Reservation] = []
        for service in self._store.services():
            if service.name == restoring or service.removing:
                continue
            try:
                wait_s = FLEET_WAIT_S if restoring is None else 0.0
                own = rollout.id if rollout is not None else None
                found += self._unloaded(service, seen, wait_s=wait_s, own=own)
            except CanaryctlError as exc:
                if restoring is None and isinstance(exc, Unreachable):
                    raise
                # Another release wrote it, or an undo cannot wait: what it reserves is not known.
                telemetry.event("not reserved", service=service.name, error=str(exc))
        return tuple(found)

    def _unloaded(
        self, service: ServiceRow, before: int | None, *, wait_s: float, own: str | None
    ) -> Iterator[Reservation]:
        """before: see `statements.began`; None: of every rollout."""
        running = list(self._running_states(service.name))
        wanted = [service.stable, *(one.canary.id for one in running if self._will_load(one, before))]
        rows = [self._store.version(service.name, version) for version in dict.fromkeys(wanted)]
        local = [(row, version_spec(row)) for row in rows if row is not None]
        local = [(row, spec) for row, spec in local if not spec.is_external]
        ready = self._ready(service.name, wait_s) if local else {}
        for row, spec in local:
            if (missing := spec.replicas - ready.get(row.id, 0)) > 0:
                yield Reservation(service.name, row.id, spec, fingerprint_of(row), missing)
        for state in running:
            yield from self._unloaded_judge(service.name, state, before, wait_s, own)

    def _unloaded_judge(
        self, service: str, state: RolloutState, before: int | None, wait_s: float, own: str | None
    ) -> Iterator[Reservation]:
        """The engine of its judge, which is not ready. own: the rollout whose canary is in question."""
        engine = needed_engine(replace(state, launched=True))
        if engine is None or state.id == own or not self._comes_first(state, before):
            return
        spec = judge_spec(engine)
        if self._ready(judge_service(service), wait_s).get(engine.version, 0) < 1:
            yield Reservation(service, f"its judge {engine.version}", spec, engine.need_bytes, 1)

    def _will_load(self, other: RolloutState, before: int | None) -> bool:
        """Whether the canary of another rollout has a claim to memory before that of the one in question."""
        return not (other.is_final or other.is_canary_leaving) and self._comes_first(other, before)

    def _comes_first(self, other: RolloutState, before: int | None) -> bool:
        """Whether another rollout loads, or began, before the one in question."""
        if before is None or other.launched:
            return True
        first = began(self._store.database, other.id)
        return first is not None and first < before

    def _ready(self, service: str, wait_s: float) -> dict[str, int]:
        """Ready replicas by version. Raises Unreachable when the fleet does not answer within `wait_s`."""
        deadline_at_s = time.monotonic() + wait_s
        while (statuses := self._observe(service)) is None:
            if time.monotonic() >= deadline_at_s:
                raise Unreachable(f"the fleet does not say what {service} has loaded; try again")
            time.sleep(0.25)
        return {one.version: one.ready_replicas for one in statuses}

    def launch(self, service: str, version: str, replicas: int) -> Launch:
        """The fleet's launch of the version. Raises UnknownService when it is not stored, Unreachable while
        the cluster's devices are not known. Never waits: it is made within a tick."""
        if (judged := judged_service(service)) is not None:
            return self._judge_launch(judged, version)
        row = self._row(service, version)
        # A service that was taken down and created again has another secret, a version may have moved.
        secret = self._store.service(service).secret
        key = (service, secret, version, row.spec)
        known = self._launches.get(key)
        if known is None:
            # Kind and size of the devices do not change, so what was measured once is enough.
            spec = version_spec(row)
            host = () if spec.is_external else self._known_devices()
            memory = need_bytes(spec, fingerprint_of(row), host[0]) if host else None
            on_gpu = bool(host) and host[0].kind == "gpu"
            known = launch_of(
                service, version, secret, spec, replicas=replicas, on_gpu=on_gpu, memory_bytes=memory or None
            )
            self._launches[key] = known
        return replace(known, replicas=replicas)

    def _judge_launch(self, service: str, version: str) -> Launch:
        """The launch of the engine that judges in a running rollout of the service. Raises as `launch`."""
        plans = (state.plan.judge for state in self._running_states(service))
        plan = next((one for one in plans if one and one.engine and one.engine.version == version), None)
        if plan is None or plan.engine is None:
            raise UnknownService(f"no running rollout of {service} has a judge {version}; it is not loaded")
        launch = launch_of(
            *(judge_service(service), version, judge_root(self._store.service(service).secret)),
            judge_spec(plan.engine),
            replicas=1,
            on_gpu=self._known_devices()[0].kind == "gpu",
            memory_bytes=plan.engine.need_bytes or None,
        )
        return replace(launch, endpoint_model=plan.model)

    def _running_states(self, service: str) -> Iterator[RolloutState]:
        for id in self._store.running(service):
            rollout = self._store.rollout(id)
            if rollout is not None and not rollout.is_final:  # of a final one only notices are left
                yield state_from_json(rollout.state)

    def address(self, service: str, version: str) -> Launch:
        """The launch as far as a probe needs it, to reach the version and be let in: without its devices."""
        row, secret = self._row(service, version), self._store.service(service).secret
        return launch_of(
            service, version, secret, version_spec(row), replicas=1, on_gpu=False, memory_bytes=None
        )

    def preflight(self, rollout: RolloutState) -> None:
        """Return if stable is ready, the canary's files are unchanged and it fits into free memory.

        An undo does not wait for stable, which may be what is wrong, and a newer engine release may have
        come since its version served. Raises CanaryctlError with what is wrong.
        """
        if not rollout.plan.undo:
            wait_until_ready(self._observe, rollout.service, rollout.stable.id)
        row = self._row(rollout.service, rollout.canary.id)
        spec = version_spec(row)
        fingerprint = self.fingerprint(spec)
        # Not the row's id: a twin has an id of its own, and stable's fingerprint.
        planned = comparable_fingerprint(row, self.fingerprint)
        if rollout.plan.undo and not spec.is_external:
            planned = planned.on_release(fingerprint.part("engine_release"))
        if fingerprint.digest != planned.digest:
            raise CanaryctlError(f"{spec.model} changed since the plan was made; deploy it again")
        if spec.api_key is not None:
            spec.api_key.read()
        if not spec.is_external:
            restoring = rollout.service if rollout.plan.undo else None
            devices = self.devices(restoring=restoring, rollout=rollout)
            require_fit(spec, fingerprint, devices)
            # In the plan's order, which is that of the loads: the canary, and beside it its judge.
            if (engine := needed_engine(replace(rollout, launched=True))) is not None:
                left = left_by(spec, fingerprint, devices)
                require_judge_fit(judge_spec(engine), engine.need_bytes, left)

    def promoted_at_s(self, service: str, version: str) -> float:
        """When the newest rollout of the version promoted it, seconds since the epoch; 0.0: it did not."""
        row = self._store.latest_attempt(service, version)
        if row is None:
            return 0.0
        if (state := past_state(row)) is not None:
            return state.entered_at_s if state.serving == version else 0.0
        return row.ended_at_s or 0.0  # it serves, and only its newest attempt can have promoted it

    def _row(self, service: str, version: str) -> VersionRow:
        row = self._store.version(service, version)
        if row is None:
            raise UnknownService(f"{service} has no stored version {version}; restore the store")
        return row


class KeyedLocks:
    """One lock for each key that is in use. Safe to use from several threads."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[threading.Lock, int]] = {}  # with the number of its users
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._locks)

    @contextmanager
    def held(self, key: str, *, timeout_s: float) -> Iterator[None]:
        """The key's lock. Raises Unreachable when it is not free within `timeout_s`."""
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=timeout_s):
                raise Unreachable(
                    f"{key} has been read by another request for over {timeout_s:g} s; is its disk slow? "
                    "try again later"
                )
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = (lock, users - 1)


def judge_spec(engine: JudgeEngine) -> VersionSpec:
    """The version of a rollout's judge, as it was planned."""
    return stored_version(json.loads(engine.spec))


def devices() -> tuple[Device, ...]:
    """The devices of the cluster, with the memory that is free now. Raises Unreachable."""
    try:
        hosts = cluster_devices()
    except FleetUnreachable as exc:
        raise Unreachable(str(exc)) from exc
    return tuple(
        Device(one.kind, one.name, one.total_bytes, one.free_bytes, host.node, host.free_gpus)
        for host in hosts
        for one in host.devices
    )


def wait_until_ready(
    observe: Callable[[str], Sequence[VersionStatus] | None], service: str, stable: str
) -> None:
    """Return once stable is ready. Raises Conflict when it is not within `STABLE_WAIT_S`, Unreachable when
    the fleet does not say."""
    deadline_at_s = time.monotonic() + STABLE_WAIT_S
    while True:
        versions = observe(service)
        status = next((one for one in versions or () if one.version == stable), None)
        if status is not None and status.phase == "ready":
            return
        if time.monotonic() >= deadline_at_s:
            if versions is None:
                raise Unreachable(f"the fleet does not say whether stable {stable} is ready; try again")
            phase = status.phase if status is not None else "missing"
            raise Conflict(f"stable {stable} is {phase}, a rollback could fail; deploy when it is ready")
        time.sleep(0.25)


def launch_of(
    service: str,
    version: str,
    secret: str,
    spec: VersionSpec,
    *,
    replicas: int,
    on_gpu: bool,
    memory_bytes: int | None,
) -> Launch:
    """The fleet's launch of this version, from its spec."""
    if spec.url is not None:
        url = spec.url.rstrip("/")
        return Launch(service, version, secret, url=url, endpoint_model=spec.model, api_key=spec.api_key)
    arguments = spec.engine_arguments()
    # The launch has a field for tensor parallelism; without a dtype the engine chooses as for `auto`.
    arguments.pop("tensor_parallel_size", None)
    if arguments.get("dtype") == "auto":
        del arguments["dtype"]
    return Launch(
        service,
        version,
        secret,
        model_dir=spec.model,
        engine_args=arguments,
        replicas=replicas,
        gpus_per_replica=gpu_share(spec) * spec.tensor_parallel_size if on_gpu else 0.0,
        tensor_parallel=spec.tensor_parallel_size,
        memory_bytes=memory_bytes,
    )
