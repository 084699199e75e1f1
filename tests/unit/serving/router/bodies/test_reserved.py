"""Fields of a body by which a client would harm others: which are refused, and whose right they are."""

from __future__ import annotations

import json
import pickle
import zlib
from dataclasses import replace
from typing import Any

import pytest

from serving.access import Access, ClientKey, ClientRules, digest_of
from serving.files.client_rules import ClientFields
from serving.router.bodies.prepared import prepare
from serving.router.exchange.exchange import Exchange
from serving.router.types import Refusal
from tests.fakes.routed import Routed

CHAT, RESPONSES, GENERATE = "/v1/chat/completions", "/v1/responses", "/inference/v1/generate"
KEYS = {digest_of("sk-first"): ClientKey("pager", may_go_first=True), digest_of("sk-other"): ClientKey("app")}
REMOTE = {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_block_ids": [1]}


def refused(body: dict[str, Any], *, path: str = CHAT, key: str = "sk-other") -> str | None:
    """The name in the error; None: the request is begun."""
    headers = {"authorization": f"Bearer {key}"}
    found = Routed().use(access=Access(KEYS)).ask(body, path=path, headers=headers)
    if isinstance(found, Exchange):
        return None
    assert isinstance(found, Refusal)
    assert (found.status, found.code) == (400, "reserved_field")
    return found.message.split(" in the body")[0].removeprefix("a ").split(" ")[0]


@pytest.mark.parametrize("priority", [-1, -1000, "-5", -5.0, -0.0, True, [], 10**9, 10**400])
def test_nobody_goes_before_others_without_the_right_to(priority: object) -> None:
    assert refused({"messages": [], "priority": priority}) == "priority"
    assert refused({"messages": [], "priority": priority}, key="sk-first") is None


@pytest.mark.parametrize("priority", [None, 0, 7, 999_999_999])
def test_anybody_may_step_back(priority: object) -> None:
    assert refused({"messages": [], "priority": priority}) is None


@pytest.mark.parametrize("key", ["sk-first", "sk-other"])
@pytest.mark.parametrize(
    ("body", "path", "name"),
    [
        ({"kv_transfer_params": REMOTE}, CHAT, "kv_transfer_params"),
        ({"ec_transfer_params": {}}, "/v1/completions", "ec_transfer_params"),
        ({"kv_transfer_params": REMOTE, "priority": -1}, "/v1/messages", "kv_transfer_params"),
        ({"vllm_xargs": {"kv_transfer_params": "x"}}, CHAT, "kv_transfer_params"),
        ({"sampling_params": {"extra_args": {"kv_transfer_params": REMOTE}}}, GENERATE, "kv_transfer_params"),
        ({"data_parallel_rank": 3}, CHAT, "data_parallel_rank"),
        ({"request_id": "resp_of-another"}, RESPONSES, "request_id"),
    ],
)
def test_what_is_between_engines_is_no_clients(body: dict[str, Any], path: str, name: str, key: str) -> None:
    assert refused({"messages": [], "n": 1, **body}, path=path, key=key) == name
    assert refused({"messages": [], "n": "1", **body}, path=path, key=key) == name  # read in another way


@pytest.mark.parametrize(
    "body",
    [
        {"cache_salt": "s", "session_id": "s", "request_id": "mine"},
        {"vllm_xargs": {"session_id": "s"}, "kv_transfer_params": None},
        {"sampling_params": {"extra_args": None, "temperature": 0}},
        {"messages": [{"role": "user", "content": '"priority": -1'}], "metadata": {"priority": "-1"}},
    ],
)
def test_what_concerns_this_request_alone_is_its_clients_right(body: dict[str, Any]) -> None:
    assert refused({"messages": [], **body}) is None


@pytest.mark.parametrize(
    "written", [b'{"priorit\\u0079":-1}', b'{"priority":1,"priority":-1}', b'\xef\xbb\xbf{"priority":-1}']
)
def test_another_spelling_is_the_same_field(written: bytes) -> None:
    found = prepare(written, (), (), route=f"POST {CHAT}", is_eligible=True)

    assert found.facts.reserved == {"priority"}


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity"])
def test_no_word_of_a_compression_hides_a_field_from_us_that_an_engine_reads(coding: bytes) -> None:
    body = json.dumps({"messages": [], "priority": -1}).encode()
    deflated = zlib.compress(body)
    plain = prepare(body, ((b"content-encoding", coding),), (), route=f"POST {CHAT}", is_eligible=True)
    packed = prepare(
        deflated, ((b"content-encoding", b"deflate"),), (), route=f"POST {CHAT}", is_eligible=True
    )

    assert [one.facts.reserved for one in (plain, packed)] == [{"priority"}] * 2


HARMFUL = '{"previous_response_id": "resp_1", "priority": -1, "input": "q"}'


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x"])
@pytest.mark.parametrize(
    "written",
    [
        HARMFUL.encode(),
        b"\xef\xbb\xbf" + HARMFUL.encode(),
        HARMFUL.encode("utf-16"),
        HARMFUL.encode("utf-32"),
        HARMFUL.replace('"q"', "NaN").encode(),
        HARMFUL.replace('"q"', '"\\ud800"').encode(),
    ],
)
def test_what_an_engine_reads_is_guarded_whatever_the_body_says_of_itself(
    written: bytes, coding: str
) -> None:
    """vLLM reads by Python's json, and decodes no compression."""
    assert json.loads(written)["priority"] == -1
    headers = ((b"content-encoding", coding.encode()),)
    found = prepare(written, headers, (), route="POST /v1/responses", is_eligible=True)

    assert found.refusal is not None or found.facts.reserved == {"priority"}
    assert found.refusal is not None or found.facts.named_ids is None or "resp_1" in found.facts.named_ids


@pytest.mark.parametrize("coding", [None, "identity", "identity, identity"])
def test_a_body_that_is_not_compressed_must_be_an_object_in_utf8(coding: str | None) -> None:
    headers = () if coding is None else ((b"content-encoding", coding.encode()),)
    found = prepare(HARMFUL.encode("utf-16"), headers, (), route="POST /v1/responses", is_eligible=True)

    assert found.refusal is not None
    assert (found.refusal.status, found.refusal.code) == (400, "invalid_json")


def test_a_key_has_the_right_where_the_table_gives_it() -> None:
    digest = "a" * 64
    fields = ClientFields.model_validate({"keys": [{"name": "pager", "sha256": digest, "priority": True}]})
    access = fields.access()
    assert access is not None
    stored = ClientRules(access).to_json()

    assert access.keys[digest].may_go_first
    assert ClientRules.from_json(stored).access == access
    del stored["access"]["keys"][digest]["may_go_first"]  # an older release wrote none
    older = ClientRules.from_json(stored).access
    assert older is not None
    assert older.keys[digest] == replace(access.keys[digest], may_go_first=False)


def test_a_key_of_an_older_release_has_no_right_that_it_did_not_know() -> None:
    key = ClientKey("pager", ("staff",), (), True)
    older = ClientKey.__new__(ClientKey)
    older.__setstate__(["pager", ("staff",), (), True])

    assert (older, pickle.loads(pickle.dumps(key))) == (key, key)
