"""Adapters of the data plane: statuses, translated errors, fronts, records, probe targets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from controller.errors import StaleToken, Unreachable
from controller.rollout.actions import SetSplit
from controller.rollout.judge_plan import JudgeAsked, JudgeEngine, JudgePlan
from controller.rollout.observation import VersionPhase
from controller.runtime.data_plane_ray import (
    FleetAdapter,
    IngressAdapter,
    RecordsAdapter,
    TrafficAdapter,
    probe_target,
)
from serving.access import ClientRules
from serving.credentials import DataSecret, KeyReference, NoKey
from serving.fleet import types as plane
from serving.fleet.judge_engine import JudgeEngineStatus
from serving.judge_messages import JudgeOrder
from serving.messages import RecordPage, ScoreRecord, SplitStatus
from serving.table.orders import Split, StaleFencingToken

RULES = ClientRules(burst_cap=5.0)
STATUS = SplitStatus(7, 3, "r-00000001", "v-1", "v-2", 500, True, "fenced", tombstoned=("r-0000000f",))


class RecordingTraffic:
    """A traffic client that records its calls. status None: nothing answers."""

    def __init__(self, status: SplitStatus | None = STATUS) -> None:
        self.status = status
        self.calls: list[tuple[object, ...]] = []
        self.newest = 1  # token

    def open(self, service: str, secret: str, *, token: int) -> None:
        self._fence(token)
        self.calls.append(("open", service, secret))

    def close(self, service: str, *, token: int) -> None:
        self._fence(token)
        self.calls.append(("close", service))
        self.status = None

    def start_router(self, service: str, replicas: int = 1, *, token: int) -> None:
        self.calls.append(("start_router", service, replicas))

    def set_clients(self, service: str, rules: ClientRules, *, token: int) -> bool:
        self._fence(token)
        self.calls.append(("clients", service, rules))
        return self.status is not None

    def set_split(self, service: str, split: Split, *, token: int) -> SplitStatus | None:
        self._fence(token)
        self.calls.append(("split", service, split, token))
        return self.status

    def stop_router(self, service: str, *, token: int) -> None:
        self._fence(token)
        self.calls.append(("stop_router", service))

    def _fence(self, token: int) -> None:
        if token < self.newest:
            raise StaleFencingToken(f"token {token} is older than {self.newest}")

    def observe(self, service: str) -> SplitStatus | None:
        return self.status

    def heartbeat(self, service: str, token: int) -> bool:
        return self.status is not None

    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None:
        return None

    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool:
        self.calls.append(("scores", *scores))
        return True


class Engines:
    """A fleet with two loaded versions, one of them external, and one that is gone."""

    def __init__(self) -> None:
        self.launched: list[plane.Launch] = []
        self.versions = (
            plane.VersionStatus("v-1", "ready", 2, 5, 1000, ("http://127.0.0.1:1",), None, 9.0),
            plane.VersionStatus("v-0", "gone", 0, 0, 0, (), None, 8.0),
            plane.VersionStatus("v-x", "ready", 1, 0, None, ("http://10.0.0.7",), None, 9.0, external=True),
        )

    def ensure(self, launch: plane.Launch, *, token: int) -> None:
        self.launched.append(launch)

    def observe(self, service: str) -> Sequence[plane.VersionStatus] | None:
        return self.versions

    def drain(self, service: str, version: str, *, token: int) -> None:
        raise plane.FleetUnreachable("the fleet actor does not answer")

    def cancel(self, service: str, version: str, *, token: int) -> None:
        raise StaleFencingToken("token 1 is older than 2")

    def stop(self, service: str, version: str, *, token: int) -> None:
        raise NotImplementedError


def test_the_salt_of_a_split_is_its_rollout_id() -> None:
    traffic = RecordingTraffic()
    TrafficAdapter(traffic).set_split(
        "chat", "r-00000001", SetSplit("v-1", "v-2", 500, 2, audience_bp=(("a", 7),)), token=4
    )

    expected = Split("r-00000001", "r-00000001", "v-1", "v-2", 500, 2, (("a", 7),))
    assert traffic.calls == [("split", "chat", expected, 4)]


def test_a_silent_table_is_unreachable_for_commands_and_none_for_reads() -> None:
    traffic = TrafficAdapter(RecordingTraffic(status=None))

    assert traffic.observe("chat") is None
    with pytest.raises(Unreachable):
        traffic.set_split("chat", "r-1", SetSplit("v-1", None, 0, 0), token=1)
    with pytest.raises(Unreachable):
        traffic.heartbeat("chat", token=1)


def test_exceptions_of_the_data_plane_become_those_of_the_controller() -> None:
    fleet, traffic = FleetAdapter(Engines(), lambda *_: None), RecordingTraffic()  # type: ignore[arg-type]
    traffic.newest = 2

    with pytest.raises(Unreachable):
        fleet.drain("chat", "v-1", token=1)
    with pytest.raises(StaleToken):
        fleet.cancel("chat", "v-1", token=1)
    with pytest.raises(StaleToken):
        TrafficAdapter(traffic).set_split("chat", "r-1", SetSplit("v-1", None, 0, 0), token=1)


def test_the_split_carries_tombstones_and_a_missing_stable_stays_none() -> None:
    tombstoned = TrafficAdapter(RecordingTraffic()).observe("chat")
    empty = TrafficAdapter(RecordingTraffic(replace(STATUS, stable=None))).observe("chat")

    assert tombstoned is not None
    assert empty is not None
    assert (tombstoned.tombstoned, empty.stable) == (("r-0000000f",), None)


def test_a_version_that_is_gone_is_not_listed() -> None:
    versions = FleetAdapter(Engines(), lambda *_: None).observe("chat")  # type: ignore[arg-type]

    assert versions is not None
    assert [(version.version, version.phase) for version in versions] == [
        ("v-1", VersionPhase.READY),
        ("v-x", VersionPhase.READY),
    ]


def test_a_probe_sends_the_secret_and_the_current_revision() -> None:
    launch = plane.Launch("chat", "v-1", "s", model_dir="/m")
    target = probe_target(Engines(), RecordingTraffic(), launch)

    assert target is not None
    assert (target.urls, target.model) == (("http://127.0.0.1:1",), "chat")
    assert target.headers == {"x-canaryctl-secret": DataSecret.of("s").text, "x-canaryctl-revision": "3.7"}


def test_an_external_endpoint_never_receives_the_secret() -> None:
    target = probe_target(Engines(), RecordingTraffic(), plane.Launch("chat", "v-x", "s", url="http://x"))

    assert target is not None
    assert (target.headers, target.model) == ({}, "chat")


def test_a_probe_of_an_endpoint_carries_its_key_and_its_name_of_the_model_and_shows_neither_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", "sk-1")
    key = KeyReference("env", "EXAMPLE_KEY")
    launch = plane.Launch("chat", "v-x", "s", url="http://x", endpoint_model="large", api_key=key)
    target = probe_target(Engines(), RecordingTraffic(), launch)

    assert target is not None
    assert (target.headers, target.model) == ({"authorization": "Bearer sk-1"}, "large")
    assert "sk-1" not in repr(target) + repr(launch) + launch.to_json()


def test_a_probe_of_an_endpoint_whose_key_is_not_set_fails_with_its_name() -> None:
    key = KeyReference("env", "NO_SUCH_KEY")
    launch = plane.Launch("chat", "v-x", "s", url="http://x", api_key=key)

    with pytest.raises(NoKey, match="api_key_env NO_SUCH_KEY is not set"):
        probe_target(Engines(), RecordingTraffic(), launch)


def test_a_data_plane_that_cannot_be_read_is_told_apart_from_a_version_that_does_not_run() -> None:
    class Silent(Engines):
        def observe(self, service: str) -> None:
            return None

    known, unknown = (plane.Launch("chat", name, "s", model_dir="/m") for name in ("v-1", "v-nowhere"))

    assert probe_target(Engines(), RecordingTraffic(), unknown) is None
    with pytest.raises(Unreachable, match="the route table of chat does not say where v-1 is"):
        probe_target(Engines(), RecordingTraffic(status=None), known)
    with pytest.raises(Unreachable, match="the fleet does not say where v-1 is"):
        probe_target(Silent(), RecordingTraffic(), known)


def test_a_front_is_opened_once_and_again_after_its_table_is_lost() -> None:
    traffic, now = RecordingTraffic(), [0.0]
    ingress = IngressAdapter(
        traffic, lambda service: 3, lambda service: RULES, traffic.stop_router, lambda: now[0]
    )
    for now[0] in (0.0, 1.0, 11.0):
        ingress.open("chat", "s", token=1)
    before = list(traffic.calls)
    traffic.status = None
    for now[0] in (12.0, 23.0):
        with contextlib.suppress(Unreachable):
            ingress.open("chat", "s", token=1)

    clients = ("clients", "chat", RULES)
    opened = [("open", "chat", "s"), clients, ("start_router", "chat", 3), clients]
    assert (before, traffic.calls[len(before) :]) == (opened, [("open", "chat", "s"), clients])


def ingress_of(traffic: RecordingTraffic) -> IngressAdapter:
    return IngressAdapter(traffic, lambda name: 1, lambda name: RULES, traffic.stop_router, lambda: 0.0)


def test_routers_start_only_when_the_table_knows_the_clients() -> None:
    traffic = RecordingTraffic(status=None)
    ingress = ingress_of(traffic)
    with pytest.raises(Unreachable, match="the route table of chat does not answer"):
        ingress.open("chat", "s", token=1)
    before = [call[0] for call in traffic.calls]
    traffic.status = STATUS
    ingress.open("chat", "s", token=1)

    assert before == ["open", "clients"]
    assert [call[0] for call in traffic.calls[2:]] == ["open", "clients", "start_router"]


def test_a_stale_controller_publishes_no_clients() -> None:
    traffic = RecordingTraffic()
    traffic.newest = 2
    ingress = ingress_of(traffic)

    with pytest.raises(StaleToken):
        ingress.open("chat", "s", token=1)


def test_a_front_stops_routers_before_actors() -> None:
    traffic = RecordingTraffic()
    ingress = ingress_of(traffic)
    ingress.close("chat", token=1)
    ingress.close("chat", token=1)

    assert traffic.calls == [("stop_router", "chat"), ("close", "chat")]


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_front_is_neither_opened_nor_closed_by_an_older_token(is_removed: bool) -> None:
    traffic = RecordingTraffic()
    traffic.newest = 2
    ingress = ingress_of(traffic)

    def act() -> None:
        if is_removed:
            ingress.close("chat", token=1)
        else:
            ingress.open("chat", "s", token=1)

    with pytest.raises(StaleToken):
        act()

    assert traffic.calls == []


def test_scores_are_appended_under_the_given_id() -> None:
    traffic = RecordingTraffic()
    RecordsAdapter(traffic).append("chat", [("chatcmpl-1", "quality", 0.5, 9.0)])

    assert traffic.calls == [("scores", ScoreRecord(0, "chatcmpl-1", "quality", 0.5, 9.0))]


def asked(revision: str = "abc") -> JudgeAsked:
    plan = JudgePlan("http://127.0.0.1:8000", "judge", 2000, "quality", 60, api_key_env="JUDGE_KEY")
    return JudgeAsked(plan, revision)


def test_an_admitted_judge_is_in_the_split_and_one_without_a_revision_is_not() -> None:
    traffic = RecordingTraffic()
    adapter = TrafficAdapter(traffic)
    for judge in (asked(), asked(""), None):
        adapter.set_split("chat", "r-00000001", SetSplit("v-1", "v-2", 500, 2, judge=judge), token=1)

    order = JudgeOrder(
        "http://127.0.0.1:8000", "judge", KeyReference("env", "JUDGE_KEY"), "abc", 2000, "quality", 60
    )
    assert [call[2].judge for call in traffic.calls] == [order, None, None]  # type: ignore[attr-defined]


def test_the_judge_of_a_table_is_known_of_the_split_that_was_set_last_and_of_no_other() -> None:
    traffic = RecordingTraffic()
    adapter = TrafficAdapter(traffic)
    split = SetSplit("v-1", "v-2", 500, 2, judge=asked())

    def judge() -> str | None:
        status = adapter.observe("chat")
        assert status is not None
        return status.judge

    assert judge() is None  # a new controller
    adapter.set_split("chat", "r-00000001", split, token=1)
    assert judge() == "abc"
    adapter.set_split("chat", "r-00000001", replace(split, judge=asked("")), token=1)
    assert judge() == ""
    traffic.status = replace(STATUS, revision=4)  # as of a route table that withdrew the canary
    assert judge() is None
    adapter.set_split("chat", "r-00000002", split, token=1)  # the table kept the rollout before
    assert judge() == ""


class ServedEngine:
    """The engine of a served judge: where it is, or None when the fleet cannot be read."""

    def __init__(self) -> None:
        self.url: str | None = "http://10.0.0.1:1"

    def __call__(self, service: str, version: str) -> JudgeEngineStatus:
        assert (service, version) == ("chat", "v-judge")
        if self.url is None:
            raise Unreachable("the fleet does not say")
        return JudgeEngineStatus("ready" if self.url else "loading", self.url, DataSecret.of("s"), None)


def served() -> tuple[RecordingTraffic, ServedEngine, TrafficAdapter, SetSplit]:
    plan = JudgePlan("", "judge-1", 2000, "quality", 60, engine=JudgeEngine("v-judge", "{}", 1))
    traffic, engine = RecordingTraffic(), ServedEngine()
    split = SetSplit("v-1", "v-2", 500, 2, judge=JudgeAsked(plan, "abc"))
    return traffic, engine, TrafficAdapter(traffic, engine), split


def test_a_served_judge_is_asked_where_its_engine_is_and_by_its_secret() -> None:
    traffic, engine, adapter, split = served()
    for engine.url in ("http://10.0.0.1:1", "", None):
        adapter.set_split("chat", "r-00000001", split, token=1)
    orders = [call[2].judge for call in traffic.calls]  # type: ignore[attr-defined]

    secret = DataSecret.of("s")
    assert orders[0] == JudgeOrder("http://10.0.0.1:1", "judge-1", None, "abc", 2000, "quality", 60, secret)
    assert [one.url for one in orders] == ["http://10.0.0.1:1", "", ""]


def test_an_engine_that_was_loaded_anew_or_died_is_told_to_routers_again() -> None:
    _, engine, adapter, split = served()

    def judge() -> str | None:
        status = adapter.observe("chat")
        assert status is not None
        return status.judge

    adapter.set_split("chat", "r-00000001", split, token=1)
    assert judge() == "abc"
    for url in ("", "http://10.0.0.1:2"):
        engine.url = url
        assert judge() is None  # so that the split is set again
        adapter.set_split("chat", "r-00000001", split, token=1)
        assert judge() == "abc"
    engine.url = None
    assert judge() == "abc"
