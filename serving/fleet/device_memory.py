"""Memory of devices and processes in bytes: of the GPUs where there are any, else of the host.

A value that cannot be read is None, never a guess.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from serving.fleet.types import HostProcess
from serving.process_start import is_process, start_ticks


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device. `name`: `gpu0`, `gpu1`, ... or `host`."""

    kind: Literal["gpu", "host"]
    name: str
    total_bytes: int
    free_bytes: int


def devices() -> tuple[DeviceMemory, ...]:
    """The GPUs of this host in their order; the host itself where there are none."""
    nvml = _nvml()
    if nvml is not None and (count := nvml.nvmlDeviceGetCount()):
        gpus = [
            nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)
        ]
        return tuple(
            DeviceMemory("gpu", f"gpu{index}", int(gpu.total), int(gpu.free))
            for index, gpu in enumerate(gpus)
        )
    memory = psutil.virtual_memory()
    return (DeviceMemory("host", "host", int(memory.total), int(memory.available)),)


def process_tree(pid: int, node: str) -> tuple[HostProcess, ...]:
    """Process `pid` of this host, whose address in Ray is `node`, and its descendants; (): it has ended."""
    try:
        root = psutil.Process(pid)
        pids = [pid, *(one.pid for one in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return ()
    found = []
    for one in pids:
        with suppress(psutil.AccessDenied):  # another user's: not to be killed from here
            if (start := start_ticks(one)) is not None:
                found.append(HostProcess(node, one, start))
    return tuple(found)


def still_alive(processes: Iterable[HostProcess], node: str) -> tuple[HostProcess, ...]:
    """Those of this host (`node`) that have not ended; a reused pid is another process."""
    alive = []
    for process in processes:
        if process.node != node:
            continue
        try:
            current = psutil.Process(process.pid)
            if _is_same(process) and current.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.Error:
            continue
    return tuple(alive)


def cpu_s(process: HostProcess, node: str) -> float | None:
    """CPU time that the process of this host has used, in seconds; None: of another host, or it has ended."""
    try:
        current = psutil.Process(process.pid)
        if process.node != node or not _is_same(process):
            return None
        times = current.cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return None


def kill(processes: Iterable[HostProcess]) -> None:
    """Kill processes of this host; one that has already ended is skipped."""
    for process in processes:
        try:
            current = psutil.Process(process.pid)
            if _is_same(process):
                current.kill()
        except psutil.NoSuchProcess:
            continue


def held_bytes(pids: Sequence[int]) -> int | None:
    """GPU memory of these processes if they hold any, else their resident memory; shared pages count once.

    None: nothing could be read.
    """
    return _gpu_held_bytes(pids) or _resident_bytes(pids)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _is_same(process: HostProcess) -> bool:
    """Whether the process that has its number now is this one."""
    return is_process(process.pid, process.start_ticks)


def _resident_bytes(pids: Iterable[int]) -> int | None:
    total = 0
    is_read = False
    for pid in pids:
        try:
            # Proportional set size: engines of one host share hundreds of MB of library code.
            total += int(psutil.Process(pid).memory_full_info().pss)
            is_read = True
        except psutil.Error:
            continue  # it has ended
    return total if is_read else None


def _gpu_held_bytes(pids: Sequence[int]) -> int | None:
    nvml = _nvml()
    if nvml is None:
        return None
    total = 0
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid in pids and process.usedGpuMemory is not None:
                total += int(process.usedGpuMemory)
    return total


def _nvml() -> Any | None:
    """NVIDIA's management library, which the GPU build of vLLM installs; None without a driver."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
