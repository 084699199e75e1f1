"""Which request targets a router passes on, byte by byte: no spelling reaches an engine's other routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.fakes.router_rig import CHAT, Rig, router_rig

BODY = b'{"messages": []}'


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


async def ask(rig: Rig, target: bytes, method: bytes = b"GET", body: bytes = b"") -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer to a request line sent as it is; status 0: no answer."""
    host, port = rig.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = method + b" " + target + b" HTTP/1.1\r\nhost: router\r\nconnection: close\r\n"
    writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head else 0), head, rest


# ---- routes of an engine that are not for users


HIDDEN = (
    *(b"/_canaryctl/state", b"/_canaryctl/cancel", b"/_canaryctl/fence"),
    *(b"/%5fcanaryctl/state", b"/_canaryctl%2fstate", b"/%5Fcanaryctl%2Fcancel", b"/_%63anaryctl/state"),
    *(b"//_canaryctl/state", b"/./_canaryctl/state", b"/v1/../_canaryctl/state"),
    *(b"/v1/%2e%2e/_canaryctl/state", b"/v1/..%2f_canaryctl/state", b"/v1/models/../../metrics"),
    *(b"/%255fcanaryctl/state", b"/\\_canaryctl\\state", b"/v1%5c..%5c_canaryctl/state"),
    *(b"/v1/responses/../../_canaryctl/cancel", b"/v1/responses/%2e%2e/cancel", b"/v1/responses/a%2Fcancel"),
    *(b"/metrics", b"/metrics/", b"/Metrics", b"/metrics%00", b"/load", b"/version", b"/docs", b"/health"),
    *(b"/sleep", b"/wake_up", b"/collective_rpc", b"/reset_prefix_cache", b"/v1/load_lora_adapter"),
    *(b"/pause", b"/resume", b"/abort_requests", b"/inference/v1/abort_requests", b"/update_weights"),
    *(b"/scale_elastic_ep", b"/fault_tolerance/apply", b"/server_info", b"/start_profile", b"/invocations"),
    *(b"/v1/models;/../metrics", b"/v1/models/\xe9", b"/v1/chat/completions\xc0\xafx", b"/v1/mod\xc3\xa9ls"),
    *(b"/", b""),
)


@pytest.mark.slow
async def test_no_spelling_of_a_path_reaches_an_engines_other_routes(rig: Rig) -> None:
    refused = {}
    for method in (b"GET", b"POST"):
        for target in (prefix + path or b"/" for path in HIDDEN for prefix in (b"/chat", b"")):
            refused[method, target] = await ask(rig, target, method, BODY)

    assert (rig.stable.seen, rig.canary.seen) == ([], [])
    assert {status for status, _, _ in refused.values()} <= {400, 404}
    assert refused[b"POST", b"/chat/%5fcanaryctl/state"][0] == 404
    for status, _, body in refused.values():
        assert status == 400 or set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def test_a_refused_path_is_no_evidence(rig: Rig) -> None:
    await ask(rig, b"/chat/_canaryctl/cancel", b"POST", BODY)

    assert rig.records() == []


async def test_a_path_without_v1_is_404_that_names_the_address_of_the_api(rig: Rig) -> None:
    status, _, body = await ask(rig, b"/chat/completions", b"POST", BODY)

    assert (status, rig.stable.seen) == (404, [])
    assert "/chat/v1/chat/completions" in json.loads(body)["error"]["message"]


async def test_a_listed_path_with_another_method_is_405_with_the_right_ones(rig: Rig) -> None:
    status, head, _ = await ask(rig, b"/chat/v1/chat/completions", b"GET")

    assert (status, rig.stable.seen) == (405, [])
    assert b"allow: POST" in head


# ---- spellings that are normalised


SPELLINGS = (
    b"/chat/v1/chat/completions/",
    b"/chat//v1/chat/completions",
    b"/chat/v1//chat/completions",
    b"//chat/v1/chat/completions",
    b"/chat/v1/ch%61t/completions",
    b"/v1/chat/completions",
    b"http://elsewhere:1/chat/v1/chat/completions",
)


async def test_a_spelling_of_a_listed_path_is_drawn_and_sent_in_its_one_form(rig: Rig) -> None:
    answers = [await ask(rig, target, b"POST", BODY) for target in SPELLINGS]
    records = rig.records()
    host, count = rig.canary.url.removeprefix("http://"), len(SPELLINGS)

    assert [status for status, _, _ in answers] == [200] * count
    assert all(b"x-canaryctl-arm: canary" in head for _, head, _ in answers)
    assert {(one.raw_path, one.headers["host"]) for one in rig.canary.seen} == {(CHAT[5:], host)}
    assert [(one.path, one.arm) for one in records] == [("/v1/chat/completions", 1)] * count


async def test_the_query_of_a_drawn_request_reaches_its_engine(rig: Rig) -> None:
    await ask(rig, CHAT.encode() + b"?api-version=2026-01-01", b"POST", BODY)

    assert [one.raw_path for one in rig.canary.seen] == [CHAT[5:] + "?api-version=2026-01-01"]


OTHERS = (
    (b"GET", b"/v1/models"),
    (b"HEAD", b"/v1/models"),
    (b"OPTIONS", b"/v1/chat/completions"),
    (b"GET", b"/v1/responses/resp_0a"),
    (b"POST", b"/v1/responses/resp_0a/cancel"),
    (b"POST", b"/v1/messages/count_tokens"),
    (b"POST", b"/tokenize"),
    (b"POST", b"/detokenize"),
)


async def test_routes_that_ask_no_model_for_an_answer_go_to_stable_undrawn(rig: Rig) -> None:
    query = b"?a=1&b=%2F"
    answers = [
        await ask(rig, b"/chat" + path + query, method, BODY if method == b"POST" else b"")
        for method, path in OTHERS
    ]

    assert [status for status, _, _ in answers] == [200] * len(OTHERS)
    assert [one.raw_path.encode() for one in rig.stable.seen] == [path + query for _, path in OTHERS]
    assert (rig.canary.seen, rig.records()) == ([], [])


# ---- request targets that name another host


ELSEWHERE = (
    *(b"*", b"*@HOST/x", b"@HOST/x", b"x@HOST/v1/models", b":80/v1/models", b".HOST/v1/models", b"HOST"),
    *(b"//HOST/v1/models", b"//user@HOST/v1/models", b"/\\HOST/v1/models", b"\\\\HOST\\v1\\models"),
    *(
        b"/chat@HOST/v1/models",
        b"/chat:80@HOST/v1/models",
        b"/chat/@HOST/v1/models",
        b"/%2f%2fHOST/v1/models",
    ),
    *(b"http://user:pw@HOST/x", b"http://HOST", b"http://HOST/v1/x", b"https:HOST/x", b"ftp://HOST/x"),
    *(b"/v1/models%0d%0aX-A:%20b", b"/v1/models%20HTTP/1.1", b"/v1/models\tx", b"/v1/models%23@HOST/"),
)


async def test_no_request_target_makes_the_router_connect_elsewhere(rig: Rig) -> None:
    visitors: list[bytes] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitors.append(await reader.read(65536))
        writer.close()

    async with await asyncio.start_server(elsewhere, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}".encode()
        answers = [
            await ask(rig, target.replace(b"HOST", host), method, BODY)
            for target in ELSEWHERE
            for method in (b"GET", b"POST", b"CONNECT")
        ]

    assert (visitors, rig.stable.seen, rig.canary.seen) == ([], [], [])
    assert {status for status, _, _ in answers} <= {0, 400, 404, 405}


async def test_a_fragment_and_an_absolute_form_have_no_effect(rig: Rig) -> None:
    answers = [await ask(rig, one) for one in (b"/v1/models#@elsewhere/", b"http://elsewhere:1/v1/models")]

    assert [status for status, _, _ in answers] == [200, 200]
    assert {seen.raw_path for seen in rig.stable.seen} == {"/v1/models"}


async def test_headers_in_a_target_reach_no_engine(rig: Rig) -> None:
    await ask(rig, b"/chat/v1/models?a=1%0d%0ax-injected:%201")

    assert "x-injected" not in rig.stable.seen[-1].headers


@pytest.mark.slow
async def test_a_body_that_is_no_json_object_is_400_before_the_coin(rig: Rig) -> None:
    bad = [b"{", b"[]", b"null", b"\xff", b"", b"[" * 100_000]
    headers = {"content-type": "application/json"}
    answers = [await rig.client.post(CHAT, content=one, headers=headers) for one in bad]

    assert [answer.status_code for answer in answers] == [400] * len(bad)
    assert (rig.stable.seen, rig.canary.seen, rig.records()) == ([], [], [])
