"""A state folder for commands, and a controller on fakes that serves `chat` from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.cli.main import run
from controller.rollout.actions import ProbeKind
from tests.fakes.controller import FakeController


def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as that of all commands of this test.

    They do not read who listens on a port: the kernel takes 3 to 10 ms for that, at each request. Tests of
    the listener and of the client's token do.
    """
    monkeypatch.setattr("controller.cli.listener.TABLES", ())
    monkeypatch.setenv("CANARYCTL_HOME", str(home))
    monkeypatch.delenv("CANARYCTL_API_PORT", raising=False)
    home.mkdir(exist_ok=True)
    return home


@contextmanager
def serving_chat(
    home: Path, model: Path, *options: str, is_loaded: bool = False, is_preflight_open: bool = False
) -> Iterator[FakeController]:
    """A controller that was told to serve the checkpoint. is_loaded: it does. is_preflight_open: a preflight
    never ends."""
    fake = FakeController(home)
    if is_preflight_open:
        fake.probes.results[ProbeKind.PREFLIGHT] = ("running", "")
    fake.serve()
    assert run(["up", "--service", "chat", "--model", str(model), *options, "--no-wait"]) == 0
    if is_loaded:
        until(lambda: "chat" in fake.traffic.tables, "stable is in the table")
        until(lambda: fake.fleet.engines, "stable is loaded")
    yield fake
    fake.stop()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for the condition; sixty seconds at most."""
    ends_at_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_at_s, f"not within 60 s: {what}"
        time.sleep(0.01)
