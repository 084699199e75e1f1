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
from controller.spec.service import VersionSpec
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
    free = {device: device.free_bytes for device in devices}
    needs = {device: need_bytes(version, fingerprint, device) for device in devices}
    need, best = max(needs.values()), max(free.values())
    if text := _impossible(version, fingerprint, devices):
        return Fit(False, need, best, text)
    on_gpu = devices[0].kind == "gpu"
    width, share = (version.tensor_parallel_size, gpu_share(version)) if on_gpu else (1, 0.0)
    free_gpus = {device.node: device.free_gpus for device in devices if device.free_gpus is not None}
    for placed in range(count):
        roomy = sorted((one for one in free if free[one] >= needs[one]), key=lambda one: free[one])
        if len(roomy) < width:
            return Fit(False, need, best, _refusal(version, need, devices, placed, count, free))
        chosen = _on_unreserved(roomy, width, share, free_gpus)
        if chosen is None:
            return Fit(False, need, best, _reserved_text(share * width, free_gpus, placed, count))
        for one in chosen:
            free[one] -= needs[one]
    return Fit(True, need, best, f"{count} x {gib(need)} fit into {gib(best)} free")


def gpu_share(version: VersionSpec) -> float:
    """GPUs that Ray reserves for each worker: as specified, else a half for an engine of at most half."""
    workers = version.tensor_parallel_size
    if version.gpus is not None:
        return float(version.gpus) / workers
    is_half = version.gpu_memory_utilization is not None and version.gpu_memory_utilization <= 0.5
    return 0.5 if is_half else 1.0


def _on_unreserved(
    roomy: Sequence[Device], width: int, share: float, free_gpus: dict[str, float]
) -> tuple[Device, ...] | None:
    """`width` of the devices whose hosts have unreserved GPUs, which are then reserved; None: too few."""
    chosen: list[Device] = []
    left = dict(free_gpus)
    for device in roomy:
        unreserved = left.get(device.node)
        if unreserved is not None:
            if unreserved < share - 1e-9:
                continue
            left[device.node] = unreserved - share
        chosen.append(device)
        if len(chosen) == width:
            free_gpus.update(left)
            return tuple(chosen)
    return None


def _reserved_text(wanted: float, free_gpus: dict[str, float], placed: int, count: int) -> str:
    which = "a second engine" if count == 1 else f"replica {placed + 1} of {count}"
    left = sum(free_gpus.values())
    return (
        f"{which} needs {wanted:g} GPUs, {left:g} are not reserved; give both versions gpus below 1 so that "
        "they share, lower replicas, or add a GPU"
    )


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
    free: dict[Device, int],
) -> str:
    roomiest = max(devices, key=lambda device: free[device])
    free_bytes, total_bytes = free[roomiest], roomiest.total_bytes
    which = "a second engine" if count == 1 else f"replica {placed + 1} of {count}"
    text = f"{which} needs {gib(need)} on {roomiest.name}, {gib(free_bytes)} are free of {gib(total_bytes)}; "
    missing = gib(need - free_bytes)
    if roomiest.kind == "gpu":
        width = version.tensor_parallel_size
        if width > len(devices):
            return f"{text}tensor_parallel_size {width} needs {width} GPUs, found {len(devices)}; lower it"
        ratio = int(free_bytes / total_bytes * 100) / 100
        lower = f"gpu_memory_utilization to {ratio:g}" if ratio > 0 else "stable's gpu_memory_utilization"
        return f"{text}lower {lower}, or free {missing}"
    if version.kv_cache_memory_bytes is None:
        return f"{text}set kv_cache_memory_bytes below {gib(HOST_KV_BYTES)}, or free {missing}"
    return f"{text}lower kv_cache_memory_bytes or replicas, or free {missing}"
