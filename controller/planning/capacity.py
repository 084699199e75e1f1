"""Memory check before a load: whether a second engine fits beside the first, in bytes per device.

On a GPU, vLLM takes `gpu_memory_utilization` of the whole device and refuses to start when less is free, or
when its part of the tensors leaves no room for a KV cache. On a host without a GPU each worker takes its part
of the tensors, a KV cache and about 1.1 GiB of code and buffers (measured), all of it from the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from controller.errors import NoRoom
from controller.planning.fingerprint import Fingerprint
from controller.quantities import GIB, gib
from controller.spec.version import VersionSpec
from serving.files.engine_arguments import gpu_utilization

DEFAULT_UTILIZATION = 0.92  # vLLM's default
TWO_ENGINES_UTILIZATION = 0.45  # of a device that holds stable and canary at once
HOST_ENGINE_BYTES = 1_200_000_000  # code, buffers, one worker
MIN_KV_BYTES = 64 << 20
HOST_KV_BYTES = 4 * GIB  # vLLM's default on a CPU
WEIGHT_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
# Of weights that the engine itself quantises while it loads them; other methods: a byte at most.
QUANTIZED_BYTES = {"bitsandbytes": 0.5, "mxfp4": 0.5}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the host without one, with its memory as measured."""

    kind: Literal["gpu", "host"]
    name: str
    total_bytes: int
    free_bytes: int
    node: str = ""  # address of its host in Ray; '': this host
    free_gpus: float | None = None  # GPUs of its host that Ray has not reserved; None: not known
    reserved_bytes: int = 0  # taken off `free_bytes` for versions that have not loaded yet
    reserved_for: tuple[str, ...] = ()  # these versions, as `SERVICE VERSION`


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a version fits. `text`: one line, with the remedy where it does not."""

    fits: bool
    need_bytes: int  # of a replica, on each of its devices
    free_bytes: int
    text: str


def need_bytes(version: VersionSpec, fingerprint: Fingerprint, device: Device) -> int:
    """Memory of one replica on one device, in bytes; 0 for an external endpoint."""
    if version.is_external:
        return 0
    workers = version.tensor_parallel_size
    if device.kind == "gpu":
        return max(_gpu_weights(version, fingerprint), _budget(version, device))
    kv_bytes = version.kv_cache_memory_bytes or HOST_KV_BYTES
    return _weights(version, fingerprint, device.kind) + workers * (kv_bytes + HOST_ENGINE_BYTES)


def fit(
    version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device], *, replicas: int | None = None
) -> Fit:
    """Whether `replicas` (default: all of the version's) fit into what is free now: memory and GPUs."""
    count = version.replicas if replicas is None else replicas
    if version.is_external:
        return Fit(True, 0, 0, "an external endpoint needs no memory here")
    if not devices:
        return Fit(False, 0, 0, "no device was found; start Ray on a machine with free memory")
    needs = [need_bytes(version, fingerprint, device) for device in devices]
    need, best = max(needs), max(device.free_bytes for device in devices)
    if text := _impossible(version, fingerprint, devices):
        return Fit(False, need, best, text)
    room = Room(devices)
    placed = room.take(version, fingerprint, count)
    if placed.replicas == count:
        return Fit(True, need, best, f"{count} x {gib(need)} fit into {gib(best)} free")
    if placed.lacks == "gpus":
        wanted = gpu_share(version) * version.tensor_parallel_size
        return Fit(False, need, best, _gpus_text(wanted, room.free_gpus, devices, placed.replicas, count))
    return Fit(False, need, best, _refusal(version, need, devices, placed.replicas, count, room.free_bytes))


@dataclass(frozen=True, slots=True)
class Placed:
    """Replicas that were placed, the devices that they take (indices), and what the next one lacks."""

    replicas: int
    places: frozenset[int]
    lacks: Literal["memory", "gpus", ""]


class Room:
    """Memory and unreserved GPUs of the devices, which replicas take one after the other."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = tuple(devices)
        self.free_bytes = [device.free_bytes for device in devices]
        self.free_gpus = {device.node: device.free_gpus for device in devices if device.free_gpus is not None}

    def take(self, version: VersionSpec, size: Fingerprint | int, replicas: int) -> Placed:
        """Place up to `replicas` of the version, each on the fullest devices that it fits on.

        size: int: bytes on each device.
        """
        needs = [
            need_bytes(version, size, device) if isinstance(size, Fingerprint) else size
            for device in self._devices
        ]
        on_gpu = self._devices[0].kind == "gpu"
        width, share = (version.tensor_parallel_size, gpu_share(version)) if on_gpu else (1, 0.0)
        places: set[int] = set()
        for placed in range(replicas):
            roomy = [place for place, need in enumerate(needs) if self.free_bytes[place] >= need]
            if len(roomy) < width:
                return Placed(placed, frozenset(places), "memory")
            chosen = self._on_unreserved(sorted(roomy, key=self.free_bytes.__getitem__), width, share)
            if chosen is None:
                return Placed(placed, frozenset(places), "gpus")
            for place in chosen:
                self.free_bytes[place] -= needs[place]
            places.update(chosen)
        return Placed(replicas, frozenset(places), "")

    def _on_unreserved(self, roomy: Sequence[int], width: int, share: float) -> tuple[int, ...] | None:
        """`width` of the devices whose hosts have unreserved GPUs, which are then reserved; None: too few."""
        chosen: list[int] = []
        left = dict(self.free_gpus)
        for place in roomy:
            node = self._devices[place].node
            if node in left:
                if left[node] < share - 1e-9:
                    continue
                left[node] -= share
            chosen.append(place)
            if len(chosen) == width:
                self.free_gpus = left
                return tuple(chosen)
        return None


def gpu_share(version: VersionSpec) -> float:
    """GPUs that Ray reserves for each worker: as specified, else a half for an engine of at most half."""
    workers = version.tensor_parallel_size
    if version.gpus is not None:
        return float(version.gpus) / workers
    is_half = version.gpu_memory_utilization is not None and version.gpu_memory_utilization <= 0.5
    return 0.5 if is_half else 1.0


def _gpus_text(
    wanted: float, free_gpus: dict[str, float], devices: Sequence[Device], placed: int, count: int
) -> str:
    which = "a second engine" if count == 1 else f"replica {placed + 1} of {count}"
    return (
        f"{which} needs {wanted:g} GPUs, {sum(free_gpus.values()):g} are not reserved; "
        f"{_reserved_text(devices)}give both versions gpus below 1 so that they share, lower replicas, or "
        "add a GPU"
    )


def _reserved_text(devices: Sequence[Device]) -> str:
    """What is reserved for other versions, with the remedy, ready to be continued; empty: nothing is."""
    reserved = [device for device in devices if device.reserved_for]
    if not reserved:
        return ""
    names = ", ".join(dict.fromkeys(name for device in reserved for name in device.reserved_for))
    taken = gib(sum(device.reserved_bytes for device in reserved))
    return f"{taken} are reserved for {names}, which has not loaded yet: wait until it has, or "


def _impossible(version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device]) -> str:
    """Why no amount of free memory would do; empty: it may fit."""
    if devices[0].kind != "gpu":
        if version.gpus:
            return (
                f"gpus {version.gpus:g}: no host of the cluster has a GPU; leave gpus out, or add such a host"
            )
        return ""
    largest = max(devices, key=lambda device: device.total_bytes)
    budget, weights = _budget(version, largest), _gpu_weights(version, fingerprint)
    if weights + MIN_KV_BYTES <= budget:
        return ""
    utilization = budget / largest.total_bytes
    wanted = math.ceil((weights + MIN_KV_BYTES) / largest.total_bytes * 100) / 100
    raise_it = f"raise gpu_memory_utilization to {wanted:g} or more, or " if wanted <= 1 else ""
    return (
        f"the weights take {gib(weights)} on each GPU, and gpu_memory_utilization {utilization:.2g} of "
        f"{gib(largest.total_bytes)} allows {gib(budget)}; {raise_it}raise tensor_parallel_size above "
        f"{version.tensor_parallel_size}"
    )


def _budget(version: VersionSpec, device: Device) -> int:
    """Memory of a GPU that the engine takes."""
    utilization = version.gpu_memory_utilization
    if utilization is None:
        utilization = gpu_utilization(gpu_share(version), default=DEFAULT_UTILIZATION)
    return int(device.total_bytes * utilization)


def _gpu_weights(version: VersionSpec, fingerprint: Fingerprint) -> int:
    """Bytes of the tensors on each GPU of a replica."""
    share = -(-_weights(version, fingerprint, "gpu") // version.tensor_parallel_size)
    offloaded = version.engine.get("cpu_offload_gb") or 0
    return max(0, share - int(float(offloaded) * GIB))


def require_fit(
    version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device], *, replicas: int | None = None
) -> Fit:
    """The fit. Raises NoRoom with its text when the version does not fit."""
    result = fit(version, fingerprint, devices, replicas=replicas)
    if not result.fits:
        raise NoRoom(result.text)
    return result


def with_headroom(
    version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device], *, kv_bytes: int
) -> VersionSpec:
    """The version sized so that a second engine of its kind fits beside it, where the user gave no size.

    kv_bytes: desired KV cache on a host without a GPU.
    """
    if version.is_external or not devices:
        return version
    if devices[0].kind == "gpu":
        if version.gpu_memory_utilization is not None:
            return version
        return version.model_copy(update={"gpu_memory_utilization": TWO_ENGINES_UTILIZATION})
    if version.kv_cache_memory_bytes is not None:
        return version
    workers = version.tensor_parallel_size
    per_engine = max(device.free_bytes for device in devices) // (2 * version.replicas)
    available = (per_engine - _weights(version, fingerprint, "host")) // workers - HOST_ENGINE_BYTES
    sized = max(MIN_KV_BYTES, min(kv_bytes, available) // MIN_KV_BYTES * MIN_KV_BYTES)
    return version.model_copy(update={"kv_cache_memory_bytes": sized})


def _weights(version: VersionSpec, fingerprint: Fingerprint, kind: Literal["gpu", "host"]) -> int:
    """Bytes of all tensors once loaded: another dtype than the file's, or quantisation, changes it."""
    stored, count = fingerprint.tensor_bytes, fingerprint.parameters
    if fingerprint.part("quantization") != "":
        return stored
    if version.quantization is not None:
        return min(stored, int(count * QUANTIZED_BYTES.get(version.quantization, 1.0)))
    if version.dtype != "auto":
        return int(count * WEIGHT_BYTES[version.dtype])
    if kind == "host":
        return int(count * WEIGHT_BYTES["float32"])  # canaryctl's default on a CPU
    # vLLM's `auto` loads float32 as 16 bits.
    return min(stored, int(count * WEIGHT_BYTES["float16"]))


def _refusal(
    version: VersionSpec,
    need: int,
    devices: Sequence[Device],
    placed: int,
    count: int,
    free: Sequence[int],
) -> str:
    place = max(range(len(devices)), key=free.__getitem__)
    roomiest, free_bytes = devices[place], free[place]
    which = "a second engine" if count == 1 else f"replica {placed + 1} of {count}"
    text = (
        f"{which} needs {gib(need)} on {roomiest.name}, {gib(free_bytes)} are free of "
        f"{gib(roomiest.total_bytes)}; {_reserved_text(devices)}"
    )
    missing = gib(need - free_bytes)
    if roomiest.kind == "gpu":
        width = version.tensor_parallel_size
        if width > len(devices):
            return f"{text}tensor_parallel_size {width} needs {width} GPUs, found {len(devices)}; lower it"
        ratio = int(free_bytes / roomiest.total_bytes * 100) / 100
        lower = f"gpu_memory_utilization to {ratio:g}" if ratio > 0 else "stable's gpu_memory_utilization"
        return f"{text}lower {lower}, or free {missing}"
    if version.kv_cache_memory_bytes is None:
        return f"{text}set kv_cache_memory_bytes below {gib(HOST_KV_BYTES)}, or free {missing}"
    return f"{text}lower kv_cache_memory_bytes or replicas, or free {missing}"
