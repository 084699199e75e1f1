"""The controller's clients while Ray's head hangs: each operation ends at its one deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray.exceptions import GetTimeoutError

from serving.fleet.fleet_ray import RayFleet
from serving.fleet.types import FleetUnreachable, Launch
from serving.table import traffic_ray
from serving.table.orders import Split
from serving.table.traffic_ray import RayTraffic


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    never = threading.Event()

    def hang(*_: object, **__: object) -> None:
        never.wait(60)
        raise ValueError("no such actor")

    monkeypatch.setattr(ray, "get_actor", hang)
    monkeypatch.setattr(traffic_ray, "CLOSE_TIMEOUT_S", 0.02)
    yield
    never.set()


TRAFFIC = RayTraffic(timeout_s=0.02)
SPLIT = Split("r-1", "salt", "v-1", "v-2", 500, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: TRAFFIC.set_split("chat", SPLIT, token=1),
        lambda: TRAFFIC.observe("chat"),
        lambda: TRAFFIC.tombstone("chat", "r-1"),
        lambda: TRAFFIC.routers("chat"),
        lambda: TRAFFIC.destroy_unit_key("chat", "r-1", token=1),
        lambda: TRAFFIC.read_records("chat", 0),
        lambda: RayFleet(timeout_s=0.02).observe("chat"),
        lambda: RayFleet(timeout_s=0.02).devices(),
    ],
)
def test_a_question_is_answered_none_in_time(hanging: None, call: Callable[[], object]) -> None:
    began_s = time.monotonic()

    assert call() is None
    assert time.monotonic() - began_s < 5.0


def test_a_command_fails_in_time(hanging: None) -> None:
    began_s = time.monotonic()
    with pytest.raises(FleetUnreachable, match=r"Ray did not answer within 0\.02 s"):
        RayFleet(timeout_s=0.02).ensure(Launch("chat", "v-1", "s", model_dir="/m"), token=1)
    with pytest.raises(GetTimeoutError):
        TRAFFIC.close("chat", token=1)

    assert time.monotonic() - began_s < 5.0
