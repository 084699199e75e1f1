"""The data plane in the core's words: launches, sights, errors, and where probes ask."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controller.errors import StaleToken, Unreachable
from controller.rollout.actions import SetSplit
from controller.rollout.observation import VersionPhase
from controller.runtime.data_plane_ray import (
    PlaneFleet,
    PlaneFront,
    PlaneLog,
    PlaneTraffic,
    launch_of,
    probe_target,
)
from controller.spec.service import parse_version
from serving.fleet import types as plane
from serving.messages import RecordPage, ScoreRecord, SplitStatus
from serving.table.route_table import Split, StaleFencingToken

SIGHT = SplitStatus(7, 3, "r-00000001", "v-1", "v-2", 500, True, "fenced", tombstoned=("r-0000000f",))


class Hand:
    """A traffic adapter that notes what it was told. sight None: nothing answers."""

    def __init__(self, sight: SplitStatus | None = SIGHT) -> None:
        self.sight = sight
        self.told: list[tuple[object, ...]] = []
        self.stale = False

    def open(self, service: str, secret: str) -> None:
        self.told.append(("open", service, secret))

    def close(self, service: str) -> None:
        self.told.append(("close", service))
        self.sight = None

    def start_router(self, service: str, replicas: int = 1) -> None:
        self.told.append(("start_router", service, replicas))

    def set_split(self, service: str, split: Split, *, token: int) -> SplitStatus | None:
        if self.stale:
            raise StaleFencingToken("token 1 is older than 2")
        self.told.append(("split", service, split, token))
        return self.sight

    def observe(self, service: str) -> SplitStatus | None:
        return self.sight

    def heartbeat(self, service: str, token: int) -> bool:
        return self.sight is not None

    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None:
        return None

    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool:
        self.told.append(("scores", *scores))
        return True


class Engines:
    """A fleet adapter with two versions, one of them gone."""

    def __init__(self) -> None:
        self.launched: list[plane.Launch] = []
        self.sights = (
            plane.VersionStatus("v-1", "ready", 2, 5, 1000, ("http://127.0.0.1:1",), None, 9.0),
            plane.VersionStatus("v-0", "gone", 0, 0, 0, (), None, 8.0),
            plane.VersionStatus("v-x", "ready", 1, 0, None, ("http://10.0.0.7",), None, 9.0, external=True),
        )

    def ensure(self, launch: plane.Launch, *, token: int) -> None:
        self.launched.append(launch)

    def observe(self, service: str) -> Sequence[plane.VersionStatus] | None:
        return self.sights

    def drain(self, service: str, version: str, *, token: int) -> None:
        raise plane.FleetUnreachable("the fleet actor does not answer")

    def cancel(self, service: str, version: str, *, token: int) -> None:
        raise StaleFencingToken("token 1 is older than 2")

    def stop(self, service: str, version: str, *, token: int) -> None:
        raise NotImplementedError


def test_the_salt_of_a_split_is_its_rollout() -> None:
    hand = Hand()
    PlaneTraffic(hand).set_split("chat", "r-00000001", SetSplit("v-1", "v-2", 500, 2), token=4)

    wanted = Split("r-00000001", "r-00000001", "v-1", "v-2", 500, 2)
    assert hand.told == [("split", "chat", wanted, 4)]


def test_a_table_that_does_not_answer_is_unreachable_when_told_and_none_when_asked() -> None:
    traffic = PlaneTraffic(Hand(sight=None))

    assert traffic.observe("chat") is None
    with pytest.raises(Unreachable):
        traffic.set_split("chat", "r-1", SetSplit("v-1", None, 0, 0), token=1)
    with pytest.raises(Unreachable):
        traffic.heartbeat("chat", token=1)


def test_the_planes_exceptions_become_ours() -> None:
    fleet, hand = PlaneFleet(Engines(), lambda *_: None), Hand()  # type: ignore[arg-type]
    hand.stale = True

    with pytest.raises(Unreachable):
        fleet.drain("chat", "v-1", token=1)
    with pytest.raises(StaleToken):
        fleet.cancel("chat", "v-1", token=1)
    with pytest.raises(StaleToken):
        PlaneTraffic(hand).set_split("chat", "r-1", SetSplit("v-1", None, 0, 0), token=1)


def test_only_the_tombstoned_rollout_is_tombstoned() -> None:
    traffic = PlaneTraffic(Hand())

    assert [traffic.is_tombstoned("chat", rollout) for rollout in ("r-0000000f", "r-00000001")] == [
        True,
        False,
    ]


def test_a_version_whose_memory_is_free_is_not_listed() -> None:
    sights = PlaneFleet(Engines(), lambda *_: None).observe("chat")  # type: ignore[arg-type]

    assert sights is not None
    assert [(sight.version, sight.phase) for sight in sights] == [
        ("v-1", VersionPhase.READY),
        ("v-x", VersionPhase.READY),
    ]


def test_a_probe_shows_the_secret_and_the_present_revision() -> None:
    target = probe_target(Engines(), Hand(), "chat", "v-1", secret="s")

    assert target is not None
    assert (target.urls, target.model) == (("http://127.0.0.1:1",), "chat")
    assert target.headers == {"x-canaryctl-secret": "s", "x-canaryctl-revision": "3.7"}


def test_an_external_endpoint_never_sees_the_secret() -> None:
    target = probe_target(Engines(), Hand(), "chat", "v-x", secret="s")

    assert target is not None
    assert (target.headers, target.model) == ({}, None)


def test_a_probe_has_no_target_while_the_plane_cannot_be_read() -> None:
    assert probe_target(Engines(), Hand(sight=None), "chat", "v-1", secret="s") is None
    assert probe_target(Engines(), Hand(), "chat", "v-nowhere", secret="s") is None


def test_a_front_is_opened_once_and_again_when_its_table_is_lost() -> None:
    hand, now = Hand(), [0.0]
    front = PlaneFront(hand, lambda service: 3, lambda service: None, lambda: now[0])
    for now[0] in (0.0, 1.0, 11.0):
        front.open("chat", "s", token=1)
    before = list(hand.told)
    hand.sight = None
    for now[0] in (12.0, 23.0):
        front.open("chat", "s", token=1)

    opened = [("open", "chat", "s"), ("start_router", "chat", 3)]
    assert (before, hand.told) == (opened, opened * 2)


def test_a_front_closes_routers_before_actors() -> None:
    hand = Hand()
    front = PlaneFront(
        hand, lambda service: 1, lambda service: hand.told.append(("stop_router", service)), lambda: 0.0
    )
    front.close("chat", token=1)
    front.close("chat", token=1)

    assert hand.told == [("stop_router", "chat"), ("close", "chat")]


def test_scores_go_into_the_log_by_the_id_that_was_given() -> None:
    hand = Hand()
    PlaneLog(hand).append("chat", [("chatcmpl-1", "quality", 0.5, 9.0)])

    assert hand.told == [("scores", ScoreRecord(0, "chatcmpl-1", "quality", 0.5, 9.0))]


@pytest.mark.parametrize(
    ("given", "on_gpu", "gpus"),
    [
        ({}, False, 0.0),
        ({}, True, 1.0),
        ({"gpu_memory_utilization": 0.45}, True, 0.5),
        ({"gpus": 0.25}, True, 0.25),
        ({"tensor_parallel_size": 4}, True, 4.0),
        ({"tensor_parallel_size": 4, "gpu_memory_utilization": 0.45}, True, 2.0),
    ],
)
def test_a_launch_takes_the_gpus_that_its_engine_uses(
    given: dict[str, object], on_gpu: bool, gpus: float
) -> None:
    spec = parse_version({"model": "/m", **given})

    launch = launch_of("chat", "v-1", "s", spec, replicas=2, on_gpu=on_gpu, memory_bytes=None)

    assert launch.gpus_per_replica == gpus
    assert "tensor_parallel_size" not in launch.engine_args


def test_a_dtype_left_to_the_engine_is_not_named() -> None:
    auto = launch_of(
        "c", "v", "s", parse_version({"model": "/m"}), replicas=1, on_gpu=False, memory_bytes=None
    )
    half = parse_version({"model": "/m", "dtype": "bfloat16"})

    assert "dtype" not in auto.engine_args
    named = launch_of("c", "v", "s", half, replicas=1, on_gpu=False, memory_bytes=None)
    assert named.engine_args["dtype"] == "bfloat16"


def test_an_endpoints_address_has_no_v1() -> None:
    spec = parse_version({"url": "http://10.0.0.7:8000/v1"})

    launch = launch_of("c", "v", "s", spec, replicas=1, on_gpu=False, memory_bytes=None)

    assert (launch.url, launch.model_dir) == ("http://10.0.0.7:8000", None)
