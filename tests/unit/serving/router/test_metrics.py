"""The router's Prometheus metrics: what is documented exists, and no client makes a series."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.messages import AssignedBy, Outcome
from serving.router.front.front_wire import WireFront
from serving.router.metrics import BadMetricsAddress, MetricsAddress, serve_metrics
from serving.router.records.counters import Counters, Histogram
from serving.router.router import RouterCore
from serving.supervised import LoopState
from tests.fakes.router_rig import CHAT, NoBackground, Rig, router_rig, running, serving
from tests.fakes.router_rig import Engine as Upstream

DOCUMENT = Path(__file__).parents[4] / "docs" / "metrics.md"


class Looping(NoBackground):
    loops = (LoopState("poll", 3, "surprise"),)


def documented() -> dict[str, tuple[str, set[str]]]:
    """(type, labels) by name."""
    rows = re.findall(r"^\| `(canaryctl_\w+)` \| (\w+) \|([\w, ]*)\|", DOCUMENT.read_text(), re.M)
    return {name: (kind, set(labels.replace(" ", "").split(",")) - {""}) for name, kind, labels in rows}


def read(front: WireFront) -> dict[str, Metric]:
    """The metrics as Prometheus would read them."""
    server, port = serve_metrics(front, MetricsAddress(port=0))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    """The sum of the samples of this name with these labels."""
    samples = [one for family in metrics.values() for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


@pytest.mark.slow
async def test_every_documented_metric_exists_with_its_type_and_labels_and_no_other() -> None:
    core = RouterCore("chat", router="r")
    core.counters.on_refusal("overloaded")
    core.counters.requests[0, "answered", "sticky"] = 1
    core.counters.judged["answer", "verdict"] = 1
    metrics = read(WireFront(core, Looping()))

    found = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for one in family.samples for label in one.labels} - {"le"},
        )
        for family in metrics.values()
        if family.name.startswith("canaryctl_")
    }
    assert found == documented()
    assert len(found) == 27


@pytest.mark.slow
async def test_answers_of_a_router_are_counted_by_arm_and_outcome() -> None:
    async with router_rig() as rig:
        await rig.ask(user="alice")
        await rig.ask(user="alice", stream=True)
        await break_canary(rig)
        await rig.ask(user="alice")
        refused = await rig.client.post(CHAT, content=b"[]")
        front = WireFront(rig.core, NoBackground())
        metrics = read(front)

    requests = "canaryctl_router_requests_total"
    assert refused.status_code == 400
    assert value(metrics, requests, arm="canary", outcome="answered", assigned_by="sticky") == 2
    assert value(metrics, requests, arm="canary", outcome="fallback") == 1
    assert value(metrics, "canaryctl_router_errors_total", arm="canary") == 1
    assert value(metrics, "canaryctl_router_fallbacks_total") == 1
    assert value(metrics, "canaryctl_router_takeovers_total") == 0
    assert value(metrics, "canaryctl_router_latency_seconds_count", arm="canary") == 3
    assert value(metrics, "canaryctl_router_latency_seconds_bucket", arm="canary", le="+Inf") == 3
    assert value(metrics, "canaryctl_router_first_event_seconds_count", arm="canary") == 1
    assert value(metrics, "canaryctl_router_refusals_total") == 1
    assert value(metrics, "canaryctl_router_canary_weight_ratio", service="chat") == 1.0
    assert value(metrics, "canaryctl_router_requests_in_flight") == 0


async def break_canary(rig: Rig) -> None:
    async def fail(request: object) -> object:
        from aiohttp import web

        return web.json_response({"error": "broken"}, status=500)

    rig.canary.behave = fail  # type: ignore[assignment]


@pytest.mark.slow
async def test_what_clients_send_makes_no_series() -> None:
    async with router_rig() as rig:
        await rig.ask(user="alice")
        await rig.client.post("/chat/v1/no/such/path", json={})
        before = series(read(WireFront(rig.core, NoBackground())))
        for index in range(30):
            headers = {"x-session-id": f"s-{index}", "x-request-id": f"id-{index}"}
            body = {"messages": [], "user": f"user-{index}", "model": f"model-{index}"}
            await rig.client.post(CHAT, json=body, headers=headers)
            await rig.client.post(f"/chat/v1/{index}", json={})
            await rig.client.request(f"VERB{index}"[:5], f"/{index}/v1/models")
        after = series(read(WireFront(rig.core, NoBackground())))

    new = {one for one in after - before if not one[0].startswith(("process_", "python_"))}
    assert {dict(labels).get("code") for _, labels in new} <= {"method_not_allowed", None, "bad_request"}


def series(metrics: dict[str, Metric]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {
        (one.name, frozenset(one.labels.items())) for family in metrics.values() for one in family.samples
    }


def test_the_number_of_series_of_requests_has_a_bound() -> None:
    bound = 2 * len(get_args(Outcome)) * len(get_args(AssignedBy))

    assert bound <= 200


def test_a_value_counts_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.add(seconds)

    assert histogram.counts == [2, 1, 1]
    assert histogram.total == pytest.approx(7.65)
    assert Counters().lag.counts == [0] * 10


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        (None, MetricsAddress("127.0.0.1", 9464, 100)),
        ("", MetricsAddress("127.0.0.1", 9464, 100)),
        ("off", None),
        ("10.0.0.7:9000", MetricsAddress("10.0.0.7", 9000, 100)),
        ("[::1]:9000", MetricsAddress("::1", 9000, 100)),
    ],
)
def test_the_setting_names_the_address(setting: str | None, address: MetricsAddress | None) -> None:
    assert MetricsAddress.from_setting(setting) == address


@pytest.mark.parametrize("setting", ["9464", ":9464", "host:", "host:port", "host:70000", "on"])
def test_a_setting_that_is_no_address_is_refused_in_one_line(setting: str) -> None:
    with pytest.raises(BadMetricsAddress, match=f"={re.escape(setting)} is no address; use HOST:PORT"):
        MetricsAddress.from_setting(setting)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


@pytest.mark.slow
async def test_a_router_takes_the_next_free_port(taken: int) -> None:
    front = WireFront(RouterCore("chat", router="r"), NoBackground())
    server, port = serve_metrics(front, MetricsAddress(port=taken, ports=100))
    server.shutdown()
    server.server_close()

    assert taken < port < taken + 100
    with pytest.raises(OSError, match="in use"):
        serve_metrics(front, MetricsAddress(port=taken))


def asked(port: int, method: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and all bytes after the head of what the server of metrics answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as made:
        made.sendall(f"{method} /metrics HTTP/1.0\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: made.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    return int(line.split()[1]), dict(one.lower().split(": ", 1) for one in headers), body


def test_a_head_is_answered_as_a_get_without_its_body() -> None:
    """Balancers and uptime checks send one; it was 405."""
    server, port = serve_metrics(
        WireFront(RouterCore("chat", router="r"), NoBackground()), MetricsAddress(port=0)
    )
    try:
        get, head, post = (asked(port, method) for method in ("GET", "HEAD", "POST"))
    finally:
        server.shutdown()
        server.server_close()

    assert (get[0], head[0], post[0]) == (200, 200, 405)
    assert get[2].startswith(b"# HELP")
    assert head[2] == b""
    assert head[1]["content-type"] == get[1]["content-type"]
    assert int(head[1]["content-length"]) > 1000
    assert post[1]["allow"] == "options,get,head"


async def test_the_routers_own_port_serves_no_metrics() -> None:
    front = WireFront(RouterCore("chat", router="r"), NoBackground())
    async with serving(front) as base, running(Upstream("x")), httpx.AsyncClient() as client:
        statuses = {(await client.get(f"{base}{path}")).status_code for path in ("/metrics", "/chat/metrics")}

    assert statuses == {404}
