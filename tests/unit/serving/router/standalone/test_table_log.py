"""What the log of a standalone router says: applied tables, refused files, signals."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import httpx
import pytest

from serving.clock import boot_s
from serving.router.standalone.log_lines import LOGGER, LineFormatter
from serving.router.standalone.table_file import FileTableSource, make_front

TABLE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 2000
"""


@pytest.fixture
def source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> FileTableSource:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    caplog.set_level("INFO", LOGGER)
    background = make_front(path)._background
    assert isinstance(background, FileTableSource)
    return background


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("weight_bp: 2000", "weight_bp: 0", "table applied: chat canary 20 % -> 0 %"),
        ('8002"}', '8002", enabled: false}', "table applied: chat canary 20 % -> off"),
        (
            "8002",
            "8003",
            "table applied: chat canary URL http://127.0.0.1:8002 -> http://127.0.0.1:8003",
        ),
        (
            "weight_bp: 2000",
            "weight_bp: 50\nburst_cap: 5",
            "table applied: chat canary 20 % -> 0.5 %, burst_cap none -> 5",
        ),
        ('8002"}', '8002", since: x}', "table applied: chat canary since none -> x"),
        (
            '8002"}',
            '8002", version: v2, api_key_env: PATH}',
            "table applied: chat canary version none -> v2, canary api_key_env changed",
        ),
        ('8001"}', '8001", version: v1}', "table applied: chat stable version none -> v1"),
        (
            "weight_bp: 2000",
            "weight_bp: 2000\nlimits: {stall_s: 7, failures: 0}",
            "table applied: chat limits stall_s 30 -> 7, limits failures 3 -> 0",
        ),
    ],
)
def test_an_applied_table_is_one_line_that_says_what_changed(
    source: FileTableSource, caplog: pytest.LogCaptureFixture, old: str, new: str, line: str
) -> None:
    source._path.write_text(TABLE.replace(old, new))
    source.reload()

    assert caplog.messages[0] == line
    assert len(caplog.messages) == 1


JUDGE = "judge: {url: 'http://127.0.0.1:8003', model: m%s}\n"


def test_each_setting_of_a_judge_that_changed_is_told(
    source: FileTableSource, caplog: pytest.LogCaptureFixture
) -> None:
    source._path.write_text(TABLE + JUDGE % "")
    source.reload()
    source._path.write_text(TABLE + JUDGE.replace("8003", "8004") % ", share_bp: 500, per_minute: 9")
    source.reload()

    assert caplog.messages[-1] == (
        "table applied: chat judge m at http://127.0.0.1:8003 -> m at http://127.0.0.1:8004, "
        "judge share_bp 2000 -> 500, judge per_minute 60 -> 9"
    )


def test_a_canary_that_is_in_again_without_another_since_is_told(
    source: FileTableSource, caplog: pytest.LogCaptureFixture
) -> None:
    off = TABLE.replace('8002"}', '8002", enabled: false}')
    for text in (off, TABLE, off, TABLE.replace('8002"}', '8002", since: x}')):
        source._path.write_text(text)
        source.reload()
    told = [one for one in caplog.messages if one.startswith("table applied")]

    again = "; its since is the one before, so its records go on with that rollout's"
    assert told[1] == f"table applied: chat canary off -> 20 %{again}"
    assert told[3] == "table applied: chat canary off -> 20 %, canary since none -> x"


async def test_a_refused_file_is_told_once_and_so_is_its_return(
    source: FileTableSource, caplog: pytest.LogCaptureFixture
) -> None:
    source._path.write_text("nonsense")
    source.reload()
    await source.poll()
    since_s = source.refused_since_s
    source._path.write_text(TABLE)
    source.reload()

    assert [one.split(":")[0] for one in caplog.messages] == [
        "table refused",
        f"table {source._path} is good again",
    ]
    assert since_s is not None
    assert source.refused_since_s is None


async def test_a_file_that_is_still_being_written_is_not_taken(source: FileTableSource) -> None:
    seen = []
    source._path.write_text(TABLE.replace("2000", "3000"))
    await source.poll()
    seen.append(source.cores["chat"].table.weight_bp)  # type: ignore[union-attr]
    source._path.write_text(TABLE.replace("2000", "4000") + "salt: x\n")
    await source.poll()
    seen.append(source.cores["chat"].table.weight_bp)  # type: ignore[union-attr]
    await source.poll()
    seen.append(source.cores["chat"].table.weight_bp)  # type: ignore[union-attr]

    assert seen == [2000, 2000, 4000]


def test_a_line_has_time_level_text_and_fields() -> None:
    values = {
        "msg": "no API key\n",
        "levelname": "ERROR",
        "created": 1.5,
        "msecs": 500,
        "error": "x is not set",
    }
    line = LineFormatter().format(logging.makeLogRecord(values))

    assert line == "1970-01-01T00:00:01.500Z ERROR no API key error=x is not set"


async def logged_of(path: Path, *asked: tuple[str, str]) -> list[httpx.Response]:
    """A standalone router with this table is asked, and its log written; the answers."""
    front = make_front(path)
    source = front._background
    assert isinstance(source, FileTableSource)
    await front.start()
    port = await front.listen(socket.create_server(("127.0.0.1", 0)))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            answers = [await client.request(method, target, json={}) for method, target in asked]
        source.tell_health(boot_s())
    finally:
        await front.stop(drain_s=0)
    return answers


@pytest.mark.parametrize("asked", [("POST", "/v1/chat/completions"), ("GET", "/v1/responses/resp_1")])
async def test_an_upstream_that_refuses_connections_is_one_line_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: tuple[str, str]
) -> None:
    # It was two: one of the connection, with the reason, and one of the upstream, without.
    path = tmp_path / "table.yaml"
    path.write_text("service: chat\nstable: {url: 'http://127.0.0.1:9'}\n")
    caplog.set_level("INFO", LOGGER)
    answers = await logged_of(path, asked, asked)

    assert [one.status_code for one in answers] == [503, 503]
    assert "(connection refused); retry" in answers[0].json()["error"]["message"]
    assert [one for one in caplog.messages if "HTTP Request" not in one] == [
        "upstream fails: chat stable http://127.0.0.1:9: connection refused; nobody stands behind it"
    ]
