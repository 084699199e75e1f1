"""The fleet's rules without a cluster: orders due and phases of versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serving.fleet import fleet
from serving.fleet.fleet import FleetCore
from serving.fleet.orders import Cancel, DeleteApp, Order, Probe, Publish, Replace, RunApp
from serving.fleet.types import EndpointError, EngineReport, HostProcess, Launch, ReplicaState
from serving.table.orders import StaleFencingToken


def launch(version: str = "v-1", **changes: object) -> Launch:
    values: dict[str, object] = {"service": "chat", "version": version, "secret": "s", "model_dir": "/m"}
    return Launch(**{**values, **changes})  # type: ignore[arg-type]


class Harness:
    """A core, its clock, and helpers that report events."""

    def __init__(self) -> None:
        self.core = FleetCore()
        self.now_s = 100.0

    def orders(self) -> tuple[Order, ...]:
        return self.core.orders(now_s=self.now_s)

    def ensure(self, one: Launch, token: int = 1) -> None:
        self.core.ensure(one, token=token, now_s=self.now_s)

    def stop(self, version: str = "v-1", token: int = 1) -> None:
        self.core.stop("chat", version, token=token, now_s=self.now_s)

    def drain(self, version: str = "v-1", token: int = 1) -> None:
        self.core.drain("chat", version, token=token, now_s=self.now_s)

    def report(self, one: Launch, phase: str = "ready", *, index: int = 0, in_flight: int = 0) -> None:
        self.core.on_report(
            one,
            EngineReport(
                replica=f"r{index}",
                url=f"http://h:{index}",
                phase=phase,  # type: ignore[arg-type]
                in_flight=in_flight,
                memory_bytes=10,
                processes=(HostProcess("n", 40 + index, 1),),
                error="broke" if phase == "failed" else None,
            ),
            now_s=self.now_s,
        )

    def do(self, *, applied: bool = True) -> tuple[Order, ...]:
        """Execute all orders but deletions and cancellations; all of them."""
        orders = self.orders()
        for order in orders:
            if isinstance(order, RunApp):
                self.core.on_run(order.launch, None, now_s=self.now_s)
            elif isinstance(order, Publish):
                self.core.on_published(order, is_applied=applied, now_s=self.now_s)
        return orders

    def ready(self, one: Launch, *, in_flight: int = 0) -> None:
        self.ensure(one)
        self.do()
        for index in range(one.replicas):
            self.report(one, index=index, in_flight=in_flight)
        self.do()

    def phase(self, version: str = "v-1") -> str | None:
        return {status.version: status.phase for status in self.core.statuses("chat")}.get(version)


def test_a_new_version_is_run_once_and_published_when_ready() -> None:
    harness, one = Harness(), launch()
    harness.ensure(one)

    assert harness.do() == (RunApp(one, 0),)
    assert harness.do() == ()
    harness.report(one, "loading")
    assert (harness.do(), harness.phase()) == ((), "loading")
    harness.report(one)
    assert (harness.do(), harness.phase()) == ((Publish(one, ("http://h:0",)),), "ready")
    assert harness.do() == ()


def test_a_version_is_ready_when_all_its_replicas_are() -> None:
    harness, one = Harness(), launch(replicas=2)
    harness.ensure(one)
    harness.report(one, index=0)
    assert harness.phase() == "loading"

    harness.report(one, index=1)

    assert harness.phase() == "ready"


def test_ensure_again_orders_nothing() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)

    harness.ensure(one)

    assert harness.orders() == ()


def test_more_replicas_are_another_run_of_the_same_version() -> None:
    harness = Harness()
    harness.ready(launch())

    harness.ensure(launch(replicas=3))

    assert harness.orders() == (RunApp(launch(replicas=3), 1),)


def test_a_version_leaves_the_table_before_it_is_deleted() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.stop()

    assert harness.do(applied=False) == (Publish(one, ()),)
    assert harness.do(applied=True) == (Publish(one, ()),)
    assert harness.orders() == (DeleteApp(one, (HostProcess("n", 40, 1),)),)


def test_stop_waits_for_requests_in_flight_then_cancels_them() -> None:
    harness, one = Harness(), launch()
    harness.ready(one, in_flight=2)
    harness.stop()
    harness.do()

    assert harness.orders() == ()
    harness.now_s += 5.0
    harness.report(one, in_flight=1)
    assert Cancel(one, ("http://h:0",)) in harness.orders()
    harness.report(one, in_flight=0)
    assert isinstance(harness.orders()[0], DeleteApp)


def test_a_hung_engine_is_deleted_after_the_stop_limit() -> None:
    harness, one = Harness(), launch()
    harness.ready(one, in_flight=2)
    harness.stop()
    harness.do()

    harness.now_s += 15.0

    assert harness.orders() == (DeleteApp(one, (HostProcess("n", 40, 1),)),)


def test_a_version_is_gone_when_its_processes_have_ended_and_holds_no_memory() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.stop()
    harness.do()
    assert harness.phase() == "stopping"

    harness.core.on_gone(one, now_s=harness.now_s)

    (status,) = harness.core.statuses("chat")
    assert (status.phase, status.memory_bytes, status.urls, harness.orders()) == ("gone", 0, (), ())


def test_draining_takes_a_version_out_of_the_table_and_keeps_its_engine() -> None:
    harness, one = Harness(), launch()
    harness.ready(one, in_flight=3)
    harness.drain()

    assert harness.do() == (Publish(one, ()),)
    assert harness.orders() == ()
    (status,) = harness.core.statuses("chat")
    assert (status.phase, status.in_flight) == ("draining", 3)


def test_ensure_returns_a_draining_version_to_the_table() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.drain()
    harness.do()

    harness.ensure(one)

    assert (harness.phase(), harness.orders()) == ("ready", (Publish(one, ("http://h:0",)),))


def test_only_a_draining_version_is_cancelled() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    assert harness.core.cancel("chat", "v-1", token=1) == ()

    harness.drain()

    assert harness.core.cancel("chat", "v-1", token=1) == (Cancel(one, ("http://h:0",)),)


def test_a_failed_load_is_deleted_and_not_retried_by_ensure() -> None:
    harness, one = Harness(), launch()
    harness.ensure(one)
    harness.do()
    harness.report(one, "failed")
    assert isinstance(harness.orders()[0], DeleteApp)
    harness.core.on_gone(one, now_s=harness.now_s)

    harness.ensure(one)

    (status,) = harness.core.statuses("chat")
    assert (status.phase, status.last_error, harness.orders()) == ("failed", "broke", ())


def test_stop_clears_a_failure() -> None:
    harness, one = Harness(), launch()
    harness.ensure(one)
    harness.do()
    harness.report(one, "failed")
    harness.stop()
    harness.core.on_gone(one, now_s=harness.now_s)
    harness.ensure(one)

    assert (harness.phase(), harness.do()) == ("loading", (RunApp(one, 0),))


def test_a_version_that_loses_its_engine_is_not_failed_but_has_no_replica() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)

    harness.report(one, "failed")

    (status,) = harness.core.statuses("chat")
    assert (status.phase, status.ready_replicas, status.last_error) == ("loading", 0, "broke")
    assert harness.orders() == (Publish(one, ()),)


def test_a_version_stopped_while_loading_is_deleted() -> None:
    harness, one = Harness(), launch()
    harness.ensure(one)
    harness.do()
    harness.report(one, "loading")

    harness.stop()

    assert harness.orders() == (DeleteApp(one, (HostProcess("n", 40, 1),)),)


def test_ensure_while_stopping_reloads_the_version_when_it_is_gone() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.stop()
    harness.ensure(one)
    assert harness.phase() == "stopping"

    harness.core.on_gone(one, now_s=harness.now_s)

    assert (harness.phase(), harness.orders()) == ("loading", (RunApp(one, 0),))


def test_a_replica_without_reports_is_probed_and_unpublished_when_lost() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.now_s += 3.5

    assert Probe(one, "r0", "http://h:0", HostProcess("n", 40, 1)) in harness.orders()
    harness.core.on_replica_lost("chat", "v-1", "r0")
    assert harness.orders() == (Publish(one, ()),)


def test_replicas_are_published_again_for_a_new_table() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    assert harness.orders() == ()

    harness.now_s += 2.5

    assert harness.orders() == (Publish(one, ("http://h:0",)),)


def test_a_refusal_by_serve_fails_a_loading_version() -> None:
    harness, one = Harness(), launch()
    harness.ensure(one)

    harness.core.on_run(one, "no GPU", now_s=harness.now_s)

    (status,) = harness.core.statuses("chat")
    assert (status.phase, status.last_error) == ("failed", "no GPU")


def test_an_external_endpoint_is_ready_when_it_answers() -> None:
    harness, one = Harness(), launch(model_dir=None, url="http://x:1")
    harness.ensure(one)
    assert harness.orders() == (Probe(one, "", "http://x:1"),)

    harness.core.on_endpoint_probed("chat", "v-1", EndpointError("no answer", True), now_s=harness.now_s)
    assert (harness.phase(), harness.core.statuses("chat")[0].last_error) == ("loading", "no answer")
    harness.core.on_endpoint_probed("chat", "v-1", None, now_s=harness.now_s)

    assert (harness.phase(), harness.orders()) == ("ready", (Publish(one, ("http://x:1",)),))


def test_every_command_with_an_older_token_is_refused_and_changes_nothing() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.ensure(one, token=7)
    before = harness.core.to_store()

    with pytest.raises(StaleFencingToken, match="token 6 is older than 7"):
        harness.ensure(launch("v-2"), token=6)
    with pytest.raises(StaleFencingToken):
        harness.stop(token=6)
    with pytest.raises(StaleFencingToken):
        harness.drain(token=6)
    with pytest.raises(StaleFencingToken):
        harness.core.cancel("chat", "v-1", token=6)

    assert harness.core.to_store() == before


def test_nothing_in_the_fleet_is_timed_by_a_wall_clock() -> None:
    """One that was set back an hour left a frozen engine its users, and a stop its memory, for that hour."""
    modules = Path(fleet.__file__).parent.glob("*.py")

    assert [path.name for path in modules if "time.time()" in path.read_text()] == []


def test_a_restarted_fleet_times_its_waits_anew() -> None:
    """Its clock may be another host's."""
    harness, one = Harness(), launch()
    harness.ready(one, in_flight=2)
    harness.stop()
    harness.core, harness.now_s = FleetCore(harness.core.to_store(), now_s=7.0), 7.0
    harness.report(one, in_flight=2)
    harness.do()
    waits = harness.orders()
    harness.now_s += 15.0

    assert (waits, [type(order) for order in harness.orders()]) == ((), [DeleteApp])


def test_a_restarted_fleet_continues_from_its_stored_state() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.ready(launch("v-2"))
    harness.stop("v-2", token=9)
    harness.core = FleetCore(harness.core.to_store())

    assert (harness.phase("v-1"), harness.phase("v-2")) == ("loading", "stopping")
    assert harness.do() == (RunApp(one, 0), Publish(launch("v-2"), ()))
    assert harness.orders() == (DeleteApp(launch("v-2"), (HostProcess("n", 40, 1),)),)
    with pytest.raises(StaleFencingToken):
        harness.ensure(one, token=8)


def test_a_fleet_without_stored_state_adopts_the_replicas_that_report() -> None:
    harness, one = Harness(), launch()

    harness.report(one)

    assert (harness.phase(), harness.orders()) == ("ready", (Publish(one, ("http://h:0",)),))


def endpoint_harness() -> tuple[Harness, Launch]:
    harness, one = Harness(), launch(model_dir=None, url="http://e/v1")
    harness.ensure(one)
    return harness, one


def probe(
    harness: Harness, text: str | None, *, after_s: float = 0.0, may_heal: bool = True
) -> tuple[str, str | None]:
    """The endpoint's phase and error after a probe."""
    harness.now_s += after_s
    error = None if text is None else EndpointError(text, may_heal)
    harness.core.on_endpoint_probed("chat", "v-1", error, now_s=harness.now_s)
    (status,) = harness.core.statuses("chat")
    return status.phase, status.last_error


def test_an_endpoint_says_at_once_why_it_does_not_load_and_fails_after_a_minute() -> None:
    harness, _ = endpoint_harness()

    assert probe(harness, "answers 503", after_s=1) == ("loading", "answers 503")
    assert probe(harness, "answers 503", after_s=58) == ("loading", "answers 503")
    assert probe(harness, "answers 503", after_s=1) == ("failed", "answers 503")


def test_an_endpoint_whose_answer_stays_wrong_fails_at_its_first_probe() -> None:
    harness, _ = endpoint_harness()

    assert probe(harness, "answers 401", after_s=0.1, may_heal=False) == ("failed", "answers 401")


def test_a_ready_endpoint_that_begins_to_refuse_keeps_its_place() -> None:
    """What it answers users is judged by the gates; the fleet alone does not take it away."""
    harness, _ = endpoint_harness()
    probe(harness, None)

    assert probe(harness, "answers 401", after_s=10, may_heal=False) == ("ready", "answers 401")


def test_a_ready_endpoint_is_probed_every_ten_seconds_and_keeps_its_place_when_a_probe_fails() -> None:
    harness, one = endpoint_harness()
    probe(harness, None)
    harness.do()
    early = harness.orders()
    harness.now_s += 10
    due = [order for order in harness.orders() if isinstance(order, Probe)]

    assert early == ()
    assert due == [Probe(one, "", "http://e/v1")]
    assert probe(harness, "answers 503") == ("ready", "answers 503")
    assert [order.urls for order in harness.orders() if isinstance(order, Publish)] == [("http://e/v1",)]
    assert probe(harness, None) == ("ready", None)


def test_a_replaced_engine_clears_the_error_of_the_one_that_died() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.report(one, "failed")
    harness.report(one, "ready")
    (status,) = harness.core.statuses("chat")

    assert (status.phase, status.ready_replicas, status.last_error) == ("ready", 1, None)


# ---- replicas that leave, and replicas that hang


def two_ready() -> tuple[Harness, Launch]:
    harness, one = Harness(), launch(replicas=2)
    harness.ready(one)
    harness.do()
    return harness, one


def published(harness: Harness) -> list[tuple[str, ...]]:
    return [order.urls for order in harness.orders() if isinstance(order, Publish)]


def test_a_closing_replica_may_stop_only_when_every_router_has_a_table_without_it() -> None:
    harness, one = two_ready()
    before = harness.core.is_unpublished(one, "http://h:1")
    harness.report(one, "closing", index=1)
    asked = harness.core.is_unpublished(one, "http://h:1")
    orders = harness.do(applied=False)
    unconfirmed = harness.core.is_unpublished(one, "http://h:1")
    again = harness.do(applied=True)

    assert (before, asked, unconfirmed) == (False, False, False)
    assert orders == again == (Publish(one, ("http://h:0",)),)
    assert harness.core.is_unpublished(one, "http://h:1")
    assert not harness.core.is_unpublished(one, "http://h:0")
    assert harness.orders() == ()


def test_replicas_that_close_are_counted_as_drained_and_those_that_die_are_not() -> None:
    harness, one = two_ready()
    harness.report(one, "closing", index=1)
    harness.report(one, "closing", index=1)
    harness.report(one, "ready", index=2)
    harness.report(one, "stalled", index=2)
    harness.report(one, "closing", index=2)
    harness.report(one, "failed", index=0)
    harness.core.on_replica_lost("chat", one.version, "r0")
    (status,) = harness.core.statuses("chat")

    assert (status.ready_replicas, status.drained_replicas) == (0, 1)


def test_the_only_replica_that_closes_leaves_an_empty_arm() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.report(one, "closing")

    assert harness.do() == (Publish(one, ()),)
    assert harness.core.is_unpublished(one, "http://h:0")
    assert harness.phase() == "loading"


def test_a_closing_replica_of_a_version_that_is_gone_waits_for_nothing_and_is_not_adopted() -> None:
    harness, one = Harness(), launch()
    harness.report(one, "closing")

    assert harness.core.is_unpublished(one, "http://h:0")
    assert (harness.phase(), harness.orders()) == (None, ())


def test_a_restarted_fleet_publishes_before_it_lets_a_closing_replica_stop() -> None:
    harness, one = two_ready()
    harness.core = FleetCore(harness.core.to_store())
    harness.report(one, "closing", index=0)
    early = harness.core.is_unpublished(one, "http://h:0")
    harness.do()

    assert (early, harness.core.is_unpublished(one, "http://h:0")) == (False, True)


def test_requests_in_flight_are_published_where_routers_have_a_choice() -> None:
    harness, one = two_ready()
    harness.report(one, index=0, in_flight=7)
    at_once = harness.orders()
    harness.now_s += 0.5
    harness.report(one, index=1, in_flight=2)

    assert at_once == ()
    assert harness.do() == (Publish(one, ("http://h:0", "http://h:1"), (7, 2)),)
    assert harness.orders() == ()


def test_requests_in_flight_of_a_single_replica_make_no_publication() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.now_s += 1.0
    harness.report(one, in_flight=7)

    assert harness.orders() == ()


def silent(harness: Harness, count: int, *, index: int = 1) -> None:
    """The replica leaves that many probes unanswered; the others report on."""
    for _ in range(count):
        harness.core.on_replica_probed("chat", "v-1", f"r{index}", None, now_s=harness.now_s)


def test_a_silent_replica_leaves_the_table_at_once_while_another_answers() -> None:
    harness, one = two_ready()
    harness.now_s += 3.1
    harness.report(one, index=0)
    probes = [order for order in harness.orders() if isinstance(order, Probe)]
    silent(harness, 1)

    assert probes == [Probe(one, "r1", "http://h:1", HostProcess("n", 41, 1))]
    assert published(harness) == [("http://h:0",)]


def test_the_last_replica_leaves_the_table_at_its_sixth_silence() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    kept = []
    for _ in range(6):
        silent(harness, 1, index=0)
        kept.append(harness.core.statuses("chat")[0].urls)
    (status,) = harness.core.statuses("chat")

    assert kept == [*[("http://h:0",)] * 5, ()]
    assert status.last_error == "an engine at http://h:0 has hung; it is replaced"


def test_a_replica_that_hangs_is_replaced_and_one_that_answers_again_is_not() -> None:
    harness, one = two_ready()
    harness.now_s += 3.1
    harness.report(one, index=0)
    silent(harness, 23)
    still_probed = [type(order) for order in harness.orders() if not isinstance(order, Publish)]
    silent(harness, 1)
    due = [order for order in harness.orders() if isinstance(order, Replace)]
    harness.report(one, index=1)

    assert still_probed == [Probe]
    assert due == [Replace(one, "r1", (HostProcess("n", 41, 1),))]
    assert not any(isinstance(order, Replace) for order in harness.orders())
    assert harness.core.statuses("chat")[0].urls == ("http://h:0", "http://h:1")


def test_a_replica_that_loads_may_be_silent_for_long() -> None:
    harness, one = Harness(), launch()
    harness.ensure(one)
    harness.do()
    harness.report(one, "loading")
    harness.now_s += 3.1
    silent(harness, 59, index=0)
    before = [type(order) for order in harness.orders()]
    silent(harness, 1, index=0)

    assert (before, [type(order) for order in harness.orders()]) == ([Probe], [Replace])


def test_a_corrected_clock_makes_nobody_hang() -> None:
    harness, _ = two_ready()
    harness.now_s += 86_400
    orders = harness.orders()

    assert {type(order) for order in orders} == {Publish, Probe}
    assert published(harness) == [("http://h:0", "http://h:1")]


def test_a_replica_whose_reports_are_lost_keeps_its_place_by_its_own_answers() -> None:
    harness, _ = two_ready()
    harness.now_s += 3.1
    state = ReplicaState(in_flight=4, is_ready=True)
    harness.core.on_replica_probed("chat", "v-1", "r1", state, now_s=harness.now_s)
    there = harness.core.statuses("chat")[0]
    harness.core.on_replica_probed("chat", "v-1", "r1", ReplicaState(4, False), now_s=harness.now_s)

    assert (there.urls, there.in_flight) == (("http://h:0", "http://h:1"), 4)
    assert harness.core.statuses("chat")[0].urls == ("http://h:0",)


def test_a_stalled_engine_leaves_the_table_and_comes_back_when_it_goes_on() -> None:
    harness, one = two_ready()
    harness.report(one, "stalled", index=1, in_flight=3)
    without = published(harness)
    harness.report(one, index=1)

    assert without == [("http://h:0",)]
    assert harness.core.statuses("chat")[0].urls == ("http://h:0", "http://h:1")


def test_the_highest_fence_of_a_services_replicas_is_known() -> None:
    harness, one = two_ready()
    report, _ = harness.core._versions["chat", "v-1"].reports["r0"]
    harness.core.on_report(one, replace(report, fence_epoch=17), now_s=harness.now_s)

    assert (harness.core.fence_epoch("chat"), harness.core.fence_epoch("other")) == (17, 0)


def test_a_replica_that_uses_no_cpu_time_hangs_three_times_as_soon() -> None:
    harness, one = two_ready()
    harness.now_s += 3.1
    harness.report(one, index=0)
    due = []
    for _ in range(8):
        due.append(any(isinstance(order, Replace) for order in harness.orders()))
        harness.core.on_replica_probed("chat", "v-1", "r1", None, now_s=harness.now_s, is_still=True)

    assert due == [False] * 8
    assert any(isinstance(order, Replace) for order in harness.orders())


def test_a_restarted_fleet_takes_a_stopping_version_out_of_the_table_before_it_deletes_it() -> None:
    harness, one = Harness(), launch()
    harness.ready(one)
    harness.stop()
    harness.core = FleetCore(harness.core.to_store())
    first = harness.do(applied=False)
    second = harness.do()

    assert first == second == (Publish(one, ()),)
    assert [type(order) for order in harness.orders()] == [DeleteApp]


def test_a_replica_that_was_never_published_waits_for_no_router() -> None:
    harness, one = Harness(), launch(replicas=2)
    harness.ensure(one)
    harness.report(one, "failed", index=0)
    harness.report(one, "closing", index=1)

    assert harness.core.is_unpublished(one, "http://h:1")
