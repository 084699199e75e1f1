"""One Ray cluster and two real vLLM engines for the whole session; each costs tens of seconds to start.

Invariant: no test here talks to anything but real Ray Serve and real vLLM.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray._raylet import AuthenticationTokenLoader, Config

from serving import checkpoints, cluster_ray
from serving.cluster_ray import ClusterHandle, ClusterSettings
from serving.fleet import Launch, VersionSight
from serving.host_ray import RayFleet

READY_S = 240
ENGINES = "chat"  # the name that engines answer to


@dataclass(frozen=True)
class TwoVersions:
    """Two versions under one name, ready, each on a port of its own that asks for the secret."""

    stable_url: str
    canary_url: str
    secret: str


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ClusterHandle]:
    """A Ray head of our own, this process connected to it."""
    handle = cluster_ray.start(ClusterSettings())
    try:
        _forget_token(handle)
        cluster_ray.connect(handle)
        yield handle
        cluster_ray.disconnect()
    finally:
        cluster_ray.stop(handle)


def _forget_token(handle: ClusterHandle) -> None:
    """Has Ray read this cluster's token: it keeps the one that it found when a test module imported it."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(handle.temp_dir) / "token")
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture(scope="session")
def fleet(ray_cluster: ClusterHandle) -> RayFleet:
    """The fleet actor, and Serve's ingress."""
    one = RayFleet(timeout_s=10.0)
    one.open(http_port=ray_cluster.http_port)
    return one


@pytest.fixture(scope="session")
def two_versions(fleet: RayFleet) -> Iterator[TwoVersions]:
    """The stable checkpoint and its fine-tuned twin."""
    checkpoints.ensure()
    secret = "an-integration-secret"
    for version, name in (("v-stable", "stable"), ("v-canary", "twin")):
        found = checkpoints.find(name)
        assert found is not None, f"checkpoint {name} was not trained"
        launch = Launch(
            service=ENGINES, version=version, secret=secret, model_dir=str(found.path), memory_bytes=None
        )
        fleet.ensure(launch, token=1)
    sights = wait_ready(fleet, ("v-stable", "v-canary"))
    yield TwoVersions(sights["v-stable"].urls[0], sights["v-canary"].urls[0], secret)
    for version in ("v-canary", "v-stable"):
        fleet.stop(ENGINES, version, token=1)


def wait_ready(fleet: RayFleet, versions: tuple[str, ...]) -> dict[str, VersionSight]:
    """The sights of these versions once all are ready; fails with their last errors."""
    deadline_s = time.time() + READY_S
    sights: dict[str, VersionSight] = {}
    while time.time() < deadline_s:
        sights = {one.version: one for one in fleet.observe(ENGINES) or ()}
        if all(name in sights and sights[name].phase == "ready" for name in versions):
            return sights
        assert not [one for one in sights.values() if one.phase == "failed"], sights
        time.sleep(0.25)
    raise AssertionError(f"not ready after {READY_S} s: {sights}")


@pytest.fixture(scope="session")
def run_router(ray_cluster: ClusterHandle, fleet: RayFleet) -> Callable[[str, int], str]:
    """Has the fleet run a service's router; gives the base URL behind Serve's ingress."""

    def run(service: str, replicas: int) -> str:
        fleet.start_router(service, replicas)
        return f"{ray_cluster.base_url}/{service}"

    return run
