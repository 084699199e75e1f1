"""An id of a file, batch or stored response belongs to the client that made it, where clients have keys."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.files.client_rules import ClientFields
from serving.messages import Arm, Replica
from serving.router.bodies.body_facts import read_facts
from serving.router.bodies.named_ids import VALUES_LIMIT, file_of_batch
from serving.router.records.owners import Owners, ids_of
from tests.fakes.router_rig import Rig, router_rig

KEYS = {digest_of(f"sk-team-{one}"): ClientKey(f"team-{one}") for one in "ab"}
A, B, NOBODY = {"authorization": "Bearer sk-team-a"}, {"authorization": "Bearer sk-team-b"}, dict[str, str]()


# ---- what is remembered


def test_the_first_to_be_told_of_an_id_is_who_made_it() -> None:
    owners = Owners()
    owners.add("a", ["file-1"])
    owners.add("b", ["file-1", "file-2"])

    assert [owners.anothers([one], "a") for one in ("file-1", "file-2", "file-3")] == [None, "file-2", None]


def test_who_makes_very_many_uncovers_its_own_alone() -> None:
    owners = Owners(limit=100)
    owners.add("a", ["file-a"])
    owners.add("b", [f"file-{number}" for number in range(1000)])

    assert len(owners) == 100
    assert owners.anothers(["file-0", "file-a"], "c") == "file-a"


def test_an_id_that_no_vote_could_name_is_not_kept() -> None:
    owners = Owners()
    owners.add("a", ["", "f" * 100_000])

    assert len(owners) == 0


def test_the_files_of_a_batch_are_whose_it_is() -> None:
    batch = {"id": "batch_1", "input_file_id": "file-in", "output_file_id": "file-out", "error_file_id": None}

    assert ids_of(json.dumps(batch).encode()) == ["batch_1", "file-out"]
    assert ids_of(b"[1") == ids_of(b"[]") == []


# ---- what a body names


def part(file: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_file", "file_id": file}]}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"previous_response_id": "resp_1", "input": "x"}, {"resp_1"}),
        ({"input": [part("file-1")]}, {"file-1"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}]}]},
            {"f-1"},
        ),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{"source": {"file_id": "f"}}]}]}]},
            {"f"},
        ),
        (
            {"input": "x", "tools": [{"container": {"type": "auto", "file_ids": ["f-1", "f-2"]}}]},
            {"f-1", "f-2"},
        ),
        ({"prompt": {"id": "p", "variables": {"a": {"type": "input_file", "file_id": "f"}}}}, {"f"}),
        ({"messages": [{"role": "user", "content": 'the "file_id" of "file-1"'}]}, set()),
    ],
)
def test_ids_are_found_wherever_a_body_has_them(body: dict[str, Any], named: set[str]) -> None:
    facts = read_facts(json.dumps(body).encode())

    assert facts is not None
    assert set(facts.named_ids or ()) == named


@pytest.mark.parametrize(
    "written",
    [
        rb'{"input":[{"content":[{"file\u005fid":"file-1"}]}]}',
        rb'{"input":[{"content":[{"file_id":"fil\u0065-1"}]}]}',
        rb'{"input":[{"content":[{"file_id":"file-1","x":"\ud800"}]}]}',
        rb'{"input":[{"content":[{"\u0066ile_id":"file-1","x":NaN}]}],"n":1}',
    ],
)
def test_no_spelling_hides_an_id(written: bytes) -> None:
    facts = read_facts(written)

    assert facts is None or facts.named_ids == ("file-1",)  # None: refused by the router


def test_of_more_values_than_are_looked_at_nothing_is_said() -> None:
    many = [{"x": 1}] * VALUES_LIMIT
    facts = read_facts(json.dumps({"input": [{"content": [*many, {"file_id": "file-1"}]}]}).encode())

    assert facts is not None
    assert facts.named_ids is None


def test_the_file_of_a_batch_is_read_or_the_batch_is_refused() -> None:
    assert file_of_batch(b'{"input_file\\u005fid":"file-1"}') == ("file-1",)
    assert (file_of_batch(b'{"endpoint":"/v1/x"}'), file_of_batch(b"\x1f\x8b")) == ((), None)


# ---- at the router


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Stable is an endpoint that keeps files, batches and responses; a has made one of each."""
    async with router_rig() as one:
        made: dict[str, dict[str, Any]] = {
            "/v1/files": {"id": "file-a"},
            "/v1/batches": {"id": "batch_a", "output_file_id": None},
            "/v1/batches/batch_a": {"id": "batch_a", "output_file_id": "file-out"},
            "/v1/responses": {"id": "resp_a", "object": "response", "status": "completed", "output": [
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}
            ]},
        }  # fmt: skip

        async def behave(request: web.Request) -> web.StreamResponse:
            return web.json_response(made.get(request.path, {"id": "of-anybody"}))

        one.stable.behave = behave
        assert one.core.table is not None
        stable = Arm("v-1", (Replica(one.stable.url),), external=True)
        table = replace(one.core.table, stable=stable, canary=None, access=Access(KEYS), change=9)
        one.core.on_table(table, sent_s=boot_s())
        for path in ("/v1/files", "/v1/batches"):
            body = {"input_file_id": "file-a"}
            assert (await one.client.post(f"/chat{path}", json=body, headers=A)).status_code == 200
        assert (await one.client.get("/chat/v1/batches/batch_a", headers=A)).status_code == 200
        answer = await one.client.post("/chat/v1/responses", json={"input": "x"}, headers=A)
        assert answer.status_code == 200
        yield one


OF_A = [
    ("GET", "/v1/files/file-a", None),
    ("HEAD", "/v1/files/file-a", None),
    ("GET", "/v1/files/file-a/content", None),
    ("GET", "/v1/files/file-out/content", None),
    ("DELETE", "/v1/files/file-a", None),
    ("GET", "/v1/batches/batch_a", None),
    ("POST", "/v1/batches/batch_a/cancel", {}),
    ("POST", "/v1/batches", {"input_file_id": "file-a"}),
    ("GET", "/v1/responses/resp_a", None),
    ("DELETE", "/v1/responses/resp_a", None),
    ("POST", "/v1/responses", {"input": "x", "previous_response_id": "resp_a"}),
    ("POST", "/v1/responses", {"input": [part("file-a")]}),
    ("POST", "/v1/responses", {"messages": [], "input": [part("file-a")]}),
    ("POST", "/v1/responses/compact", {"input": "x", "previous_response_id": "resp_a"}),
    ("POST", "/v1/responses/input_tokens", {"input": [part("file-a")]}),
]


@pytest.mark.slow
async def test_what_one_client_made_is_not_there_for_another(rig: Rig) -> None:
    before = len(rig.stable.seen)
    for other in (B, NOBODY):
        found = [
            await rig.client.request(method, f"/chat{path}", json=body, headers=other)
            for method, path, body in OF_A
        ]
        assert [one.status_code for one in found] == [404] * len(OF_A)
        errors = [one.json()["error"] for one in found if one.content]
        assert {(one["type"], one["code"]) for one in errors} == {("invalid_request_error", "not_found")}
    assert len(rig.stable.seen) == before  # no endpoint is asked

    own = [
        await rig.client.request(method, f"/chat{path}", json=body, headers=A) for method, path, body in OF_A
    ]
    assert {one.status_code for one in own} == {200}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/compact", "/v1/responses/input_tokens"])
@pytest.mark.parametrize("coding", ["gzip", "br", "identity"])
@pytest.mark.parametrize("spelled", ["utf-8", "utf-16"])
async def test_no_word_of_a_compression_hides_an_id(rig: Rig, path: str, coding: str, spelled: str) -> None:
    before = len(rig.stable.seen)
    body = json.dumps({"input": "x", "previous_response_id": "resp_a"}).encode(spelled)
    answer = await rig.client.post(
        f"/chat{path}",
        content=body,
        headers={**B, "content-encoding": coding, "content-type": "application/json"},
    )

    assert answer.status_code in (400, 404)
    assert len(rig.stable.seen) == before


async def test_what_is_not_remembered_is_found_by_whoever_knows_it_and_is_nobodys(rig: Rig) -> None:
    """After a restart, or made at another router: asking for it makes it nobody's own."""
    answers = [
        await rig.client.get(f"/chat/v1/{path}", headers=one)
        for path in ("files/file-old", "batches/batch_old")
        for one in (B, A, B)
    ]

    assert {one.status_code for one in answers} == {200}


async def test_a_browsers_question_says_nothing_of_an_id(rig: Rig) -> None:
    asked = {"origin": "https://app", "access-control-request-method": "GET"}
    answer = await rig.client.options("/chat/v1/files/file-a", headers=asked)

    assert answer.status_code == 200


async def test_where_there_is_one_client_nothing_is_remembered() -> None:
    async with router_rig() as rig:
        await rig.client.post("/chat/v1/files", json={}, headers=A)

        assert len(rig.front.owners) == 0


def test_two_keys_of_one_client_share_what_it_made() -> None:
    keys = [{"name": f"team-a-{n}", "sha256": f"{n}" * 64, "client": "team-a"} for n in (1, 2)]
    access = ClientFields.model_validate({"keys": keys}).access()

    assert access is not None
    assert [one.name for one in access.keys.values()] == ["team-a", "team-a"]
