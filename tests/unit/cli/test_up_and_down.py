"""Processes that `up` and `down` start and stop on a host: all of their own, and no others."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.cli import processes, services
from controller.cli.main import run
from controller.planning.fingerprint import fingerprint_external
from controller.rollout.actions import ProbeKind
from controller.rollout.observation import CommandKind
from controller.rollout.serialization import state_from_json
from controller.rollout.state import Phase
from controller.runtime.service_loop import LastTick, Problem
from controller.settings import Settings, load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.views.rollout import rollout_view
from controller.wiring import cluster, now_served, takedown
from controller.wiring.launches import Versions
from controller.wiring.now_served import Served
from serving.loopback import free_ports
from serving.messages import SplitStatus
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.rollouts import STABLE, a_rollout

CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder with nothing running."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CANARYCTL_API_PORT", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals sent; the fake controller runs in this process, so none is delivered."""
    sent: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        if number == 0:
            raise ProcessLookupError
        sent.append((pid, number))

    monkeypatch.setattr(os, "kill", kill)
    return sent


@pytest.fixture
def foreign_port() -> Iterator[int]:
    """Port of a web server that is not canaryctl."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def pretend_cluster(home: Path, address: str) -> None:
    handle = {
        "address": address,
        "http_port": free_ports(1)[0],
        "temp_dir": str(home / "ray"),
        "processes": [],
    }
    (home / "cluster.json").write_text(json.dumps(handle))


def test_up_leaves_another_state_folders_controller_alone(
    home: Path,
    model: Path,
    tmp_path: Path,
    signals: list[tuple[int, int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "others").mkdir()
    other = FakeController(tmp_path / "others")
    port = str(other.serve().config.api_port)
    arguments = ["up", "--service", "chat", "--model", str(model)]

    code = run([*arguments, "--port", str(free_ports(1)[0]), "--api-port", port])
    other.stop()

    assert (code, signals) == (4, [])
    assert re.search(rf"port {port} .* taken by another canaryctl; .*--api-port", capsys.readouterr().err)


@pytest.mark.slow
def test_up_stops_the_cluster_when_the_controller_does_not_start(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A record in the state folder simulates Ray.
    monkeypatch.setattr(cluster, "start", lambda settings: pretend_cluster(home, "127.0.0.1:1"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    port, api_port = free_ports(2)
    ports = ["--port", str(port), "--api-port", str(api_port)]

    assert run(["up", "--service", "chat", "--model", str(model), *ports]) == 4
    assert "the controller exited immediately" in capsys.readouterr().err
    assert not (home / "cluster.json").exists()


@pytest.mark.slow
def test_up_can_change_a_dead_controllers_port_while_its_cluster_runs(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    SqlStore(load_settings().database_url).close()
    port = free_ports(1)[0]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pretend_cluster(home, f"127.0.0.1:{listening.getsockname()[1]}")
        code = run(["up", "--service", "chat", "--model", str(model), "--api-port", str(port)])

    assert code == 4
    assert "the controller exited immediately" in capsys.readouterr().err
    assert load_settings().config.api_port == port
    assert (home / "cluster.json").exists()


@pytest.mark.slow
def test_the_port_in_a_service_file_is_the_endpoints_port(
    home: Path,
    model: Path,
    foreign_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cluster, "start", lambda settings: pretend_cluster(home, "127.0.0.1:1"))
    monkeypatch.setattr(sys, "executable", "/bin/false")  # nothing must be started
    file = tmp_path / "chat.yaml"
    file.write_text(f"service: chat\nmodel: {model}\nport: {foreign_port}\n")

    code = run(["up", "--file", str(file), "--api-port", str(free_ports(1)[0])])

    assert code == 4
    assert f"port {foreign_port} on 127.0.0.1 is taken by another program" in capsys.readouterr().err


@pytest.mark.slow
def test_a_web_server_on_the_controllers_port_is_reported_as_such(
    home: Path, foreign_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_API_PORT", str(foreign_port))

    assert run(["list"]) == 4
    assert re.search(r"answers 200 but is not canaryctl; is the port right\?", capsys.readouterr().err)


@pytest.mark.slow
def test_down_stops_a_controller_whose_cluster_is_gone(
    home: Path,
    model: Path,
    signals: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = FakeController(home)
    fake.serve()
    kill = os.kill

    def ends(pid: int, number: int) -> None:
        kill(pid, number)
        fake.runner.stop()

    monkeypatch.setattr(os, "kill", ends)
    assert run(["up", "--service", "chat", "--model", str(model), "--no-wait"]) == 0
    pretend_cluster(home, f"127.0.0.1:{free_ports(1)[0]}")

    one_code = run(["down", "chat", "--yes", "--timeout", "2s"])
    all_code = run(["down", "--yes", "--timeout", "2s"])
    remaining = fake.store.services()
    fake.stop()

    assert (one_code, all_code, remaining) == (4, 0, ())
    assert signals == [(os.getpid(), signal.SIGTERM)]
    assert "the Ray cluster is not running; start it: canaryctl up" in capsys.readouterr().err


@pytest.mark.slow
def test_up_that_times_out_reports_the_versions_last_error(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeController(home)
    fake.fleet.load_s = 3600.0
    fake.serve()
    stable = ["up", "--service", "chat", "--model", str(model)]
    assert run([*stable, "--no-wait"]) == 0
    ends_at_s = time.monotonic() + 60
    while not fake.fleet.engines and time.monotonic() < ends_at_s:
        time.sleep(0.01)
    for engine in fake.fleet.engines.values():
        engine.error = "http://elsewhere does not answer"

    code = run([*stable, "--timeout", "2s"])
    fake.stop()

    assert code == 6
    assert (
        "is still loading (http://elsewhere does not answer); check it: canaryctl status"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_up_says_why_a_running_controller_loads_nothing(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waited for a quarter of an hour, and with --no-wait said that the version serves."""
    fake = FakeController(home)
    fake.serve()
    stable = ["up", "--service", "chat", "--model", str(model)]
    assert run([*stable, "--no-wait"]) == 0
    tick = LastTick(problem=Problem("the disk is full"))
    monkeypatch.setattr(fake.runner, "last_tick", lambda name: tick)
    monkeypatch.setattr(services, "PROBLEM_S", 0.1)
    capsys.readouterr()

    codes, told = [], []
    for command in ([*stable, "--timeout", "20s"], [*stable, "--no-wait"], ["list"]):
        codes.append(run(command))
        out, err = capsys.readouterr()
        told.append(" ".join((out + err).split()))
    fake.stop()

    assert codes == [4, 0, 0]
    assert "chat is not loaded: the controller can decide nothing: the disk is full" in told[0]
    assert "warning: the controller can decide nothing: the disk is full" in told[1]
    assert "chat: the controller can decide nothing: the disk is full" in told[2]


@pytest.mark.slow
def test_down_of_the_last_known_service_leaves_what_the_database_does_not_know(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database was replaced: the cluster serves another service, whose requests would have ended."""
    fake = FakeController(home)
    fake.serve()
    assert run(["up", "--service", "chat", "--model", str(model), "--no-wait"]) == 0
    stopped: list[str] = []
    other = Served("other", SplitStatus(1, 1, "", "v-1", None, 0, True, "acknowledged"))
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service, **_: (other,))
    monkeypatch.setattr(cluster, "is_running", lambda settings: True)
    monkeypatch.setattr(processes, "stop", lambda settings: stopped.append("all"))

    code = run(["down", "chat", "--yes", "--timeout", "20s"])
    remaining = fake.store.services()
    fake.stop()

    assert (code, remaining, stopped) == (0, (), [])
    assert "Ray goes on: it serves other, which the database does not know" in capsys.readouterr().err


@pytest.mark.slow
def test_down_of_all_services_removes_none_while_a_rollout_runs(
    home: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeController(home)
    fake.probes.results[ProbeKind.PREFLIGHT] = ("running", "")
    fake.serve()
    twin = write_checkpoint(tmp_path / "twin", seed=7)
    for name in ("a", "b"):
        assert run(["up", "--service", name, "--model", str(model), "--no-wait"]) == 0
    assert run(["deploy", "b", "--model", str(twin)]) == 0
    capsys.readouterr()

    code = run(["down", "--yes", "--timeout", "5s"])
    rows = fake.store.services()
    fake.stop()

    assert code == 3
    assert re.search(r"b has rollout r-\w{8} running; end it first: .*--wait", capsys.readouterr().err)
    assert [(row.name, row.removing) for row in rows] == [("a", False), ("b", False)]


@pytest.mark.slow
def test_down_leaves_the_services_that_another_hosts_controller_leads(
    home: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its rollout ended as failed, and nobody kept or removed what went on serving."""
    fake = FakeController(tmp_path)
    fake.start()
    fake.commands.up({"service": "chat", "model": str(model)}, Identity("ada", Role.ADMIN))
    monkeypatch.setenv("CANARYCTL_DATABASE_URL", f"sqlite:///{tmp_path / 'canaryctl.db'}")
    stopped: list[Settings] = []
    monkeypatch.setattr(cluster, "stop", stopped.append)

    code = run(["down", "--yes"])
    rows = fake.store.services()
    fake.stop()

    assert (code, [row.name for row in rows], stopped) == (3, ["chat"], [])
    assert "a controller on test leads the services of this database (test)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rollout_of_a_directly_removed_service_never_acts_again(home: Path) -> None:
    store = SqlStore(load_settings().database_url)
    version = VersionRow("chat", STABLE, "{}", "{}", 1.0)
    store.put_service(CHAT, version)
    store.create_rollout(a_rollout("r-00000001"), request="{}", at_s=1.0)
    store.append_command("r-00000001", CommandKind.ROLLBACK, Identity("ada", Role.ADMIN), reason="", at_s=1.0)

    assert takedown.forget_services(load_settings())
    store.put_service(CHAT, version)

    assert store.running("chat") == ()
    views = [rollout_view(state_from_json(row.state)) for row in store.rollouts("chat")]
    assert [(view.phase, view.is_final) for view in views] == [(Phase.FAILED, True)]
    store.create_rollout(a_rollout("r-00000002"), request="{}", at_s=2.0)
    store.close()


def test_a_recreated_service_launches_with_its_new_secret(home: Path) -> None:
    settings = load_settings()
    store = SqlStore(settings.database_url)
    versions = Versions(settings, store)
    url = "http://127.0.0.1:9"
    fingerprint = json.dumps(asdict(fingerprint_external(url)))
    version = VersionRow("chat", STABLE, json.dumps({"url": url}), fingerprint, 1.0)
    secrets = []
    for secret in ("first", "second"):
        store.put_service(ServiceRow("chat", "{}", STABLE, secret, 1.0), version)
        secrets.append(versions.launch("chat", STABLE, 1).secret)
        store.remove_service("chat", at_s=1.0)
    store.close()

    assert secrets == ["first", "second"]


@pytest.mark.slow
def test_a_direct_rollback_without_a_cluster_still_stores_its_command(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqlStore(load_settings().database_url)
    store.put_service(CHAT, VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout("r-00000001"), request="{}", at_s=1.0)

    code = run(["rollback", "chat", "--direct", "--reason", "3 a.m."])
    commands = store.commands("r-00000001", after_seq=0)
    store.close()

    printed = "".join(capsys.readouterr())
    assert (code, "traffic has not moved" in printed) == (4, True)
    assert [(command.kind, command.actor, command.reason) for command in commands] == [
        (CommandKind.ROLLBACK, "direct", "3 a.m.")
    ]
    assert "rollback of r-00000001 requested; the next controller completes it" in printed
    assert (
        f"route table: not reached (no Ray cluster runs for the state folder {home} (CANARYCTL_HOME); start"
        in printed
    )


@pytest.mark.slow
def test_up_leaves_a_cluster_that_serves_alone_though_the_database_is_lost(
    home: Path,
    signals: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its advice at 3 a.m. is `canaryctl up`; with a lost database that took down what served everybody."""
    pretend_cluster(home, "127.0.0.1:1")
    monkeypatch.setattr(cluster, "is_running", lambda settings: True)
    SqlStore(load_settings().database_url).close()  # one without services, in place of the lost one
    empty = FakeController(home)
    empty.serve()

    assert run(["up"]) == 4
    assert "Ray runs and serves, but the database has no service: it was lost or replaced; restore it" in (
        capsys.readouterr().err
    )
    assert (home / "cluster.json").exists()
    assert signals == []
    assert run(["up", "--service", "chat", "--model", str(home / "no-such-model"), "--no-wait"]) == 2
    assert (home / "cluster.json").exists()
    empty.stop()


@pytest.mark.parametrize("with_spec", [False, True])
def test_up_makes_no_new_database_beside_a_cluster_that_serves(
    home: Path,
    model: Path,
    with_spec: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once there was an empty one, nothing told that the old one was lost."""
    pretend_cluster(home, "127.0.0.1:1")
    monkeypatch.setattr(cluster, "is_running", lambda settings: True)

    assert run(["up", *(["--service", "chat", "--model", str(model)] if with_spec else [])]) == 4
    assert "canaryctl.db is gone or empty; restore it, then: canaryctl up" in capsys.readouterr().err
    assert not (home / "canaryctl.db").exists()
    assert (home / "cluster.json").exists()


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_direct_rollback_does_not_take_a_lost_database_for_one_without_services(
    home: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_cluster(home, "127.0.0.1:1")
    if damage == "empty":
        (home / "canaryctl.db").touch()

    assert run(["rollback", "chat", "--direct"]) == 4
    err = capsys.readouterr().err
    assert "store: not reached" in err
    assert "canaryctl.db is gone or empty; restore it" in err
    assert "does not exist" not in err
    assert (home / "canaryctl.db").exists() == (damage == "empty")


def test_a_large_log_is_put_aside_when_a_controller_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 10)
    log, before = tmp_path / "controller.log", tmp_path / "controller.log.1"
    for text in ("first, and long\n", "second, and long\n", "short\n"):
        log.write_text(text)
        processes._rotate(log)

    assert (log.read_text(), before.read_text()) == ("short\n", "second, and long\n")
