"""Removal without a controller: never of what another host's controller leads, or led last."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.errors import Conflict
from controller.settings import Settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import takedown
from controller.wiring.lease_holder import host_of, lease_holder
from controller.wiring.takedown import _lead, forget_services, refuse_while_led
from serving.process_start import start_ticks
from tests.database_rig import sqlite_url
from tests.fakes.rollouts import STABLE

ELSEWHERE = "gpu-7,boot,pid:[1]/41/1.00"


class Store:
    """A store with a service, whose clock advances by `sleep` alone."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 100.0
        self.url = sqlite_url(folder / "canaryctl.db")
        self.store = SqlStore(self.url, clock=lambda: self.now_s)
        row = ServiceRow("chat", "{}", STABLE, "s", 1.0)
        self.store.put_service(row, VersionRow("chat", STABLE, "{}", "{}", 1.0))

    def sleep(self, seconds: float, also: Callable[[], object] = lambda: None) -> None:
        self.now_s += seconds
        also()


@pytest.fixture
def rig(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_lease_that_is_renewed_is_not_waited_for(rig: Store) -> None:
    lease = rig.store.acquire_lease(ELSEWHERE, ttl_s=5.0)
    assert lease is not None

    def renewing(seconds: float) -> None:
        rig.sleep(seconds, lambda: rig.store.renew_lease(lease.token, ttl_s=5.0))

    with (
        pytest.raises(Conflict, match="a controller on gpu-7 leads"),
        _lead(rig.store, clock=lambda: rig.now_s, sleep=renewing),
    ):
        raise AssertionError("two lead")
    assert rig.now_s < 101.0


def test_a_controller_of_this_host_is_named_by_its_process(rig: Store) -> None:
    """It said to run `down` where it was run, of a controller whose API did not answer."""
    own = lease_holder().rsplit(",", 2)[0]
    lease = rig.store.acquire_lease(f"{own},{os.getppid()},{start_ticks(os.getppid())}", ttl_s=5.0)
    assert lease is not None

    def renewing(seconds: float) -> None:
        rig.sleep(seconds, lambda: rig.store.renew_lease(lease.token, ttl_s=5.0))

    with (
        pytest.raises(Conflict, match=f"if it does not answer: kill {os.getppid()}, then"),
        _lead(rig.store, clock=lambda: rig.now_s, sleep=renewing),
    ):
        raise AssertionError("two lead")


def test_the_lease_of_a_host_that_has_died_is_waited_for(rig: Store) -> None:
    first = rig.store.acquire_lease(ELSEWHERE, ttl_s=5.0)
    assert first is not None

    with _lead(rig.store, clock=lambda: rig.now_s, sleep=rig.sleep) as token:
        held = rig.store.lease()

    assert (token, held.token, rig.now_s >= 105.0) == (first.token + 1, token, True)
    assert rig.store.lease().expires_at_s == 0.0  # a new controller need not wait


def test_services_are_forgotten_where_nobody_leads(rig: Store, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=rig.url)

    assert (forget_services(settings), forget_services(settings)) == (True, False)
    assert rig.store.services() == ()


HERE = lease_holder()
OWN = host_of(HERE)[0]
LAST = {
    "another host": (ELSEWHERE, True),
    "another host of this name": (HERE.replace(",", ",another-boot-", 1), True),
    "this host": (HERE, False),
    "this host, of an older release": (f"{OWN}/41/1.00", False),
    "nobody": ("", False),
}


@pytest.mark.slow
@pytest.mark.parametrize("last", LAST)
def test_what_another_host_led_last_is_refused_however_often_it_is_asked(
    rig: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Its controller may be down while its cluster serves."""
    monkeypatch.setattr(takedown, "_is_shared", lambda settings: True)
    holder, is_refused = LAST[last]
    lease = rig.store.acquire_lease(holder, ttl_s=5.0)
    assert lease is not None
    rig.store.release_lease(lease.token)
    settings = Settings(home=tmp_path, database_url=rig.url)

    for _ in range(2):
        if is_refused:
            with pytest.raises(Conflict, match="run canaryctl down there"):
                refuse_while_led(settings)
        else:
            refuse_while_led(settings)

    assert rig.store.services()


def test_another_hosts_services_are_left_where_this_host_has_a_cluster(
    rig: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby with a cluster of its own forgot what the first host's Ray went on serving."""
    monkeypatch.setattr(takedown, "_is_shared", lambda settings: True)
    settings = Settings(home=tmp_path, database_url=rig.url)
    settings.cluster_path.write_text("{}")
    lease = rig.store.acquire_lease("gpu-7,boot,pid:[1],41,7", ttl_s=5.0)
    assert lease is not None
    rig.store.release_lease(lease.token)

    with pytest.raises(Conflict, match="a controller on gpu-7 led"):
        refuse_while_led(settings)
