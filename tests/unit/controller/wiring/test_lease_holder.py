"""Lease of a controller that has died: released by the next one on the same host, and by no other."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from controller.store.sql import SqlStore
from controller.wiring import lease_holder as module
from controller.wiring.lease_holder import lease_holder, release_orphaned_lease
from tests.database_rig import sqlite_url

OWN = os.getpid()


def before(pid: int, start: str = "1.00") -> str:
    """A holder as an earlier release wrote it."""
    return f"{module._host()}/{pid}/{start}"


def ended() -> int:
    """Pid of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


HOLDERS: dict[str, tuple[Callable[[], str], bool]] = {
    "alive": (lease_holder, False),
    "ended": (lambda: f"{module._host()},{ended()},7", True),
    "its pid is another's": (lambda: f"{module._host()},{OWN},7", True),
    "elsewhere": (lambda: f"{module._host().replace(',', ',another-boot-', 1)},{OWN},7", False),
    "of an earlier release, ended": (lambda: before(ended()), True),
    "of an earlier release, may be alive": (lambda: before(OWN), False),
    "none": (str, False),
    "another program's": (lambda: "a/b", False),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_only_the_lease_of_a_dead_process_of_this_host_is_released(tmp_path: Path, kind: str) -> None:
    holder, is_released = HOLDERS[kind]
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    store.acquire_lease(holder(), ttl_s=5.0)

    release_orphaned_lease(store)

    acquired = store.acquire_lease("next", ttl_s=5.0)
    store.close()
    assert (acquired is not None) is is_released


def test_a_clock_that_is_set_does_not_make_a_living_holder_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease was given away, and two acted."""
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    store.acquire_lease(lease_holder(), ttl_s=5.0)
    boot_s = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_s + 1.0)

    release_orphaned_lease(store)

    acquired = store.acquire_lease("next", ttl_s=5.0)
    store.close()
    assert acquired is None
