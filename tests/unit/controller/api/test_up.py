"""`up`: one controller gives out the memory, and the same request twice is one service."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controller.api.commands import Commands
from controller.auth import Identity, Role
from controller.errors import Conflict, Unreachable
from controller.planning.capacity import Device
from controller.quantities import GIB
from controller.settings import Settings
from controller.store.sql import SqlStore
from controller.wiring import launches
from controller.wiring.launches import Versions
from tests.database_rig import sqlite_url
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeEnvironment, LiveClock, NoTicks

ADA = Identity("ada", Role.ADMIN)


class Host(FakeEnvironment):
    """With real reservations, on a host with room for one engine."""

    versions: Versions

    def devices(self, *, restoring: str | None = None) -> Sequence[Device]:
        return self.versions.devices(restoring=restoring)


def test_the_same_up_twice_at_once_is_one_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    settings = Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path / 'state.db'}")
    host, both = Host(), threading.Barrier(2, timeout=5.0)
    host.versions = Versions(settings, store, lambda service: ())
    monkeypatch.setattr(launches, "devices", lambda: (Device("host", "host", 16 * GIB, 6 * GIB),))
    # Both have seen that there is no such service.
    monkeypatch.setattr(host, "kv_bytes", lambda version: both.wait() or GIB)
    body = {
        "service": "chat",
        "model": str(write_checkpoint(tmp_path / "m")),
        "kv_cache_memory_bytes": "3GiB",
    }
    commands = Commands(store, host, LiveClock(), NoTicks())

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda actor: commands.up(body, actor), [ADA, ADA])

    assert first.stable == second.stable
    assert [row.name for row in store.services()] == ["chat"]
    store.close()


def test_a_standby_creates_no_service(tmp_path: Path) -> None:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    host = Host()
    host.is_leading = False
    commands = Commands(store, host, LiveClock(), NoTicks())

    with pytest.raises(Unreachable, match="another controller leads"):
        commands.up({"service": "chat", "model": str(write_checkpoint(tmp_path / "m"))}, ADA)

    assert store.services() == ()
    store.close()


def test_what_serves_under_the_name_is_not_replaced_by_a_database_that_does_not_know_it(
    tmp_path: Path,
) -> None:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    host = FakeEnvironment(tables={"chat": "v-promoted"})
    commands = Commands(store, host, LiveClock(), NoTicks())
    body = {"service": "chat", "model": str(write_checkpoint(tmp_path / "m"))}

    with pytest.raises(Conflict, match=r"chat is served by v-promoted .* restore it .* canaryctl down"):
        commands.up(body, ADA)

    assert store.services() == ()
    store.close()
