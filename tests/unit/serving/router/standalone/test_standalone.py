"""The command `router`: ports, signals, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest
import uvloop

from serving.loopback import free_ports
from serving.router.metrics import MetricsAddress
from serving.router.standalone import main as standalone
from serving.router.standalone.main import check, main
from serving.router.standalone.table_file import source_of
from serving.router.standalone.table_reader import read_file
from serving.router.standalone.table_summary import notes, unused

TABLE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 2000
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    return path


def test_one_port_for_both_is_refused_in_one_line(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(table, port=8123, metrics=MetricsAddress(port=8123))
    shown = capsys.readouterr().err

    assert (code, shown.count("\n")) == (2, 1)
    assert "--port and --metrics-port are both 8123" in shown


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_names_the_option_host(
    table: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    code = main(table, host, 0)

    assert code == 4
    assert "give an address of this machine with --host" in capsys.readouterr().err


def test_nothing_is_announced_before_every_port_is_had(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        code = main(table, port=0, metrics=MetricsAddress(port=busy.getsockname()[1]))
    shown = capsys.readouterr().err

    assert (code, shown.count("\n")) == (4, 1)
    assert "choose another with --metrics-port" in shown


@pytest.mark.slow
def test_it_tells_of_its_start_its_signals_and_its_end(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    health: list[tuple[int, str]] = []

    running = threading.Event()

    def talk() -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                for _ in range(400):
                    with contextlib.suppress(httpx.ConnectError):
                        answer = client.get("/-/healthz")
                        break
                    threading.Event().wait(0.02)
                health.append((answer.status_code, answer.text))
                table.write_text(TABLE.replace("2000", "0"))
                for line in ("table applied: chat canary 20 % -> 0 %", "the table file has not changed"):
                    os.kill(os.getpid(), signal.SIGHUP)
                    for _ in range(1000):
                        if line in lines:
                            break
                        threading.Event().wait(0.02)
        finally:
            if running.is_set():  # else nobody handles it
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(standalone, "log_lines", contextlib.nullcontext)
    lines: list[str] = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(standalone.log, level, lines.append)
    monkeypatch.setattr(uvloop, "run", asyncio.run)
    thread = threading.Thread(target=talk)
    running.set()
    thread.start()
    code = main(table, port=port)
    running.clear()
    thread.join()

    assert (code, health) == (0, [(200, "ok\n")])
    assert lines[0].startswith(
        f"routing chat at http://127.0.0.1:{port}/chat/v1: stable http://127.0.0.1:8001"
    )
    assert "streams of chat's canary reach users when they are whole" in lines[1]
    assert lines.count("SIGHUP: the table file is read again") == 2
    assert "the table file has not changed" in lines
    assert "table applied: chat canary 20 % -> 0 %" in lines
    assert "SIGTERM: no more connections are accepted; 0 requests under way may take 120 s" in lines[-2]
    assert lines[-1] == "stopped"


def test_a_socket_that_systemd_opened_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        copy = os.dup(opened.fileno())
        monkeypatch.setattr(standalone, "FIRST_HANDED", copy)
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        with standalone._listening("127.0.0.1", 1) as listening:
            assert listening.getsockname() == opened.getsockname()
        monkeypatch.setenv("LISTEN_PID", "1")
        with standalone._listening("127.0.0.1", 0) as other:
            assert other.getsockname() != opened.getsockname()


def test_check_notes_what_has_no_effect(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = f'keys: [{{name: staff, sha256: "{"a" * 64}", audiences: [staff]}}]\n'
    table.write_text(TABLE.replace("8002", "8001") + keys + "audience_bp: {staff: 200}\n")

    assert check(table) == 0
    shown = capsys.readouterr().out
    assert "chat: canary and stable are one upstream" in shown
    assert "chat: staff has 20 % like everybody" in shown


def test_a_table_without_surprises_has_no_notes(table: Path) -> None:
    table.write_text(TABLE + "late_commit: stream\n")
    (spec,) = read_file(table, change=1).specs.values()

    assert [line for line in notes(spec) if "late_commit" not in line] == []


def test_requests_that_a_cap_kept_undrawn_are_told_once_a_minute(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table.write_text(TABLE + "burst_cap: 5\n")
    source = source_of(table)
    counts = source.cores["chat"].counters.requests
    for now_s, capped in ((100.0, 3), (101.0, 9), (161.0, 10)):
        counts[0, "answered", "capped"] = capped
        source.tell_health(now_s)

    assert caplog.messages == [
        "chat: 3 requests went to stable undrawn (burst_cap 5 or overload)",
        "chat: 7 requests went to stable undrawn (burst_cap 5 or overload)",
    ]


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://localhost:8123"), ("0.0.0.0", "http://127.0.0.1:8123")]
)
def test_a_router_that_would_ask_itself_is_refused(
    table: Path, capsys: pytest.CaptureFixture[str], host: str, url: str
) -> None:
    table.write_text(TABLE.replace("http://127.0.0.1:8001", url))
    code = main(table, host, 8123)

    assert code == 2
    assert f"chat.stable {url} is the address of this router" in capsys.readouterr().err


def test_a_canary_that_nobody_gets_is_noted(table: Path) -> None:
    table.write_text(TABLE.replace("weight_bp: 2000", "weight_bp: 0"))
    (spec,) = read_file(table, change=1).specs.values()

    assert spec.weight_bp == 0
    nobody = "chat: nobody gets the canary; give it a weight, an audience, or clients that force it"
    assert unused(spec) == [nobody]
