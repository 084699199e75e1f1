"""Which process a command may end: the controller that the state folder has recorded, by its start."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from controller.cli import processes
from controller.errors import CanaryctlError, Conflict, Unreachable
from controller.settings import Settings
from controller.wiring import own_process
from controller.wiring.lease_holder import lease_holder
from controller.wiring.own_process import forget_own, is_own, record_own


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url="sqlite:///none")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this host whose number a controller in a container names as its own."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def answering(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_own_health", lambda settings: {"pid": pid})


@pytest.mark.parametrize("record", ["none", "itself", "elsewhere", "earlier"])
def test_no_other_process_is_ended(
    settings: Settings, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    answering(bystander.pid, monkeypatch)
    host, _, _ = lease_holder().rsplit(",", 2)
    texts = {"elsewhere": f"gpu-7,boot,pid:[1],{bystander.pid},1", "earlier": f"{host},{bystander.pid},1"}
    if record == "itself":
        record_own(settings)
    elif record != "none":
        settings.process_path.write_text(texts[record])

    with pytest.raises(Unreachable, match="stop it there"):
        processes.stop_controller(settings)

    assert bystander.poll() is None


@pytest.mark.slow
def test_the_recorded_controller_is_ended(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, time; from pathlib import Path; from controller.settings import Settings; "
        "from controller.wiring.own_process import record_own; "
        "record_own(Settings(home=Path(sys.argv[1]), database_url='sqlite:///none')); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(settings.home)]) as process:
        assert processes._wait_until(settings.process_path.exists, timeout_s=60)
        answering(process.pid, monkeypatch)
        try:
            processes.stop_controller(settings)

            assert process.poll() is not None or not is_own(settings, process.pid)
        finally:
            process.kill()


def test_a_controller_of_an_earlier_release_is_known_by_its_command_and_folder(settings: Settings) -> None:
    argv = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(300)", "controller"]
    for home, is_known in ((settings.home, True), (settings.home / "other", False)):
        environment = {**os.environ, "CANARYCTL_HOME": str(home)}
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = is_own(settings, process.pid)
            process.kill()

        assert found is is_known


def test_a_second_controller_that_was_killed_takes_nothing_from_the_first(settings: Settings) -> None:
    """It had written its record over the first one's, which no command could end any more."""
    argv = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(300)", "controller"]
    environment = {**os.environ, "CANARYCTL_HOME": str(settings.home)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        host, pid, _ = lease_holder().rsplit(",", 2)
        settings.process_path.write_text(f"{host},{pid},1")
        found = is_own(settings, process.pid)
        process.kill()

    assert found


def test_another_users_controller_is_told_in_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(pid: int, number: int) -> None:
        raise PermissionError

    record_own(settings)
    answering(os.getpid(), monkeypatch)
    monkeypatch.setattr(os, "kill", refused)

    with pytest.raises(CanaryctlError, match="belongs to another user"):
        processes.stop_controller(settings)


def test_a_record_is_taken_away_by_its_own_process_alone(settings: Settings) -> None:
    record_own(settings)
    own = settings.process_path.read_text()
    settings.process_path.write_text("another")
    forget_own(settings)
    assert settings.process_path.exists()

    settings.process_path.write_text(own)
    forget_own(settings)
    assert not settings.process_path.exists()
    assert own_process.is_own(settings, os.getpid()) is False


@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_state_folder_is_used_without_writing_its_lock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """`down` ended with bad input, and no other folder knows the cluster that serves."""
    lock = settings.home / "up.lock"
    if exists:
        lock.touch()
    opened = Path.open

    def read_only(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode != "r":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", read_only)

    with processes.exclusive_access(settings):
        if exists:
            with pytest.raises(Conflict, match="another canaryctl up or down"), _again(settings):
                raise AssertionError("two hold it")


def _again(settings: Settings) -> AbstractContextManager[None]:
    return processes.exclusive_access(settings)


def test_a_controller_leads_where_its_record_cannot_be_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its command then, and no older record stands for it."""
    settings.process_path.write_text("gpu-7,boot,pid:[1],1,1")

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(own_process, "write_private", full)

    record_own(settings)

    assert not settings.process_path.exists()
    assert not is_own(settings, os.getpid())  # by its command, which is pytest's
