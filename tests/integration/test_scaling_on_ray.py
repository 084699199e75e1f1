"""Replicas that come, go and hang under load, on real engines: no request fails."""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from serving.checkpoints import Checkpoint
from serving.credentials import ControlSecret
from serving.fleet.types import Launch, VersionStatus
from serving.messages import RequestRecord
from serving.table.orders import Split
from tests.integration.load import Traffic
from tests.ray_rig import SECRET, wait_for

if TYPE_CHECKING:
    from serving.fleet.fleet_ray import RayFleet
    from serving.table.traffic_ray import RayTraffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

CONTROL = ControlSecret.of(SECRET).headers


class Scaled:
    """A service of one version, whose number of replicas the tests change."""

    def __init__(self, fleet: RayFleet, traffic: RayTraffic, launch: Launch, token: int) -> None:
        self.fleet, self.traffic, self.launch, self._token = fleet, traffic, launch, token
        self.base = ""

    def scale(self, replicas: int) -> None:
        self.launch = replace(self.launch, replicas=replicas)
        self.fleet.ensure(self.launch, token=self._token)

    def until(self, holds: Callable[[VersionStatus], bool], *, timeout_s: float = 200.0) -> VersionStatus:
        deadline_s = time.time() + timeout_s
        while True:
            statuses = self.fleet.observe(self.launch.service) or ()
            found = [one for one in statuses if one.version == self.launch.version]
            if found and holds(found[0]):
                return found[0]
            assert time.time() < deadline_s, found
            time.sleep(0.1)

    def published(self) -> dict[str, int]:
        table = self.traffic.table(self.launch.service)
        assert table is not None
        assert table.stable is not None
        return {one.url: one.in_flight for one in table.stable.replicas}

    def records(self) -> list[RequestRecord]:
        found: list[RequestRecord] = []
        after = 0
        while (page := self.traffic.read_records(self.launch.service, after)) is not None and page.events:
            found += [one for one in page.events if isinstance(one, RequestRecord)]
            after = page.next_seq
        return found


@pytest.fixture(scope="module")
def scaled(
    fleet: RayFleet,
    checkpoints: Mapping[str, Checkpoint],
    run_router: Callable[[str, int], str],
    token: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scaled]:
    from serving.table.traffic_ray import RayTraffic

    service = f"s{uuid.uuid4().hex[:6]}"
    traffic = RayTraffic(timeout_s=10.0)
    traffic.open(service, SECRET, token=token(), silence_s=None)
    own = tmp_path_factory.mktemp("checkpoint") / "stable"  # the last test damages it
    shutil.copytree(checkpoints["stable"].path, own)
    launch = Launch(service, "v-1", SECRET, model_dir=str(own))
    one = Scaled(fleet, traffic, launch, token())
    one.scale(1)
    wait_for(fleet, service, "v-1", "ready")
    traffic.set_split(service, Split("r-1", "salt", "v-1", None, 0, 1), token=token())
    one.base = run_router(service, 2)
    yield one
    fleet.stop(service, "v-1", token=token())
    wait_for(fleet, service, "v-1", "gone")
    traffic.close(service, token=token())


def state(url: str) -> Any:
    return httpx.get(f"{url}/_canaryctl/state", headers=CONTROL, timeout=10).json()


def test_replicas_come_and_go_under_load_without_a_failed_request_or_a_repeat(scaled: Scaled) -> None:
    (first,) = scaled.published()
    with Traffic(scaled.base, scaled.launch.service) as traffic:
        traffic.at_least(20)
        scaled.scale(2)
        scaled.until(lambda status: status.ready_replicas == 2)
        traffic.at_least(100)
        both = set(scaled.published())
        long = traffic.long_streams(6).start()
        time.sleep(1.0)
        load = 0
        for _ in range(20):
            load = max(load, sum(scaled.published().values()))
            time.sleep(0.1)
        scaled.scale(1)
        left = scaled.until(lambda status: status.ready_replicas == 1)
        table = set(scaled.published())
        traffic.at_least(60)
        stream_failures = long.wait()
        traffic.at_least(20)
    records = scaled.records()

    assert first in both
    assert len(both) == 2
    assert load > 0  # of others' requests, published with the addresses
    assert table == set(left.urls)
    assert (traffic.failures, stream_failures) == ([], [])
    assert {one.outcome for one in records} == {"answered"}
    assert sum(one.retries for one in records) == 0  # no request met a replica that had stopped


def test_a_frozen_engine_leaves_the_table_and_is_replaced_while_requests_are_answered(scaled: Scaled) -> None:
    scaled.scale(2)
    scaled.until(lambda status: status.ready_replicas == 2 and len(scaled.published()) == 2)
    frozen, other = scaled.published()
    pid = state(frozen)["pid"]
    with Traffic(scaled.base, scaled.launch.service, streams=False) as traffic:
        traffic.at_least(20)
        os.kill(pid, signal.SIGSTOP)
        began_s = time.time()
        scaled.until(lambda status: status.urls == (other,))
        left_s = time.time() - began_s
        deadline_s = time.time() + 60
        while frozen in scaled.published():
            assert time.time() < deadline_s
        traffic.at_least(20)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=200)
        killed_s = time.time() - began_s
        replaced = scaled.until(lambda status: status.ready_replicas == 2)
        traffic.at_least(20)

    print(f"left the table after {left_s:.1f} s, killed after {killed_s:.1f} s")
    assert not psutil.pid_exists(pid)
    assert frozen not in replaced.urls
    assert left_s < 20
    assert 20 < killed_s < 180
    assert traffic.failures == []


def test_a_replica_that_reads_a_damaged_checkpoint_gets_no_request(scaled: Scaled) -> None:
    scaled.scale(1)
    sound = scaled.until(lambda status: status.ready_replicas == 1)
    assert scaled.launch.model_dir is not None
    file = Path(scaled.launch.model_dir) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)  # a quarter of it is zeros
    file.write_bytes(content)
    with Traffic(scaled.base, scaled.launch.service, streams=False) as traffic:
        scaled.scale(2)
        refused = scaled.until(lambda status: "its first load" in (status.last_error or ""))
        traffic.at_least(20)

    assert (refused.phase, refused.urls, set(scaled.published())) == ("ready", sound.urls, set(sound.urls))
    assert "% of the next token's probability lies elsewhere" in str(refused.last_error)
    assert traffic.failures == []
    scaled.scale(1)
