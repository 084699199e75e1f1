"""A controller whose database file is gone: it decides nothing, says so once, and goes on when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller import telemetry
from controller.api.commands import Commands
from controller.auth import Identity, Role
from controller.errors import LostDatabase
from controller.runtime.runner import SERVICES
from controller.runtime.service_loop import LEASE, ticks_of
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController, LiveClock

ADMIN = Identity("ada", Role.ADMIN)


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    monkeypatch.setattr("controller.runtime.runner.RENEW_S", 0.02)
    monkeypatch.setattr("controller.runtime.runner.PAUSE_S", 0.02)
    monkeypatch.setattr("controller.runtime.service_loop.PAUSE_S", 0.02)
    fake = FakeController(tmp_path)
    fake.start()
    model = write_checkpoint(tmp_path / "stable", seed=1)
    Commands(fake.store, fake.environment, LiveClock(), fake.runner).up(
        {"service": "chat", "model": str(model)}, ADMIN
    )
    until(lambda: "chat" in fake.traffic.tables, "chat is served")
    yield fake
    fake.stop()


def until(holds: Callable[[], object], what: str) -> None:
    ends_at_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends_at_s, f"timed out waiting until {what}"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_lost_file_is_one_line_in_the_log_and_no_new_file(
    controller: FakeController, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a traceback of 60 lines a second, and an empty database that nobody had asked for."""
    logging.getLogger(telemetry.LOGGER).propagate = True
    caplog.set_level(logging.INFO, telemetry.LOGGER)
    (tmp_path / "canaryctl.db").rename(tmp_path / "away.db")

    until(lambda: controller.runner.last_tick("chat").problem, "the ticks fail")
    for place in (LEASE, SERVICES, ticks_of("chat")):
        until(lambda place=place: place in controller.runner.faults.failing, f"{place} fails")  # type: ignore[misc]
    controller.runner.wake("chat")
    with pytest.raises(LostDatabase):
        controller.store.services()
    warned = [line for line in caplog.records if line.levelno >= logging.WARNING]

    assert [(line.levelname, line.getMessage(), line.exc_info) for line in warned] == [
        ("WARNING", "failed, will be retried", None)
    ]
    assert not (tmp_path / "canaryctl.db").exists()

    (tmp_path / "away.db").rename(tmp_path / "canaryctl.db")
    until(lambda: controller.runner.last_tick("chat").problem is None, "ticks work again")
    until(lambda: not controller.runner.faults.failing, "everything works again")
    until(lambda: "works again" in [line.getMessage() for line in caplog.records], "the log says so")


def test_ticks_without_the_lease_say_too_that_the_file_is_gone(
    controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease cannot be renewed either, and ticks without one told nothing."""
    monkeypatch.setattr(controller.runner, "_valid_token", lambda: None)
    (tmp_path / "canaryctl.db").rename(tmp_path / "away.db")

    until(lambda: controller.runner.last_tick("chat").problem, "the ticks fail")
    found = controller.runner.last_tick("chat").problem
    assert found is not None
    assert "is gone" in found.text
    (tmp_path / "away.db").rename(tmp_path / "canaryctl.db")
