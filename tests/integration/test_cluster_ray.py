"""A private Ray cluster: another process can stop it, and nothing of it remains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import cluster_ray
from serving.cluster_ray import ClusterHandle, ClusterSettings

pytestmark = pytest.mark.integration

STOP = "import sys; from serving import cluster_ray as c; c.stop(c.ClusterHandle.from_json(sys.argv[1]))"


def test_another_process_can_stop_the_cluster_and_nothing_remains(cluster: ClusterHandle) -> None:
    second = cluster_ray.start(ClusterSettings())
    try:
        assert cluster_ray.is_running(second)
        assert len(cluster_ray.processes_of(second.temp_dir)) >= 5
        root = Path(__file__).parents[2]

        done = subprocess.run(
            [sys.executable, "-c", STOP, second.to_json()], cwd=root, check=False, timeout=60
        )

        assert done.returncode == 0
        assert cluster_ray.processes_of(second.temp_dir) == ()
        assert not Path(second.temp_dir).exists()
        assert cluster_ray.is_running(cluster)  # the other cluster of this host
        cluster_ray.stop(second)  # again is harmless
    finally:
        cluster_ray.stop(second)
