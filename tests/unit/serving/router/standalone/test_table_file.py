from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.messages import Arm
from serving.router.exchange.exchange import Exchange
from serving.router.records.outbox import BATCH_LIMIT
from serving.router.router import RouterCore
from serving.router.standalone import table_file
from serving.router.standalone.main import _serve, main
from serving.router.standalone.table_file import FileTableSource, front_of, make_front, source_of
from serving.router.standalone.table_reader import TableFile, TableFileError, read_file, read_tables
from serving.router.types import Attempt, Request
from serving.targets import Target

GOOD = """
service: chat
stable: {url: "http://127.0.0.1:8001/v1/"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 10000
salt: spring
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    one = tmp_path / "table.yaml"
    one.write_text(GOOD)
    return one


def target(core: RouterCore) -> str:
    request = Request("POST", Target("/v1/completions"), (), b"{}")
    exchange = core.begin(request, request_id="req-1", now_s=1e9, wall_s=1.0)
    assert isinstance(exchange, Exchange)
    one = exchange.next_attempt()
    assert isinstance(one, Attempt)
    return str(one.url)


def test_a_file_becomes_a_table_of_external_upstreams(path: Path) -> None:
    table = read_tables(path, change=1)["chat"]

    assert table.stable is not None
    assert table.canary is not None
    assert table.stable.replicas[0].url == "http://127.0.0.1:8001/v1"
    assert (table.canary.external, table.weight_bp, table.salt) == (True, 10_000, "spring")


KEYED = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "https://api.example/v1beta/openai/", model: large, api_key_env: EXAMPLE_KEY}
weight_bp: 10000
salt: spring
"""


def test_an_endpoint_in_a_table_has_a_model_name_and_a_key_that_nothing_shows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", "sk-1")
    path.write_text(KEYED)
    core = make_front(path).core

    assert core.table is not None
    assert core.table.canary is not None
    assert (core.table.canary.model, str(core.table.canary.api_key)) == ("large", "api_key_env EXAMPLE_KEY")
    assert target(core) == "https://api.example/v1beta/openai/completions"
    assert "sk-1" not in repr(core.table) + str(core.table.canary.to_json())
    assert Arm.from_json(core.table.canary.to_json()) == core.table.canary


def test_a_key_file_is_found_beside_the_table_and_read_when_it_is_used(path: Path) -> None:
    path.write_text(KEYED.replace("api_key_env: EXAMPLE_KEY", "api_key_file: key"))
    (path.parent / "key").write_text("sk-1\n")
    table = read_tables(path, change=1)["chat"]
    (path.parent / "key").write_text("sk-2\n")

    assert table.canary is not None
    assert table.canary.api_key is not None
    assert table.canary.api_key.read() == "sk-2"


def test_a_table_in_a_file_needs_no_lease(path: Path) -> None:
    assert target(make_front(path).core) == "http://127.0.0.1:8002/v1/completions"


def served(path: Path) -> tuple[RouterCore, FileTableSource]:
    front = make_front(path)
    source = front._background
    assert isinstance(source, FileTableSource)
    return front.core, source


def test_a_changed_file_is_reloaded(path: Path) -> None:
    core, source = served(path)
    path.write_text(GOOD.replace("10000", "0"))
    error = source.reload()

    assert error is None
    assert target(core) == "http://127.0.0.1:8001/v1/completions"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight_bp: [", "line 1: expected the node content"),
        (GOOD + "salt: b", "is given twice"),
        (GOOD.replace("10000", "010"), "010 is octal in YAML 1.1 and decimal in 1.2; write 10"),
        (GOOD + "version: on", "on is true in YAML 1.1 and text in 1.2"),
        ("nonsense", "the file: is no mapping; begin with service: NAME"),
        ("", "the file: is no mapping; begin with service: NAME"),
        (
            "service: chat\nstable: http://me:sk-1@a",
            "stable: is no mapping; write stable: {url: http://HOST:PORT}",
        ),
        (GOOD.replace("weight_bp", "weigth_bp"), "weigth_bp 10000: is no key here; did you mean weight_bp?"),
        (GOOD + "enabled: false", "enabled False: is no key here; write it below canary; keys are service"),
        (
            GOOD + "url: http://x",
            "url: is no key here; write it below stable or canary or judge; keys are service",
        ),
        (
            "service: chat\nstable: {url: 'http://a'}\ncanary: {url: 'http://b', weight_bp: 5}",
            "canary.weight_bp 5: is no key here; write it at the top, beside service; keys are",
        ),
        (GOOD + "colour: red", "colour 'red': is no key here; keys are service, stable"),
        (GOOD.replace("10000", "12000"), "weight_bp 12000: is above 10000; a weight is a whole number of"),
        (GOOD.replace("10000", "0.5"), "500 is 5 %"),
        (GOOD.replace("http://127.0.0.1:8002", "ftp://x"), "canary.url: 'ftp://x' is not http(s)://"),
        (GOOD.replace("service: chat", "service: Chat Two"), "service 'Chat Two'"),
        ("service: chat\nstable: {url: 'http://a'}\nweight_bp: 5", "weight_bp 5 without a canary"),
        ("service: chat", "stable: is missing; add it"),
        (
            GOOD.replace("service: chat", "service: other"),
            "service other is none of those that are served, chat; keep one",
        ),
        (
            KEYED.replace("EXAMPLE_KEY", "sk-1"),
            "canary.api_key_env: takes the NAME of a variable that holds the key",
        ),
        (
            KEYED.replace("_env: EXAMPLE_KEY", ": sk-1"),
            "canary.api_key: is no key here; did you mean api_key_env? It takes the NAME of a variable",
        ),
        (KEYED.replace("//api", "//me:sk-1@api"), "canary.url: 'https://…@api.example/v1beta/openai/' holds"),
    ],
)
def test_an_invalid_file_is_reported_in_one_line_and_the_last_good_table_stays(
    path: Path, text: str, message: str
) -> None:
    core, source = served(path)
    before = core.table
    path.write_text(text)
    error = source.reload()

    assert error is not None
    assert message in error
    assert "\n" not in error
    assert "sk-1" not in error
    assert core.table is before


def test_an_invalid_file_is_reported_once_and_reloaded_when_it_is_fixed(path: Path) -> None:
    core, source = served(path)
    path.write_text("nonsense")
    os.utime(path, ns=(1, 1))
    errors = [source.reload(), source.reload()]
    path.write_text(GOOD.replace("10000", "1"))

    assert [error is None for error in errors] == [False, True]
    assert source.reload() is None
    assert core.table is not None
    assert core.table.weight_bp == 1


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(TableFileError, match=r"table .*none.yaml: No such file"):
        make_front(tmp_path / "none.yaml")


def test_a_bad_file_ends_the_command_with_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = logging.getLogger("canaryctl").handlers[:]
    code = main(tmp_path / "none.yaml", "127.0.0.1", 0)
    assert logging.getLogger("canaryctl").handlers == handlers  # the caller's log is as it was
    output = capsys.readouterr().err

    assert code == 2
    assert output.count("\n") == 1
    assert "No such file" in output


def test_a_busy_port_ends_the_command_with_one_line_and_exit_4(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        code = main(path, "127.0.0.1", port)
    output = capsys.readouterr().err

    assert code == 4
    assert output == f"error: port {port} on 127.0.0.1: Address already in use; choose another with --port\n"


def canary_users(folder: Path, service: str) -> set[int]:
    path = folder / f"{service}.yaml"
    text = GOOD.replace("service: chat", f"service: {service}").replace("salt: spring", "")
    path.write_text(text.replace("10000", "1000"))
    core = make_front(path).core
    found = set()
    for index in range(2000):
        body = b'{"user": "u-%d"}' % index
        request = Request("POST", Target("/v1/completions"), (), body)
        exchange = core.begin(request, request_id=f"req-{index}", now_s=1e9, wall_s=1.0)
        assert isinstance(exchange, Exchange)
        one = exchange.next_attempt()
        assert isinstance(one, Attempt)
        if ":8002" in one.url:
            found.add(index)
    return found


@pytest.mark.slow
def test_two_services_without_a_salt_have_different_canary_users(tmp_path: Path) -> None:
    chat, search = canary_users(tmp_path, "chat"), canary_users(tmp_path, "search")

    assert 150 < len(chat) < 250
    assert len(chat & search) < 50  # 1 % of 2000 are expected in both


@pytest.mark.slow
def test_more_records_than_a_batch_holds_are_discarded_at_once(path: Path) -> None:
    core, source = served(path)
    request = Request("POST", Target("/v1/completions"), (), b"{}")
    for index in range(2 * BATCH_LIMIT + 1):
        exchange = core.begin(request, request_id=f"req-{index}", now_s=1.0, wall_s=1.0)
        assert isinstance(exchange, Exchange)
        exchange.cancelled(now_s=1.0)
    source.take_records(core)

    assert core.outbox.waiting == 0


@pytest.mark.slow
async def test_the_loop_turns_while_a_file_is_read_and_a_refused_one_is_read_again_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5000 keys each reading took 1.3 s, four times a second while one of them was mistyped."""
    core, source = served(path)
    read, turns = [0], 0

    def slowly(*args: object, **more: object) -> TableFile:
        read[0] += 1
        time.sleep(0.05)
        return read_file(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(table_file, "read_file", slowly)
    path.write_text("nonsense")
    polling = asyncio.ensure_future(_poll(source, 20))
    while not polling.done():
        turns += 1
        await asyncio.sleep(0.001)
    refused, path_text = source.refused, GOOD.replace("10000", "1")
    monkeypatch.setattr(table_file, "RETRY_S", 0.0)
    await source.poll()
    again = read[0]
    path.write_text(path_text)
    await _poll(source, 2)

    assert refused is not None
    assert again == 2
    assert turns > 5
    assert core.table is not None
    assert core.table.weight_bp == 1


async def test_what_is_reloaded_while_a_file_is_read_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, source = served(path)

    async def overtaken(read: Callable[[object], object], known: object) -> object:
        found = read(known)
        path.write_text(GOOD.replace("10000", "22"))
        source.reload()
        return found

    monkeypatch.setattr(asyncio, "to_thread", overtaken)
    path.write_text(GOOD.replace("10000", "1"))
    await _poll(source, 2)

    assert core.table is not None
    assert core.table.weight_bp == 22


@pytest.mark.slow
async def test_sighup_reads_the_file_beside_the_loop_and_the_last_one_counts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10,000 keys the reading took 4.6 s, in which no stream went on."""
    source, turns, said = source_of(path), 0, list[str]()

    def slowly(*args: object, **more: object) -> TableFile:
        found = read_file(*args, **more)  # type: ignore[arg-type]
        time.sleep(0.05)
        return found

    def weight() -> int:
        table = front.core.table
        assert table is not None
        return table.weight_bp

    monkeypatch.setattr(table_file, "read_file", slowly)
    monkeypatch.setattr(table_file, "RELOAD_CHECK_S", 99.0)
    monkeypatch.setattr(table_file.log, "info", said.append)
    front = front_of(source)
    serving = asyncio.ensure_future(_serve(front, socket.create_server(("127.0.0.1", 0)), source))
    async with asyncio.timeout(20):
        while not front._servers:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
        for weight_bp in (22, 7, None):
            if weight_bp is not None:
                path.write_text(GOOD.replace("10000", str(weight_bp)))
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)
        while weight() != 7 or "the table file has not changed" not in said:
            turns += 1
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    assert turns > 5


@pytest.mark.slow
async def test_a_second_signal_still_writes_the_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the process at once: answered requests were in no record, and who waited was told nothing."""
    source, said, ended = source_of(path), list[str](), list[str]()

    async def stop(self: FileTableSource) -> None:
        ended.append("records")

    monkeypatch.setattr(FileTableSource, "stop", stop)
    monkeypatch.setattr(table_file.log, "warning", said.append)
    front, listening = front_of(source), socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = asyncio.ensure_future(_serve(front, listening, source))
    async with asyncio.timeout(60):
        while not front._servers:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /chat/v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{")
        while not any(not one._parser.is_idle for one in front._connections):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
        read = await reader.read()
        writer.close()
        await serving

    assert b'"code": "stopping"' in read or b'"code":"stopping"' in read
    assert ended == ["records"]


async def _poll(source: FileTableSource, times: int) -> None:
    for _ in range(times):
        await source.poll()
