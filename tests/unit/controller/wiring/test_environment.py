"""The host's environment: measurements are this controller's own, or there are none."""

from __future__ import annotations

import threading

import pytest

from controller.errors import Unreachable
from controller.wiring import environment
from controller.wiring.environment import HostEnvironment
from serving.credentials import KeyReference


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostEnvironment:
    monkeypatch.setattr(environment, "MEASURE_WAIT_S", 0.01)
    return HostEnvironment(None, None, has_variable=lambda name: True)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_leading", [False, True], ids=["a standby", "a new leader"])
def test_a_controller_that_measures_nothing_says_so(host: HostEnvironment, is_leading: bool) -> None:
    host.is_reading = lambda: is_leading
    host.measuring |= set() if is_leading else {"chat"}  # from when it led

    with pytest.raises(Unreachable, match="does not measure the traffic of chat: another one leads, or it"):
        host.require_measuring("chat")


def test_a_leader_that_has_read_the_log_measures(host: HostEnvironment) -> None:
    host.measuring.add("chat")

    host.require_measuring("chat")


def test_nothing_is_kept_of_a_removed_service(host: HostEnvironment) -> None:
    host.measuring.add("chat")
    host.meters["chat"] = host.readers["chat"] = object()  # type: ignore[assignment]

    host.forget("chat")

    assert (host.meters, host.readers, host.measuring) == ({}, {}, set())


def test_a_key_file_that_hangs_holds_nobody(host: HostEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    is_mended = threading.Event()
    monkeypatch.setattr(environment, "key_problem", lambda reference: is_mended.wait(60) and None)
    monkeypatch.setattr(host._keys, "_wait_s", 0.01)

    found = host.key_problem(KeyReference("file", "/mnt/dead/key"))
    is_mended.set()

    assert found is not None
    assert "was not read within" in found.text


def test_a_standby_gives_out_no_memory(host: HostEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LEAD_WAIT_S", 0.01)
    host.require_leading()

    host.is_reading = lambda: False
    with pytest.raises(Unreachable, match="another controller leads; ask that one"):
        host.require_leading()
