"""Memory of a cluster's devices, measured on each of its nodes by real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from serving.fleet import device_memory
from serving.fleet.cluster_memory_ray import cluster_devices

# In a process of its own: the session's cluster has one node, and a process has one cluster.
_TWO_NODES = """
import json, ray
from dataclasses import asdict
from ray.cluster_utils import Cluster
from serving.fleet.cluster_memory_ray import cluster_devices

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
cluster.add_node(num_cpus=1, num_gpus=0)
ray.init(address=cluster.address, log_to_driver=False)
print(json.dumps([asdict(one) for one in cluster_devices(timeout_s=60)]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.integration
def test_every_node_of_the_cluster_is_measured() -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _TWO_NODES],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (here,) = device_memory.devices()

    assert [(one["free_gpus"], len(one["devices"])) for one in found] == [(0.0, 1)] * 2
    assert [one["devices"][0]["name"] for one in found] == [f"host of {one['node']}" for one in found]
    assert {one["devices"][0]["total_bytes"] for one in found} == {here.total_bytes}


def test_without_ray_this_host_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    (found,) = cluster_devices()

    assert (found.node, found.free_gpus, found.devices[0].name) == (
        "",
        None,
        device_memory.devices()[0].name,
    )
