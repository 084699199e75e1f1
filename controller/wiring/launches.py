"""What versions are and what starting them takes, from their files, the store and this host's devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from controller.errors import CanaryctlError, UnknownService, Unreachable
from controller.installed import engine_release
from controller.planning.capacity import Device, need_bytes, require_fit
from controller.planning.fingerprint import (
    Fingerprint,
    fingerprint_checkpoint,
    fingerprint_external,
    known_architectures,
)
from controller.rollout.state import RolloutState
from controller.settings import Settings
from controller.spec.service import VersionSpec
from controller.store.digest_cache import read_hashes, write_hashes
from controller.store.row_specs import fingerprint_of, version_spec
from controller.store.sql import SqlStore
from serving.fleet import device_memory
from serving.fleet.types import Launch, VersionStatus

STABLE_WAIT_S = 45.0  # below the preflight's own deadline


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
        # A twin has an id of its own, and stable's fingerprint.
        if found.version_id != fingerprint_of(row).version_id:
            raise CanaryctlError(f"{spec.model} changed since the plan was made; deploy it again")
        if not spec.is_external:
            require_fit(spec, found, devices())


def devices() -> tuple[Device, ...]:
    """The devices of this host, with what is free now."""
    return tuple(
        Device(one.kind, one.name, one.total_bytes, one.free_bytes) for one in device_memory.devices()
    )


def wait_until_ready(
    observe: Callable[[str], Sequence[VersionStatus] | None], service: str, stable: str
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
        url = spec.url.rstrip("/").removesuffix("/v1").rstrip("/")
        return Launch(service, version, secret, url=url)
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
        gpus_per_replica=_gpus(spec) if on_gpu else 0.0,
        tensor_parallel=spec.tensor_parallel_size,
        memory_bytes=memory_bytes,
    )


def _gpus(spec: VersionSpec) -> float:
    """GPUs per replica: as specified, else half a device if the engine uses at most half of its memory."""
    if spec.gpus is not None:
        return float(spec.gpus)
    shares = spec.gpu_memory_utilization is not None and spec.gpu_memory_utilization <= 0.5
    return float(spec.tensor_parallel_size) * (0.5 if shares else 1.0)
