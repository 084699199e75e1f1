"""Memory of all devices of the Ray cluster, measured on each of its nodes at once.

A node that does not answer in time is left out: what it holds is not known, and nothing is planned on it. But
an answer without any of the cluster's GPUs is no answer: engines would be placed on processors instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serving.actor_calls_ray import Deadline
from serving.fleet import device_memory
from serving.fleet.device_memory import DeviceMemory
from serving.fleet.types import FleetUnreachable

TIMEOUT_S = 8.0  # the first call to a node starts a worker there
HEAD_S = 4.0  # beyond that, for what Ray's head is asked


@dataclass(frozen=True, slots=True)
class NodeDevices:
    """The devices of one node. `free_gpus`: GPUs that Ray has not reserved; None: not known."""

    node: str  # its address
    devices: tuple[DeviceMemory, ...]
    free_gpus: float | None


def cluster_devices(*, timeout_s: float = TIMEOUT_S) -> tuple[NodeDevices, ...]:
    """The devices of every node that answers, in the order of their addresses; names carry the address.

    GPUs alone where any node has one, as engines are placed on them alone. Without Ray: those of this host.
    Raises FleetUnreachable when Ray does not answer, or no node with a GPU does.
    """
    if not ray.is_initialized():
        return (NodeDevices("", device_memory.devices(), None),)
    try:
        return Deadline(timeout_s + HEAD_S).run(lambda: _ask_nodes(timeout_s))
    except GetTimeoutError as exc:
        raise FleetUnreachable("Ray's head does not answer; look at it: ray status") from exc


def _ask_nodes(timeout_s: float) -> tuple[NodeDevices, ...]:
    nodes = sorted(
        (one for one in ray.nodes() if one["Alive"]), key=lambda one: str(one["NodeManagerAddress"])
    )
    calls = {_measure_on(node): node for node in nodes}
    done, pending = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    for call in pending:
        ray.cancel(call, force=True)
    free = _free_gpus()
    found = [
        _of_node(calls[call], call, free, is_alone=len(nodes) == 1) for call in calls if call in set(done)
    ]
    answered = [one for one in found if one is not None]
    with_gpus = [one for one in answered if one.devices[0].kind == "gpu"]
    expected = [str(one["NodeManagerAddress"]) for one in nodes if one["Resources"].get("GPU", 0.0) > 0]
    # A node that answers without a GPU declares its GPUs to Ray only.
    if not with_gpus and not set(expected) <= {one.node for one in answered}:
        raise FleetUnreachable(f"no node with a GPU answers ({', '.join(expected)}); try again")
    if not answered:  # as when Ray has no worker left: this host can still be measured
        return (NodeDevices("", device_memory.devices(), None),)
    return tuple(with_gpus or answered)


def _measure_on(node: dict[str, Any]) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return (
        ray.remote(device_memory.devices)
        .options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        .remote()
    )


def _of_node(
    node: dict[str, Any], call: Any, free: dict[str, float], *, is_alone: bool
) -> NodeDevices | None:
    try:
        devices: tuple[DeviceMemory, ...] = ray.get(call, timeout=1.0)
    except RayError:
        return None
    address = str(node["NodeManagerAddress"])
    if not is_alone:
        devices = tuple(replace(one, name=f"{one.name} of {address}") for one in devices)
    return NodeDevices(address, devices, free.get(node["NodeID"], 0.0) if free else None)


def _free_gpus() -> dict[str, float]:
    """Unreserved GPUs by node; empty: not known."""
    try:
        available = ray._private.state.available_resources_per_node()
    except (AttributeError, RayError):
        return {}
    return {str(node): float(resources.get("GPU", 0.0)) for node, resources in available.items()}
