"""A lease that cannot be renewed, as on a full disk: every service says that nobody leads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.errors import Unreachable
from controller.runtime import runner, service_loop
from controller.store.rows import Lease
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

ADMIN = Identity("ada", Role.ADMIN)


def until(holds: Callable[[], object], what: str) -> None:
    ends_at_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends_at_s, f"timed out waiting until {what}"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("is_renewed", [False, True])
def test_a_lease_that_nobody_renews_is_every_services_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_renewed: bool
) -> None:
    """`status` said that all was well, of a controller that kept, reloaded and decided nothing."""
    for module in (runner, service_loop):
        monkeypatch.setattr(module, "PAUSE_S", 0.05)
    monkeypatch.setattr(runner, "RENEW_S", 0.05)
    first = FakeController(tmp_path)
    first.start()
    first.commands.up({"service": "chat", "model": str(write_checkpoint(tmp_path / "a", seed=1))}, ADMIN)
    until(lambda: first.runner.last_tick("chat").at_s, "the service is ticked")
    seen: list[float] = []

    def full(*_: object, **__: object) -> bool:
        raise Unreachable("database or disk is full; free disk space")

    def moving() -> Lease:
        seen.append(0.0)
        return Lease("other", 9, float(len(seen)))

    monkeypatch.setattr(runner, "CONTROLLER_LEASE_S", 0.2)
    monkeypatch.setattr(first.store, "renew_lease", full)
    if is_renewed:
        monkeypatch.setattr(first.store, "lease", moving)

    def text() -> str:
        found = first.runner.last_tick("chat").problem
        return found.text if found is not None else ""

    if is_renewed:  # by another controller, which can write
        until(lambda: len(seen) > 9, "the lease was read")
        assert text() == ""
    else:
        until(text, "the problem is told")
        assert text() == (
            "no controller leads, for the lease cannot be renewed: database or disk is full; free disk space"
        )
        monkeypatch.undo()
        until(lambda: not text(), "the lease is held again")
    first.stop()
