"""How much memory processes hold and devices have free, in bytes; GPUs where there are any, else the host.

What cannot be read is None, never a guess.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from serving.fleet.types import Process


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One place where engines live. `name`: `gpu0`, `gpu1`, ... or `host`."""

    kind: Literal["gpu", "host"]
    name: str
    total_bytes: int
    free_bytes: int


def devices() -> tuple[DeviceMemory, ...]:
    """The GPUs of this host in their order, or the host itself where none answers."""
    nvml = _nvml()
    if nvml is not None:
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index))
            found.append(DeviceMemory("gpu", f"gpu{index}", int(memory.total), int(memory.free)))
        if found:
            return tuple(found)
    memory = psutil.virtual_memory()
    return (DeviceMemory("host", "host", int(memory.total), int(memory.available)),)


def tree_of(pid: int, node: str) -> tuple[Process, ...]:
    """`pid` of this host, which Ray calls `node`, and every process under it; () when it has ended."""
    try:
        top = psutil.Process(pid)
        return tuple(
            Process(node, one.pid, one.create_time()) for one in [top, *top.children(recursive=True)]
        )
    except psutil.NoSuchProcess:
        return ()


def still_alive(processes: Iterable[Process], node: str) -> tuple[Process, ...]:
    """Those of this host (`node`) that have not ended; a pid that was used again is another process."""
    alive = []
    for process in processes:
        if process.node != node:
            continue
        try:
            seen = psutil.Process(process.pid)
            if seen.create_time() == process.created_s and seen.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.Error:
            continue
    return tuple(alive)


def kill(processes: Iterable[Process]) -> None:
    """Ends processes of this host at once; one that has ended meanwhile is passed over."""
    for process in processes:
        try:
            seen = psutil.Process(process.pid)
            if seen.create_time() == process.created_s:
                seen.kill()
        except psutil.NoSuchProcess:
            continue


def held_bytes(pids: Sequence[int]) -> int | None:
    """GPU memory of these processes where they hold any, else their resident memory; shared pages count once.

    None when nothing could be read.
    """
    on_gpu = _gpu_held_bytes(pids)
    return on_gpu if on_gpu else _resident_bytes(pids)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _resident_bytes(pids: Iterable[int]) -> int | None:
    total = 0
    read = False
    for pid in pids:
        try:
            # Proportional: engines of one host share hundreds of MB of library code.
            total += int(psutil.Process(pid).memory_full_info().pss)
            read = True
        except psutil.Error:
            continue  # ended meanwhile
    return total if read else None


def _gpu_held_bytes(pids: Iterable[int]) -> int | None:
    nvml = _nvml()
    if nvml is None:
        return None
    wanted = set(pids)
    total = 0
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid in wanted and process.usedGpuMemory is not None:
                total += int(process.usedGpuMemory)
    return total


def _nvml() -> Any | None:
    """NVIDIA's management library, None where there is no driver. It comes with the GPU build of vLLM."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
