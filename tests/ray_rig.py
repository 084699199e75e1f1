"""Fixtures on real Ray: one cluster for each test session, with shared engines because they load slowly.

Nothing starts until a test requests it, and nothing of it remains at the end of the session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serving import cluster_ray
from serving.checkpoints import Checkpoint, ensure
from serving.fleet.types import Launch, VersionStatus

if TYPE_CHECKING:
    from serving.fleet.fleet_ray import RayFleet

SECRET = "of-the-tests"
LOAD_LIMIT_S = 240  # a cold engine on two busy cores


@pytest.fixture(scope="session")
def cluster() -> Iterator[cluster_ray.ClusterHandle]:
    """A Ray head for this session, with four logical GPUs that only placement uses."""
    handle = cluster_ray.start(cluster_ray.ClusterSettings(num_gpus=4))
    try:
        cluster_ray.connect(handle)
        yield handle
        cluster_ray.disconnect()
    finally:
        cluster_ray.stop(handle)
    assert not Path(handle.temp_dir).exists()


@pytest.fixture(scope="session")
def ray_cluster(cluster: cluster_ray.ClusterHandle) -> cluster_ray.ClusterHandle:
    """The cluster, for tests that need no engines."""
    return cluster


@pytest.fixture(scope="session")
def checkpoints() -> Mapping[str, Checkpoint]:
    """stable, twin and wrong, trained if they are missing."""
    return {one.name: one for one in ensure()}


@pytest.fixture(scope="session")
def fleet(cluster: cluster_ray.ClusterHandle) -> RayFleet:
    """The fleet of the session's cluster."""
    from serving.fleet.fleet_ray import RayFleet

    client = RayFleet(timeout_s=10.0)
    client.open(http_port=cluster.http_port)
    return client


@pytest.fixture(scope="session")
def token() -> Callable[[], int]:
    """Fencing tokens: always the same, because all tests of a session act as one controller."""
    return lambda: 5


@pytest.fixture(scope="session")
def run_router(
    fleet: RayFleet, cluster: cluster_ray.ClusterHandle, token: Callable[[], int]
) -> Iterator[Callable[[str, int], str]]:
    """Run a service's router with that many replicas; its base URL, without /v1."""
    import httpx

    started: list[str] = []

    def run(service: str, replicas: int) -> str:
        fleet.start_router(service, replicas, token=token())
        started.append(service)
        base = f"{cluster.base_url}/{service}"
        deadline_s = time.time() + 90
        while True:
            status = fleet.application(f"{service}--router")
            # HAProxy learns of a replica after Serve does, and answers 404 for an unknown path until then.
            if status is not None and status[0] == "RUNNING":
                answer = httpx.get(f"{base}/v1/models", timeout=30)
                if answer.status_code not in (404, 500) or "x-canaryctl-request-id" in answer.headers:
                    return base
            assert time.time() < deadline_s, status
            time.sleep(0.2)

    yield run
    for service in started:
        fleet.stop_router(service, token=token())


@dataclass(frozen=True, slots=True)
class Engines:
    """Two engines in the fleet, versions of `service`."""

    service: str
    secret: str
    stable: Launch
    canary: Launch
    fleet: RayFleet

    @property
    def stable_url(self) -> str:
        """Current address of the stable engine; a replaced replica has another."""
        return wait_for(self.fleet, self.service, self.stable.version, "ready").urls[0]

    @property
    def canary_url(self) -> str:
        """Current address of the canary engine."""
        return wait_for(self.fleet, self.service, self.canary.version, "ready").urls[0]


def wait_for(fleet: RayFleet, service: str, version: str, *phases: str) -> VersionStatus:
    """The version's status as soon as it is in one of these phases."""
    deadline_s = time.time() + LOAD_LIMIT_S
    while True:
        statuses = {one.version: one for one in fleet.observe(service) or ()}
        status = statuses.get(version)
        if status is not None and status.phase in phases:
            return status
        assert status is None or status.phase != "failed", status
        assert time.time() < deadline_s, f"{version} is {status}, not {phases}, after {LOAD_LIMIT_S} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def two_versions(fleet: RayFleet, checkpoints: Mapping[str, Checkpoint], token: Callable[[], int]) -> Engines:
    """The stable checkpoint and the wrong one, loaded side by side as `v-stable` and `v-canary` of `chat`."""
    from serving.table.traffic_ray import RayTraffic

    service = "chat"
    RayTraffic(timeout_s=10.0).open(service, SECRET, token=token(), silence_s=None)
    launches = [
        Launch(service, version, SECRET, model_dir=str(checkpoints[name].path))
        for version, name in (("v-stable", "stable"), ("v-canary", "wrong"))
    ]
    for launch in launches:
        fleet.ensure(launch, token=token())
    for launch in launches:
        wait_for(fleet, service, launch.version, "ready")
    stable, canary = launches
    return Engines(service, SECRET, stable, canary, fleet)
