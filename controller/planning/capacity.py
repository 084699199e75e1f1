"""Memory check before a load: whether a second engine fits beside the first, in bytes per device.

On a GPU, vLLM takes `gpu_memory_utilization` of the whole device and refuses to start when less is free. On a
host without a GPU an engine takes its tensors, its KV cache and about 1.1 GiB of code and buffers (measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from controller.errors import NoRoom
from controller.planning.fingerprint import Fingerprint
from controller.quantities import GIB, gib
from controller.spec.service import VersionSpec

DEFAULT_UTILIZATION = 0.9  # vLLM's default
TWO_ENGINES_UTILIZATION = 0.45  # of a device that holds stable and canary at once
HOST_ENGINE_BYTES = 1_200_000_000  # code, buffers, one worker
MIN_KV_BYTES = 64 << 20
HOST_KV_BYTES = 4 * GIB  # vLLM's default on a CPU
WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the host without one, with its memory as measured."""

    kind: Literal["gpu", "host"]
    name: str
    total_bytes: int
    free_bytes: int


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
    share = -(-_weights(version, fingerprint) // version.tensor_parallel_size)
    if device.kind == "gpu":
        utilization = version.gpu_memory_utilization or DEFAULT_UTILIZATION
        return max(share, int(device.total_bytes * utilization))
    kv_bytes = version.kv_cache_memory_bytes or HOST_KV_BYTES
    return share + kv_bytes + HOST_ENGINE_BYTES


def fit(
    version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device], *, replicas: int | None = None
) -> Fit:
    """Whether `replicas` (default: all of the version's) fit into the memory that is free now."""
    count = version.replicas if replicas is None else replicas
    if version.is_external:
        return Fit(True, 0, 0, "an external endpoint needs no memory here")
    if not devices:
        return Fit(False, 0, 0, "no device was found; start Ray on a machine with free memory")
    free = {device.name: device.free_bytes for device in devices}
    needs = {device.name: need_bytes(version, fingerprint, device) for device in devices}
    need, best = max(needs.values()), max(free.values())
    for placed in range(count):
        width = version.tensor_parallel_size if devices[0].kind == "gpu" else 1
        roomy = sorted((name for name in free if free[name] >= needs[name]), key=lambda name: free[name])
        if len(roomy) < width:
            return Fit(False, need, best, _refusal(version, need, devices, placed, count, free))
        for name in roomy[:width]:
            free[name] -= needs[name]
    return Fit(True, need, best, f"{count} x {gib(need)} fit into {gib(best)} free")


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
    per_engine = max(device.free_bytes for device in devices) // (2 * version.replicas)
    available = per_engine - fingerprint.tensor_bytes - HOST_ENGINE_BYTES
    sized = max(MIN_KV_BYTES, min(kv_bytes, available) // MIN_KV_BYTES * MIN_KV_BYTES)
    return version.model_copy(update={"kv_cache_memory_bytes": sized})


def _weights(version: VersionSpec, fingerprint: Fingerprint) -> int:
    """Bytes of the tensors once loaded: a dtype other than the file's changes their size."""
    size = WEIGHT_BYTES.get(version.dtype)
    quantized = version.quantization is not None or fingerprint.part("quantization") != ""
    return fingerprint.tensor_bytes if size is None or quantized else fingerprint.parameters * size


def _refusal(
    version: VersionSpec, need: int, devices: Sequence[Device], placed: int, count: int, free: dict[str, int]
) -> str:
    roomiest = max(devices, key=lambda device: free[device.name])
    free_bytes, total_bytes = free[roomiest.name], roomiest.total_bytes
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
