"""Lease of a controller that has died: released by the next one on the same host, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.store.sql import SqlStore
from controller.wiring import controller
from controller.wiring.controller import _lease_holder, _release_orphaned_lease
from tests.database_rig import sqlite_url


def dead() -> str:
    """This process's holder, but started at another time: the pid was used again."""
    return _lease_holder().rsplit("/", 1)[0] + "/1.00"


def on_another_host(monkeypatch: pytest.MonkeyPatch) -> str:
    """A holder of a host with the same name, where pid and start time are those of nobody here."""
    with monkeypatch.context() as there:
        here = controller._host()
        there.setattr(controller, "_host", lambda: here.replace(",", ",another-boot-"))
        return dead()


@pytest.mark.parametrize(("kind", "is_released"), [("alive", False), ("dead", True), ("elsewhere", False)])
def test_only_the_lease_of_a_dead_process_of_this_host_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_released: bool
) -> None:
    holders = {"alive": _lease_holder(), "dead": dead(), "elsewhere": on_another_host(monkeypatch)}
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    store.acquire_lease(holders[kind], ttl_s=5.0)

    _release_orphaned_lease(store)

    acquired = store.acquire_lease("next", ttl_s=5.0)
    store.close()
    assert (acquired is not None) is is_released
