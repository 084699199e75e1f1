"""Reports from other projects' trackers about a router behind a balancer (tests/public_reports.md)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from serving.access import digest_of
from serving.router.front.load import Load
from serving.router.standalone.table_file import FileTableSource, make_front
from serving.router.standalone.table_reader import TableFileError, read_tables
from tests.fakes.router_rig import serving

ONE = """
service: chat
stable: {url: "http://127.0.0.1:1"}
"""
KEYED = f"""
keys: [{{name: staff, sha256: "{digest_of("sk-1")}"}}]
keys_required: true
"""
SEVERAL = """
services:
  - {service: chat, stable: {url: "http://127.0.0.1:1"}}
  - {service: code, stable: {url: "http://127.0.0.1:2"}}
"""


@pytest.mark.parametrize("text", [ONE, SEVERAL])
async def test_limits_of_connections_are_those_of_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text + "limits: {client_idle_s: 620, upstream_age_s: 30}\n")
    front = make_front(path)
    source = front._background
    assert isinstance(source, FileTableSource)
    async with serving(front):
        assert front.upstream is not None
        front.load.swept(late_s=0.0, requests=0, has_many_bytes=False)
        first = (front.load.idle_now_s, front.upstream.limits.connection_age_s)
        path.write_text(text + "# as before\n")
        assert source.reload() is None
        front.load.swept(late_s=0.0, requests=0, has_many_bytes=False)
        second = (front.load.idle_now_s, front.upstream.limits.connection_age_s)

    assert (first, second) == ((620.0, 30.0), (75.0, 60.0))


def test_a_crowded_front_ends_idle_connections_early_whatever_the_file_says() -> None:
    load = Load(connections_limit=4, connections=4)
    load.client_idle_s = 620.0
    load.swept(late_s=0.0, requests=0, has_many_bytes=False)

    assert load.idle_now_s == 1.0


async def test_a_reload_keeps_the_limits_of_connections(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    text = ONE + "limits: {client_idle_s: 620, upstream_age_s: 30}\n"
    path.write_text(text)
    front = make_front(path)
    source = front._background
    assert isinstance(source, FileTableSource)
    async with serving(front):
        path.write_text(text + "weight_bp: 0\n")
        assert source.reload() is None
        assert front.upstream is not None
        assert front.upstream.limits.connection_age_s == 30.0
        assert front.load.client_idle_s == 620.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + "limits: {client_idle_s: 0}", "limits.client_idle_s 0: "),
        (
            ONE + "limits: {client_idel_s: 9}",
            "is no key here; did you mean client_idle_s?",
        ),
        (
            SEVERAL.replace("code,", "code, limits: {client_idle_s: 9},"),
            "services.1.limits: limits hold for the port; write them beside services",
        ),
    ],
)
def test_a_wrong_limit_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text)

    with pytest.raises(TableFileError) as caught:
        read_tables(path, change=1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [ONE + KEYED, SEVERAL + KEYED])
async def test_a_balancer_asks_for_health_without_a_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text)
    front = make_front(path)
    async with serving(front) as base, httpx.AsyncClient(base_url=base, verify=False) as client:
        found = [await client.get(one) for one in ("/health", "/healthz", "/health?x=1", "/healthy")]
        head = await client.head("/health")
        front._is_stopping = True
        stopping = await client.get("/health")

    assert [one.status_code for one in (*found[:3], head, stopping)] == [200, 200, 200, 200, 503]
    assert (found[0].text, head.text, found[3].status_code) == ("ok\n", "", 404)


async def test_a_service_that_begins_like_a_health_path_is_judged_by_the_head(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(ONE.replace("chat", "healthcare") + KEYED)
    async with serving(make_front(path)) as base:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(base).port)
        writer.write(b"POST /healthcare/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        first = await asyncio.wait_for(reader.readline(), 10.0)
        writer.close()

    assert first.startswith(b"HTTP/1.1 401 ")
