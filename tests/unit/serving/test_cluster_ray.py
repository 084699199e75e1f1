"""Checks before a Ray head is started, and the stored handle of a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serving import cluster_environment, cluster_ray
from serving.cluster_ray import ClusterError, ClusterHandle, ClusterProcess, ClusterSettings, PortBusy
from serving.loopback import free_ports
from serving.process_start import start_ticks


def test_a_busy_port_is_reported_with_its_process_and_nothing_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(PortBusy, match=rf"port {port} on 127\.0\.0\.1 is taken.*choose another"):
            cluster_ray.start(ClusterSettings(http_port=port))


def test_a_folder_that_would_make_socket_paths_too_long_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 40)

    with pytest.raises(ClusterError, match="choose a shorter one"):
        cluster_ray.start(ClusterSettings(temp_dir=folder))

    assert not folder.exists()


def test_a_handle_survives_json() -> None:
    handle = ClusterHandle("127.0.0.1:1", 2, "/tmp/x", (ClusterProcess(3, 45),))

    assert ClusterHandle.from_json(handle.to_json()) == handle


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"address": 1, "processes": [{"pid": 1}]}'])
def test_a_malformed_handle_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="not a record of a Ray cluster"):
        ClusterHandle.from_json(text)


def test_stopping_a_cluster_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    handle = ClusterHandle("127.0.0.1:1", 2, str(tmp_path / "none"), (ClusterProcess(1, 0),))

    assert cluster_ray.stop(handle) == ()


def test_a_variable_of_a_running_clusters_environment_is_found() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; print('started', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"EXAMPLE_KEY": "sk-1", "EMPTY_KEY": ""},
    )
    try:
        # Before it runs, the system may not show its environment yet.
        assert child.stdout is not None
        assert child.stdout.readline() == b"started\n"
        process = ClusterProcess(child.pid, start_ticks(child.pid) or 0)
        handle = ClusterHandle("127.0.0.1:1", 1, "/nowhere", (process,))
        ended = replace(handle, processes=(replace(process, start_ticks=1),))
        names = ("EXAMPLE_KEY", "EMPTY_KEY", "OTHER_KEY")

        found = [cluster_ray.has_variable(handle, name) for name in names]

        assert (found, cluster_ray.has_variable(ended, "OTHER_KEY")) == ([True, False, False], True)
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as one:
        yield one
        one.kill()


def test_a_process_of_a_cluster_is_ended_though_the_clock_was_set(
    child: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = ClusterProcess(child.pid, start_ticks(child.pid) or 0)
    handle = ClusterHandle("127.0.0.1:1", 2, str(tmp_path / "none"), (process,))
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 1.0)

    assert cluster_ray.stop(handle) == (child.pid,)


def test_no_process_of_another_boot_is_ended(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process = ClusterProcess(child.pid, start_ticks(child.pid) or 0)
    handle = ClusterHandle("127.0.0.1:1", 2, str(tmp_path / "none"), (process,), "another boot")

    assert (cluster_ray.stop(handle), child.poll()) == ((), None)


def test_a_record_of_an_earlier_release_names_no_process() -> None:
    old = '{"address": "a:1", "http_port": 2, "temp_dir": "/x", "processes": [{"pid": 1, "created_s": 1.5}]}'

    assert ClusterHandle.from_json(old) == ClusterHandle("a:1", 2, "/x", (), "")


def test_a_cluster_that_does_not_answer_leaves_no_variables_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    names = cluster_environment.of_driver(tmp_path)
    before = {name: os.environ.get(name) for name in names}
    (port,) = free_ports(1)

    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        cluster_ray.connect(ClusterHandle(f"127.0.0.1:{port}", 1, str(tmp_path), ()))

    assert {name: os.environ.get(name) for name in names} == before


def test_a_cluster_whose_token_is_lost_is_named_so(tmp_path: Path) -> None:
    """Ray's own 480 characters advised to make another, with which no cluster can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        handle = ClusterHandle(f"127.0.0.1:{head.getsockname()[1]}", 2, str(tmp_path), ())

        with pytest.raises(ClusterError) as refused:
            cluster_ray.connect(handle)

    assert str(refused.value) == (
        f"the token of the Ray cluster at {handle.address} is not at {tmp_path / 'token'}; put the file "
        "back, or run this on the host where Ray was started"
    )
