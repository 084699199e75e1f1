"""`--timeout` holds to within a second, also while the controller hangs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controller.cli import live
from controller.cli.client import Client, poll
from controller.cli.http import Answer, NoAnswer
from controller.cli.render import stages_line
from controller.errors import TimedOut, Unreachable
from controller.rollout.plan import VersionRef
from controller.settings import Settings
from controller.views.models import StepsView
from controller.views.rollout import rollout_view
from tests.fakes.view_maker import in_stage


class Clock:
    """Time that passes only by sleeping and by waiting for answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "sleep", self.pass_s)

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize("timeout_s", [0.2, 5.3, 40.0])
def test_a_wait_ends_at_its_timeout_though_the_controller_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    clock = Clock(monkeypatch)

    def hang(method: str, url: str, *, timeout_s: float, **_: object) -> Answer:
        clock.pass_s(timeout_s)
        raise NoAnswer(url)

    monkeypatch.setattr("controller.cli.client.send", hang)
    client = Client(Settings(home=tmp_path, database_url="sqlite://"))

    with pytest.raises(TimedOut):
        live.watch(client, "chat", "r-1", timeout_s=timeout_s, is_silent=True)

    assert clock.now_s - 1000.0 == pytest.approx(timeout_s, abs=1.0)


@pytest.mark.parametrize(("until_s", "reads"), [(1000.2, 2), (1001.2, 4), (None, 5)])
def test_polling_reads_once_more_at_the_end(
    monkeypatch: pytest.MonkeyPatch, until_s: float | None, reads: int
) -> None:
    """Not half a second late: what came in the last moment still counts."""
    clock = Clock(monkeypatch)
    times: list[float] = []

    def read() -> None:
        times.append(clock.now_s)

    for number, _ in enumerate(poll(read, give_up_s=60.0, until_s=until_s), start=1):
        if number == reads:
            break

    assert times[-1] == pytest.approx(until_s if until_s is not None else 1002.0)


def test_polling_gives_up_on_a_controller_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def read() -> None:
        raise Unreachable("gone")

    with pytest.raises(Unreachable):
        list(poll(read, give_up_s=30.0))

    assert clock.now_s - 1000.0 == pytest.approx(30.0, abs=1.0)


LEAVING = StepsView(
    leaving="v-2", staying="v-1", step="drain", cancelled=False,
    traffic_shift_ms=None, drain_ms=None, unload_ms=None, total_ms=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("rollout", "steps", "ways"),
    [
        ("r-1", None, "follow it: canaryctl watch chat; end it: canaryctl rollback chat"),
        ("u-1", None, "follow it: canaryctl watch chat; end it: canaryctl undo chat --to v-1"),
        ("r-1", LEAVING, "follow it: canaryctl watch chat"),
        ("u-1", LEAVING, "follow it: canaryctl watch chat"),
    ],
)
def test_who_stops_waiting_is_told_what_ends_that_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rollout: str,
    steps: StepsView | None, ways: str,
) -> None:  # fmt: skip
    """A `rollback` leaves an undo alone, so that typing it ended nothing."""
    Clock(monkeypatch)
    state = in_stage(id=rollout, stable=VersionRef("v-1"), canary=VersionRef("v-2"))
    view = rollout_view(state).model_copy(update={"steps": steps})
    monkeypatch.setattr(Client, "rollout", lambda *_, **__: view)
    client = Client(Settings(home=tmp_path, database_url="sqlite://"))

    with pytest.raises(TimedOut) as late:
        live.watch(client, "chat", rollout, timeout_s=2.0, is_silent=True)
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        live.watch(client, "chat", rollout, timeout_s=2.0, is_silent=True)

    assert str(late.value) == f"{rollout} is still running after 2 s; {ways}"
    assert capsys.readouterr().err == f"{rollout} goes on; {ways}\n"


def interrupt(_seconds: float) -> None:
    raise KeyboardInterrupt


def test_a_lost_connection_says_since_when_and_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)

    def gone(*_: object, **__: object) -> None:
        raise Unreachable("gone")

    monkeypatch.setattr(Client, "rollout", gone)

    with pytest.raises(Unreachable):
        live.watch(Client(Settings(home=tmp_path, database_url="sqlite://")), "chat", "r-1", timeout_s=None)

    assert capsys.readouterr().out == (
        "connection to the controller lost; retrying, since 00:00:00; start it: canaryctl up, or bypass it: "
        "canaryctl rollback chat --direct\n"
    )


def test_a_picture_without_a_controller_counts_nothing_down() -> None:
    waits = {"deadline_at_s": 400.0, "waiting_for": ("58 s at 10 %",)}
    view = rollout_view(in_stage()).model_copy(update=waits)

    shown = view.as_it_stands("lost", waits=live.SHOWN_AS_LOST)

    assert (shown.deadline_at_s, shown.waiting_for) == (None, ("the controller, which does not answer",))


def test_the_stages_of_an_ab_test_end_with_b_removed() -> None:
    """A stage of 100 % stood ahead, which can never come."""
    view = rollout_view(in_stage()).model_copy(update={"ab_test": True})

    assert stages_line(view).plain.endswith("○ ends with B removed")
