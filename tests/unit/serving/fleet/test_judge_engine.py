"""A judge in the fleet: in no route table, whatever happens to it, and reached by a secret of its own."""

from __future__ import annotations

import time

import pytest

from serving.actor_names import judge_service, judged_service
from serving.credentials import DataSecret, judge_root
from serving.fleet.engine_args import command_line
from serving.fleet.fleet import FleetCore
from serving.fleet.judge_engine import judge_engine
from serving.fleet.orders import Cancel, DeleteApp, Order, Publish, RunApp
from serving.fleet.types import EngineReport, FleetUnreachable, HostProcess, Launch
from tests.fakes.fleet_memory import MemoryFleet

JUDGE = Launch(
    *("chat_judge", "v-judge", judge_root("root")), model_dir="/m", endpoint_model="judge-7b-3f0c2b8e91"
)


def report(phase: str, *, in_flight: int = 0) -> EngineReport:
    process = HostProcess("n", 40, 1)
    return EngineReport("r0", "http://h:1", phase, in_flight, 10, (process,), None)  # type: ignore[arg-type]


class Life:
    """A judge's engine, and every order that was due in its life."""

    def __init__(self, stored: str | None = None) -> None:
        self.core, self.seen, self.now_s = FleetCore(stored), list[Order](), 100.0

    def orders(self) -> list[type[Order]]:
        orders = self.core.orders(now_s=self.now_s)
        self.seen += orders
        for order in orders:
            if isinstance(order, RunApp):
                self.core.on_run(order.launch, None, now_s=self.now_s)
        return [type(one) for one in orders]

    def report(self, phase: str, **more: int) -> None:
        self.core.on_report(JUDGE, report(phase, **more), now_s=self.now_s)


def test_it_is_loaded_and_unloaded_without_a_route_table() -> None:
    life = Life()
    life.core.ensure(JUDGE, token=1, now_s=life.now_s)
    loaded = life.orders()
    life.report("ready")
    while_ready = life.orders()
    life.core.stop("chat_judge", "v-judge", token=1, now_s=life.now_s)
    deleted = life.orders()
    life.core.on_gone(JUDGE, now_s=life.now_s)

    assert (loaded, while_ready, deleted, life.orders()) == ([RunApp], [], [DeleteApp], [])
    assert life.core.statuses("chat") == ()


def test_its_questions_are_waited_for_and_then_cancelled_when_it_is_stopped() -> None:
    life = Life()
    life.core.ensure(JUDGE, token=1, now_s=life.now_s)
    life.orders()
    life.report("ready", in_flight=2)
    life.core.stop("chat_judge", "v-judge", token=1, now_s=life.now_s)
    at_once = life.orders()
    life.now_s += 6.0
    life.report("ready", in_flight=2)

    assert (at_once, life.orders()) == ([], [Cancel])


@pytest.mark.parametrize("is_known", [True, False])
def test_after_a_restart_of_the_fleet_it_is_in_no_route_table_either(is_known: bool) -> None:
    before = Life()
    before.core.ensure(JUDGE, token=1, now_s=100.0)
    before.orders()
    life = Life(before.core.to_store() if is_known else None)
    life.report("ready")
    for command in (life.core.drain, life.core.stop):
        life.orders()
        command("chat_judge", "v-judge", token=1, now_s=life.now_s)
    life.orders()

    assert not [one for one in life.seen if isinstance(one, Publish)]
    assert isinstance(life.seen[-1], DeleteApp)


def test_a_replica_that_serve_stops_waits_for_no_router() -> None:
    life = Life()
    life.core.ensure(JUDGE, token=1, now_s=life.now_s)
    life.orders()
    life.report("ready")
    life.report("closing")

    assert life.core.is_unpublished(JUDGE, "http://h:1")


def test_its_engine_serves_it_by_the_name_that_it_is_asked_by() -> None:
    words = command_line(Launch("chat", "v", "s", model_dir="/m", endpoint_model="judge-1"), on_cpu=False)

    assert words[words.index("--served-model-name") + 1] == "judge-1"


def test_no_service_has_its_name() -> None:
    assert (judge_service("a-b.c"), judged_service("a-b.c_judge"), judged_service("chat")) == (
        "a-b.c_judge",
        "a-b.c",
        None,
    )


def test_where_it_is_reached_and_by_which_secret() -> None:
    fleet = MemoryFleet(time.time, loads_at_once=False)
    away = judge_engine(fleet, "chat", "v-judge", "root")
    fleet.ensure(JUDGE, token=1)
    loading = judge_engine(fleet, "chat", "v-judge", "root")
    fleet.load(JUDGE)
    ready = judge_engine(fleet, "chat", "v-judge", "root")
    other = judge_engine(fleet, "chat", "v-other", "root")

    assert [(one.phase, one.url) for one in (away, loading, ready, other)] == [
        (None, ""),
        ("loading", ""),
        ("ready", "http://v-judge.0.test"),
        (None, ""),
    ]
    assert ready.secret == DataSecret.of(JUDGE.secret)
    assert ready.secret != DataSecret.of("root")
    assert ready.secret.text not in repr(ready)
    assert fleet.published == {}


def test_a_fleet_that_cannot_be_read_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFleet, "observe", lambda *_: None)

    with pytest.raises(FleetUnreachable, match="does not say where the judge of chat is"):
        judge_engine(MemoryFleet(time.time), "chat", "v-judge", "root")
