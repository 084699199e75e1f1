"""The record of the Ray cluster: there before Ray runs, gone with it, no obstacle when it is unreadable."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from controller.errors import Unreachable
from controller.private_file import write_private
from controller.settings import Settings
from controller.wiring import cluster
from serving import cluster_ray
from serving.cluster_ray import ClusterHandle

# A `ray start` that leaves a daemon.
LEAVES_A_DAEMON = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(300)'], start_new_session=True, "
    "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); open(sys.argv[1] + '/started', 'w').close()"
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(cluster_ray, "_haproxy_binary", lambda: "/bin/true")
    return Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}/canaryctl.db")


def starts(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(
        cluster_ray,
        "_command",
        lambda settings, folder, ports: [sys.executable, "-S", "-c", code, str(folder)],
    )


def running(settings: Settings) -> frozenset[str]:
    return cluster_ray.folders_of(str(settings.home))


def recorded(settings: Settings) -> ClusterHandle:
    return ClusterHandle.from_json(settings.cluster_path.read_text())


@pytest.mark.slow
def test_a_cluster_is_recorded_with_its_processes_and_ended_by_the_record(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(monkeypatch, LEAVES_A_DAEMON)

    cluster.start(settings)

    assert len(recorded(settings).processes) == 1
    assert running(settings) == {recorded(settings).temp_dir}
    assert cluster.stop(settings)
    assert (running(settings), cluster.stop(settings)) == (frozenset(), False)


@pytest.mark.slow
def test_a_cluster_that_cannot_be_recorded_is_not_left_running(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk left an empty record, with which neither up nor down went on, and Ray beside it."""
    starts(monkeypatch, LEAVES_A_DAEMON)
    calls: list[Path] = []

    def full(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_private(path, text)

    monkeypatch.setattr(cluster, "write_private", full)

    with pytest.raises(OSError, match="No space left"):
        cluster.start(settings)
    assert (running(settings), settings.cluster_path.exists()) == (frozenset(), False)


@pytest.mark.slow
def test_an_interrupted_start_leaves_nothing_running(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(monkeypatch, f"{LEAVES_A_DAEMON}; time.sleep(300)")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen: list[str] = []

    def interrupt() -> None:
        ends_at_s = time.monotonic() + 60
        while time.monotonic() < ends_at_s:
            if settings.cluster_path.exists() and Path(recorded(settings).temp_dir, "started").exists():
                seen.append(recorded(settings).temp_dir)
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            cluster.start(settings)
    finally:
        signal.signal(signal.SIGINT, before)

    assert len(seen) == 1  # it was recorded while it started
    assert (running(settings), settings.cluster_path.exists()) == (frozenset(), False)


@pytest.mark.slow
@pytest.mark.parametrize("text", [b"", b"{", b'{"address": 1}', b"\xff{}", b"[" * 100_000])
def test_down_goes_on_past_a_record_that_cannot_be_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    starts(monkeypatch, LEAVES_A_DAEMON)
    cluster.start(settings)
    settings.cluster_path.write_bytes(text)
    assert running(settings)

    with pytest.raises(Unreachable, match="canaryctl down"):
        cluster.is_running(settings)
    assert cluster.stop(settings)
    assert (running(settings), settings.cluster_path.exists()) == (frozenset(), False)
