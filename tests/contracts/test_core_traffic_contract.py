"""Contract of the port `Traffic`: for the fake, and for the real route table behind its adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from controller.errors import StaleToken
from controller.rollout.actions import SetSplit
from controller.runtime.data_plane_ray import TrafficAdapter
from tests.fakes.plane import FakeClock, FakeTraffic
from tests.fakes.traffic_memory import MemoryTraffic

ROLLOUT = "r-00000001"
ALONE = SetSplit("v-1", None, 0, 0)
SHARED = SetSplit("v-1", "v-2", 500, 0)


@dataclass(slots=True)
class Rig:
    traffic: FakeTraffic | TrafficAdapter
    tombstone: Callable[[str], object]
    pass_time: Callable[[], None]


@pytest.fixture(params=["fake", "table core"])
def rig(request: pytest.FixtureRequest) -> Rig:
    clock = FakeClock()
    if request.param == "fake":
        fake = FakeTraffic(clock)
        return Rig(fake, fake.tombstone, lambda: clock.advance(5.0))
    memory = MemoryTraffic(clock.now_s)
    memory.open("chat", "secret", token=1)
    return Rig(
        TrafficAdapter(memory), lambda rollout: memory.tombstone("chat", rollout), lambda: clock.advance(5.0)
    )


def table(rig: Rig) -> tuple[str | None, str | None, int]:
    status = rig.traffic.observe("chat")
    assert status is not None
    return status.stable, status.canary, status.weight_bp


def test_an_unknown_service_is_none(rig: Rig) -> None:
    assert rig.traffic.observe("nobody") is None


def test_a_published_split_is_observed(rig: Rig) -> None:
    rig.traffic.set_split("chat", ROLLOUT, SHARED, token=1)

    assert table(rig) == ("v-1", "v-2", 500)


def test_the_same_split_again_makes_no_new_revision(rig: Rig) -> None:
    first = rig.traffic.set_split("chat", ROLLOUT, SHARED, token=1)
    again = rig.traffic.set_split("chat", ROLLOUT, SHARED, token=1)

    assert first is not None
    assert again is not None
    assert (again.epoch, again.revision) == (first.epoch, first.revision)


def test_another_split_makes_a_higher_revision(rig: Rig) -> None:
    first = rig.traffic.set_split("chat", ROLLOUT, SHARED, token=1)
    other = rig.traffic.set_split("chat", ROLLOUT, ALONE, token=1)

    assert first is not None
    assert other is not None
    assert (other.epoch, other.revision) > (first.epoch, first.revision)


def test_a_split_is_applied_in_time(rig: Rig) -> None:
    rig.traffic.set_split("chat", ROLLOUT, SHARED, token=1)
    rig.pass_time()

    status = rig.traffic.observe("chat")

    assert status is not None
    assert status.applied


def test_an_older_token_is_refused_and_changes_nothing(rig: Rig) -> None:
    rig.traffic.set_split("chat", ROLLOUT, SHARED, token=2)

    with pytest.raises(StaleToken):
        rig.traffic.set_split("chat", ROLLOUT, ALONE, token=1)
    with pytest.raises(StaleToken):
        rig.traffic.heartbeat("chat", token=1)
    assert table(rig) == ("v-1", "v-2", 500)


def test_a_tombstoned_rollout_never_has_a_weight_again(rig: Rig) -> None:
    rig.traffic.set_split("chat", ROLLOUT, ALONE, token=1)
    rig.tombstone(ROLLOUT)

    rig.traffic.set_split("chat", ROLLOUT, SHARED, token=1)

    status = rig.traffic.observe("chat")
    assert status is not None
    assert (table(rig), status.tombstoned) == (("v-1", None, 0), (ROLLOUT,))


def test_a_tombstone_ends_one_rollout_only(rig: Rig) -> None:
    rig.traffic.set_split("chat", ROLLOUT, ALONE, token=1)
    rig.tombstone(ROLLOUT)

    rig.traffic.set_split("chat", "r-00000002", SHARED, token=1)

    status = rig.traffic.observe("chat")
    assert status is not None
    assert (table(rig), status.tombstoned) == (("v-1", "v-2", 500), (ROLLOUT,))
