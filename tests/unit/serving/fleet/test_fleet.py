"""The fleet's rules without a cluster: what is ordered next, and when a version is what."""

from __future__ import annotations

import pytest

from serving.fleet.fleet import Cancel, DeleteApp, FleetCore, LoadQueue, Order, Probe, Publish, RunApp
from serving.fleet.types import EngineReport, Launch, Process
from serving.table.route_table import StaleToken


def launch(version: str = "v-1", **changes: object) -> Launch:
    values: dict[str, object] = {"service": "chat", "version": version, "secret": "s", "model_dir": "/m"}
    return Launch(**{**values, **changes})  # type: ignore[arg-type]


class Environment:
    """A core, a clock, and the shortest way to say what happened."""

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
        self.core.report(
            one,
            EngineReport(
                replica=f"r{index}",
                url=f"http://h:{index}",
                phase=phase,  # type: ignore[arg-type]
                in_flight=in_flight,
                memory_bytes=10,
                processes=(Process("n", 40 + index, 1.0),),
                error="broke" if phase == "failed" else None,
            ),
            now_s=self.now_s,
        )

    def do(self, *, applied: bool = True) -> tuple[Order, ...]:
        """Carries out all but deletions and cancellations; what was ordered."""
        orders = self.orders()
        for order in orders:
            if isinstance(order, RunApp):
                self.core.ran(order.launch, None, now_s=self.now_s)
            elif isinstance(order, Publish):
                self.core.published(order, is_applied=applied, now_s=self.now_s)
        return orders

    def ready(self, one: Launch, *, in_flight: int = 0) -> None:
        self.ensure(one)
        self.do()
        for index in range(one.replicas):
            self.report(one, index=index, in_flight=in_flight)
        self.do()

    def phase(self, version: str = "v-1") -> str | None:
        return {sight.version: sight.phase for sight in self.core.sights("chat")}.get(version)


def test_a_wanted_version_is_run_once_and_then_published_when_ready() -> None:
    world, one = Environment(), launch()
    world.ensure(one)

    assert world.do() == (RunApp(one, 0),)
    assert world.do() == ()
    world.report(one, "loading")
    assert (world.do(), world.phase()) == ((), "loading")
    world.report(one)
    assert (world.do(), world.phase()) == ((Publish(one, ("http://h:0",)),), "ready")
    assert world.do() == ()


def test_a_version_is_ready_when_all_its_replicas_are() -> None:
    world, one = Environment(), launch(replicas=2)
    world.ensure(one)
    world.report(one, index=0)
    assert world.phase() == "loading"

    world.report(one, index=1)

    assert world.phase() == "ready"


def test_ensure_again_orders_nothing() -> None:
    world, one = Environment(), launch()
    world.ready(one)

    world.ensure(one)

    assert world.orders() == ()


def test_more_replicas_are_one_more_run_of_the_same_version() -> None:
    world = Environment()
    world.ready(launch())

    world.ensure(launch(replicas=3))

    assert world.orders() == (RunApp(launch(replicas=3), 1),)


def test_a_version_leaves_the_table_before_serve_takes_it_down() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.stop()

    assert world.do(applied=False) == (Publish(one, ()),)
    assert world.do(applied=True) == (Publish(one, ()),)
    assert world.orders() == (DeleteApp(one, (Process("n", 40, 1.0),)),)


def test_stop_lets_requests_under_way_end_for_a_while_then_breaks_them_off() -> None:
    world, one = Environment(), launch()
    world.ready(one, in_flight=2)
    world.stop()
    world.do()

    assert world.orders() == ()
    world.now_s += 5.0
    world.report(one, in_flight=1)
    assert Cancel(one, ("http://h:0",)) in world.orders()
    world.report(one, in_flight=0)
    assert isinstance(world.orders()[0], DeleteApp)


def test_an_engine_that_hangs_does_not_keep_stop_waiting_for_ever() -> None:
    world, one = Environment(), launch()
    world.ready(one, in_flight=2)
    world.stop()
    world.do()

    world.now_s += 15.0

    assert world.orders() == (DeleteApp(one, (Process("n", 40, 1.0),)),)


def test_a_version_is_gone_when_its_processes_are_and_holds_no_memory_then() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.stop()
    world.do()
    assert world.phase() == "stopping"

    world.core.is_gone(one, now_s=world.now_s)

    (sight,) = world.core.sights("chat")
    assert (sight.phase, sight.memory_bytes, sight.urls, world.orders()) == ("gone", 0, (), ())


def test_draining_takes_out_of_the_table_and_leaves_the_engine() -> None:
    world, one = Environment(), launch()
    world.ready(one, in_flight=3)
    world.drain()

    assert world.do() == (Publish(one, ()),)
    assert world.orders() == ()
    (sight,) = world.core.sights("chat")
    assert (sight.phase, sight.in_flight) == ("draining", 3)


def test_a_draining_version_can_come_back() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.drain()
    world.do()

    world.ensure(one)

    assert (world.phase(), world.orders()) == ("ready", (Publish(one, ("http://h:0",)),))


def test_only_a_draining_version_is_broken_off() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    assert world.core.cancel("chat", "v-1", token=1) == ()

    world.drain()

    assert world.core.cancel("chat", "v-1", token=1) == (Cancel(one, ("http://h:0",)),)


def test_a_failed_load_is_taken_down_and_not_tried_again_by_ensure() -> None:
    world, one = Environment(), launch()
    world.ensure(one)
    world.do()
    world.report(one, "failed")
    assert isinstance(world.orders()[0], DeleteApp)
    world.core.is_gone(one, now_s=world.now_s)

    world.ensure(one)

    (sight,) = world.core.sights("chat")
    assert (sight.phase, sight.last_error, world.orders()) == ("failed", "broke", ())


def test_stop_forgets_a_failure() -> None:
    world, one = Environment(), launch()
    world.ensure(one)
    world.do()
    world.report(one, "failed")
    world.stop()
    world.core.is_gone(one, now_s=world.now_s)
    world.ensure(one)

    assert (world.phase(), world.do()) == ("loading", (RunApp(one, 0),))


def test_a_version_that_loses_its_engine_is_not_failed_but_has_no_replica() -> None:
    world, one = Environment(), launch()
    world.ready(one)

    world.report(one, "failed")

    (sight,) = world.core.sights("chat")
    assert (sight.phase, sight.ready_replicas, sight.last_error) == ("ready", 0, "broke")
    assert world.orders() == (Publish(one, ()),)


def test_a_version_that_was_stopped_while_it_loaded_goes() -> None:
    world, one = Environment(), launch()
    world.ensure(one)
    world.do()
    world.report(one, "loading")

    world.stop()

    assert world.orders() == (DeleteApp(one, (Process("n", 40, 1.0),)),)


def test_wanted_again_while_it_goes_it_is_loaded_when_it_is_gone() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.stop()
    world.ensure(one)
    assert world.phase() == "stopping"

    world.core.is_gone(one, now_s=world.now_s)

    assert (world.phase(), world.orders()) == ("loading", (RunApp(one, 0),))


def test_a_silent_replica_is_looked_after_and_leaves_the_table_when_lost() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.now_s += 3.5

    assert Probe(one, "r0", "http://h:0") in world.orders()
    world.core.lost("chat", "v-1", "r0")
    assert world.orders() == (Publish(one, ()),)


def test_replicas_are_published_again_for_a_table_that_was_made_later() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    assert world.orders() == ()

    world.now_s += 2.5

    assert world.orders() == (Publish(one, ("http://h:0",)),)


def test_serve_giving_up_fails_a_loading_version() -> None:
    world, one = Environment(), launch()
    world.ensure(one)

    world.core.ran(one, "no GPU", now_s=world.now_s)

    (sight,) = world.core.sights("chat")
    assert (sight.phase, sight.last_error) == ("failed", "no GPU")


def test_an_external_endpoint_is_ready_when_it_answers() -> None:
    world, one = Environment(), launch(model_dir=None, url="http://x:1")
    world.ensure(one)
    assert world.orders() == (Probe(one, "", "http://x:1"),)

    world.core.answered("chat", "v-1", "no answer", now_s=world.now_s)
    assert (world.phase(), world.core.sights("chat")[0].last_error) == ("loading", "no answer")
    world.core.answered("chat", "v-1", None, now_s=world.now_s)

    assert (world.phase(), world.orders()) == ("ready", (Publish(one, ("http://x:1",)),))


def test_every_command_with_an_older_token_is_refused_and_changes_nothing() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.ensure(one, token=7)
    before = world.core.to_store()

    with pytest.raises(StaleToken, match="token 6 is older than 7"):
        world.ensure(launch("v-2"), token=6)
    with pytest.raises(StaleToken):
        world.stop(token=6)
    with pytest.raises(StaleToken):
        world.drain(token=6)
    with pytest.raises(StaleToken):
        world.core.cancel("chat", "v-1", token=6)

    assert world.core.to_store() == before


def test_a_restarted_fleet_goes_on_where_it_was() -> None:
    world, one = Environment(), launch()
    world.ready(one)
    world.ready(launch("v-2"))
    world.stop("v-2", token=9)
    world.core = FleetCore(world.core.to_store(), now_s=world.now_s)

    assert (world.phase("v-1"), world.phase("v-2")) == ("ready", "stopping")
    assert world.orders() == (RunApp(one, 0), DeleteApp(launch("v-2"), (Process("n", 40, 1.0),)))
    with pytest.raises(StaleToken):
        world.ensure(one, token=8)


def test_a_fleet_without_memory_learns_from_its_replicas_what_runs() -> None:
    world, one = Environment(), launch()

    world.report(one)

    assert (world.phase(), world.orders()) == ("ready", (Publish(one, ("http://h:0",)),))


def test_loads_on_one_device_go_one_after_another_and_on_two_side_by_side() -> None:
    queue = LoadQueue()

    assert queue.try_acquire("a", ["gpu0"])
    assert not queue.try_acquire("b", ["gpu0", "gpu1"])
    assert queue.try_acquire("c", ["gpu1"])
    queue.release("a")
    assert not queue.try_acquire("b", ["gpu0", "gpu1"])
    queue.release("c")
    assert queue.try_acquire("b", ["gpu0", "gpu1"])
    assert queue.holders == {"b"}
