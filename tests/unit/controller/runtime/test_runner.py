"""Runner on a fake controller: lease, its loss, faults, wake-ups."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from controller.api.commands import Commands
from controller.auth import Identity, Role
from controller.errors import StaleToken, Unreachable
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase
from controller.runtime import reconciler, service_keeper, service_loop
from controller.runtime.runner import BEFORE, Runner
from controller.store.sql import SqlStore
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController, LiveClock
from tests.fakes.plane import FakeFleet

ADMIN = Identity("ada", Role.ADMIN)
HOUR = {"stages": [{"weight": "10%", "duration": "1h"}]}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[FakeController]:
    fake = FakeController(tmp_path)
    yield fake
    fake.stop()


def commands(controller: FakeController) -> Commands:
    return Commands(controller.store, controller.environment, LiveClock(), controller.runner)


def up(controller: FakeController, folder: Path) -> None:
    model = write_checkpoint(folder / "stable", seed=1)
    commands(controller).up({"service": "chat", "model": str(model)}, ADMIN)
    until(lambda: "chat" in controller.traffic.tables and controller.fleet.engines, "chat is served")


def deploy(controller: FakeController, folder: Path) -> str:
    model = write_checkpoint(folder / "twin", seed=2)
    body = {"version": {"model": str(model)}, "policy": HOUR}
    rollout = commands(controller).deploy("chat", body, ADMIN).id
    until(lambda: controller.traffic.tables["chat"].weight_bp == 1000, "the canary has traffic")
    return rollout


def until(holds: Callable[[], object], what: str) -> None:
    ends_at_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends_at_s, f"timed out waiting until {what}"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_running_controller_loads_a_lost_stable_again(controller: FakeController, tmp_path: Path) -> None:
    controller.start()
    up(controller, tmp_path)
    controller.fleet.engines.clear()

    until(lambda: controller.fleet.engines, "stable is loaded again")


def test_a_stopped_controller_releases_its_lease_at_once(controller: FakeController) -> None:
    controller.start()
    until(lambda: controller.runner.is_leading, "it leads")

    controller.runner.stop()

    assert controller.store.acquire_lease("next", ttl_s=5.0) is not None


def test_a_controller_stops_without_its_store(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.start()
    until(lambda: controller.runner.is_leading, "it leads")

    def fails(_token: int) -> None:
        raise Unreachable("database x does not answer; check that it runs")

    with monkeypatch.context() as patched:
        patched.setattr(controller.store, "release_lease", fails)
        controller.runner.stop()

    assert not controller.runner.is_leading


@pytest.mark.slow
def test_a_controller_without_the_lease_does_nothing(controller: FakeController, tmp_path: Path) -> None:
    controller.store.acquire_lease("another", ttl_s=9.0)
    controller.start()
    model = write_checkpoint(tmp_path / "stable", seed=1)
    commands(controller).up({"service": "chat", "model": str(model)}, ADMIN)

    time.sleep(0.3)

    assert (controller.runner.is_leading, controller.fleet.engines) == (False, {})


@pytest.mark.slow
def test_a_fenced_controller_acquires_a_higher_token(controller: FakeController, tmp_path: Path) -> None:
    controller.start()
    up(controller, tmp_path)
    before = controller.store.lease().token
    controller.fleet.fence.check(before + 1)

    deploy(controller, tmp_path)

    assert controller.store.lease().token > before


def test_a_controller_that_is_fenced_while_it_renews_leads_again_at_once(tmp_path: Path) -> None:
    """The released lease was renewed, and nobody led until it lapsed, 5 s later."""
    store = SqlStore(f"sqlite:///{tmp_path}/state.db")
    runner = Runner(store, LiveClock(), cast("Any", None), lambda _: 1, holder="host")
    runner._hold_lease()
    first = store.lease().token
    renew = store.renew_lease

    class Fenced:
        def tick(self, token: int | None) -> float:
            raise StaleToken("fenced", newest=first + 5)

    def slow_renew(token: int, *, ttl_s: float) -> bool:
        runner._tick("chat", cast("Any", Fenced()))  # in the service's thread, before the database is asked
        return renew(token, ttl_s=ttl_s)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "renew_lease", slow_renew)
        runner._hold_lease()

    assert (runner.is_leading, store.lease().token) == (True, first + 6)
    store.close()


@pytest.mark.slow
def test_a_rollback_wakes_the_service_at_once(
    controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with its next tick, which here is a minute away."""
    for module, name in (
        (reconciler, "INTERVAL_S"),
        (service_keeper, "INTERVAL_S"),
        (service_loop, "KEEP_S"),
    ):
        monkeypatch.setattr(module, name, 60.0)
    controller.start()
    up(controller, tmp_path)
    deploy(controller, tmp_path)

    commands(controller).rollback("chat", ADMIN, reason="bad")

    until(lambda: controller.traffic.tables["chat"].weight_bp == 0, "stable has all traffic")


@pytest.mark.slow
def test_the_next_controller_finishes_a_rollout(tmp_path: Path) -> None:
    first = FakeController(tmp_path)
    first.start()
    up(first, tmp_path)
    rollout = deploy(first, tmp_path)
    first.runner.stop()
    first.store.append_command(rollout, CommandKind.ROLLBACK, ADMIN, reason="bad", at_s=time.time())

    second = FakeController(tmp_path, store=SqlStore(f"sqlite:///{tmp_path / 'canaryctl.db'}"))
    second.fleet.engines, second.traffic.tables = first.fleet.engines, first.traffic.tables
    second.traffic.set_at_s = first.traffic.set_at_s
    second.start()

    until(lambda: not second.store.running("chat"), "the rollout is over")
    stored = second.store.load(rollout)
    second.stop()
    assert stored is not None
    assert stored.state.phase is Phase.ROLLED_BACK


def test_a_fault_in_one_service_does_not_stop_another(
    controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.start()
    broken = write_checkpoint(tmp_path / "broken", seed=9)
    commands(controller).up({"service": "aaa", "model": str(broken)}, ADMIN)
    observe = FakeFleet.observe

    def faulty(fleet: FakeFleet, service: str) -> object:
        if service == "aaa":
            raise ZeroDivisionError("a bug")
        return observe(fleet, service)

    monkeypatch.setattr(FakeFleet, "observe", faulty)
    up(controller, tmp_path)

    assert ("chat", controller.store.service("chat").stable) in controller.fleet.engines


@pytest.mark.slow
def test_the_last_tick_can_be_read(controller: FakeController, tmp_path: Path) -> None:
    controller.start()
    up(controller, tmp_path)
    rollout = deploy(controller, tmp_path)

    until(lambda: controller.runner.last_tick("chat").rollout == rollout, "a tick has read the evidence")
    last = controller.runner.last_tick("chat")

    assert last.evidence is not None
    assert last.split is not None
    assert json.loads(controller.store.request(rollout))["actor"] == "ada"


@pytest.mark.slow
def test_the_end_of_a_removed_services_ticks_is_told(controller: FakeController, tmp_path: Path) -> None:
    removed: list[str] = []
    controller.runner._on_removed = removed.append
    controller.start()
    up(controller, tmp_path)

    commands(controller).down("chat", ADMIN)

    until(lambda: removed == ["chat"], "its end is told")
    runner = controller.runner
    until(lambda: not (runner._threads or runner._wakes or runner._loops), "nothing of it is kept")


@pytest.mark.slow
def test_the_token_of_an_older_copy_catches_up_in_one_step(tmp_path: Path) -> None:
    """It was one behind the other until it had made up for every start since the copy."""
    controller = FakeController(tmp_path)
    controller.fleet.fence.token = controller.traffic.fence.token = 300
    try:
        controller.start()
        up(controller, tmp_path)
        assert controller.store.lease().token in (301, 302)
        until(lambda: controller.runner.last_tick("chat").problem is None, "the ticks work")
    finally:
        controller.stop()


@pytest.mark.slow
def test_an_order_that_cannot_be_carried_out_keeps_no_service_from_being_ticked(
    controller: FakeController, tmp_path: Path
) -> None:
    """A restarted controller ticked none, and a dead stable engine was not loaded again."""

    def broken() -> None:
        raise Unreachable("an order stays")

    controller.runner._before_services = broken
    controller.start()

    up(controller, tmp_path)

    assert controller.runner.faults.failing == {BEFORE: "an order stays"}
