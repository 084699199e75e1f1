"""Reports of other projects: answers of embeddings, ranks and forms that hold nothing, or no object
(tests/public_reports.md)."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from serving.messages import RequestRecord
from tests.fakes.router_rig import router_rig
from tests.unit.serving.router.test_public_reports_content import (
    CHAT,
    JSON,
    SSE,
    answers,
    chunk,
    event,
    scanned,
)

EMBEDDINGS, RERANK, SPOKEN = "/v1/embeddings", "/v1/rerank", "/v1/audio/transcriptions"


def vector(*numbers: object) -> dict[str, object]:
    return {"object": "embedding", "index": 0, "embedding": list(numbers)}


def listed(*items: object) -> dict[str, object]:
    return {"object": "list", "model": "m", "data": list(items), "usage": {"prompt_tokens": 4}}


NAN = float("nan")
NOTHING = [
    (EMBEDDINGS, listed()),
    (EMBEDDINGS, {"object": "list", "data": None}),
    (EMBEDDINGS, {}),
    (EMBEDDINGS, []),
    (EMBEDDINGS, listed(vector())),
    (EMBEDDINGS, listed(vector(None, None))),
    (EMBEDDINGS, listed(vector(0.5), vector(NAN, NAN))),
    (EMBEDDINGS, listed({"object": "embedding", "index": 0, "embedding": None})),
    (EMBEDDINGS, listed({"object": "embedding", "index": 0, "embedding": "AADAfwAAwH8="})),
    (
        EMBEDDINGS,
        listed(
            *[
                vector(
                    *[0.25] * 400,
                )
                for _ in range(9)
            ],
            vector(None, *[0.25] * 400),
        ),
    ),
    ("/v2/embed", {"id": "e", "embeddings": {"float": [[None, None]]}}),
    ("/v2/embed", {"id": "e", "embeddings": {"float": []}, "meta": {"api_version": {"version": "2"}}}),
    ("/pooling", listed({"index": 0, "object": "pooling", "data": [NAN]})),
    ("/v1/score", listed({"index": 0, "object": "score", "score": None})),
    (RERANK, {"id": "r", "results": [], "usage": {"total_tokens": 3}}),
    (RERANK, {"results": [{"index": 0, "relevance_score": NAN, "document": {"text": "b"}}]}),
    ("/rerank", []),
    ("/classify", listed()),
    ("/v1/chat/completions/batch", {"id": "c", "choices": []}),
]
SOMETHING = [
    (EMBEDDINGS, listed(vector(0.5, None))),
    (EMBEDDINGS, listed(vector(0, 1))),
    (EMBEDDINGS, listed({"object": "embedding", "index": 0, "embedding": "AACAPwAAAEA="})),
    (EMBEDDINGS, [[0.1, 0.2]]),
    (EMBEDDINGS, {"embeddings": [[0.1]]}),
    ("/v2/embed", {"embeddings": {"float": None, "int8": [[1]]}}),
    ("/pooling", listed({"index": 0, "data": [[0.5], [0.5]]})),
    ("/v1/score", listed({"index": 0, "score": 0})),
    ("/v1/score", {"scores": [0.25]}),
    (RERANK, {"data": [], "results": [{"index": 0, "relevance_score": 0.5}]}),
    (RERANK, {"results": [{"index": 0, "score": None, "relevance_score": 0.5}]}),
    (RERANK, {"results": [{"index": 0, "relevance_score": 1, "document": {"text": '"embedding": [null'}}]}),
    ("/rerank", [{"index": 0, "score": 0.95}]),
    ("/classify", [[{"label": "a", "score": 0.5}]]),
    ("/classify", listed({"index": 0, "label": "a", "probs": [0.5]})),
    (SPOKEN, {"text": ""}),
    ("/inference/v1/generate", {"choices": []}),
]
ASKED: dict[str, dict[str, Any]] = {
    RERANK: {"query": "a", "documents": ["b"]},
    "/rerank": {"query": "a", "texts": ["b"]},
    "/v2/embed": {"texts": ["a"]},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "a"}]]},
}


@pytest.mark.parametrize("step", [1, 100_000])
@pytest.mark.parametrize(("path", "body"), NOTHING)
def test_an_answer_without_a_value_is_empty(path: str, body: object, step: int) -> None:
    one = scanned(json.dumps(body).encode(), JSON, path=path, step=step, has_input=True)

    assert (one.fault, one.is_void) == ("empty", True)
    assert scanned(json.dumps(body).encode(), JSON, path=path).fault is None


@pytest.mark.parametrize(("path", "body"), SOMETHING)
def test_an_answer_with_a_value_is_one(path: str, body: object) -> None:
    assert scanned(json.dumps(body).encode(), JSON, path=path, has_input=True).fault is None


async def asked(
    path: str, body: object, request: object, *, is_canary: bool, coding: str = ""
) -> tuple[object, RequestRecord, int]:
    """What the client got, the record, and how often stable was asked."""
    good = {"results": [1]}
    text = json.dumps(request).encode()
    headers = {"content-type": JSON, **({"content-encoding": coding} if coding else {})}
    async with router_rig() as rig:
        rig.stable.behave = answers(json.dumps(good if is_canary else body).encode(), JSON)
        rig.canary.behave = answers(json.dumps(body).encode(), JSON)
        if not is_canary:
            rig.publish(change=2, canary=False)
        content = gzip.compress(text) if coding else text
        answer = await rig.client.post(f"/chat{path}", content=content, headers=headers)
        return answer.json(), await rig.record(), len(rig.stable.seen)


@pytest.mark.parametrize(("path", "body"), [one for one in NOTHING if "NaN" not in json.dumps(one[1])])
async def test_users_get_stables_values_where_the_canary_has_none(path: str, body: object) -> None:
    got, one, _ = await asked(path, body, ASKED.get(path, {"input": "a"}), is_canary=True)

    assert got == {"results": [1]}
    assert (one.error, one.cause, one.outcome) == (True, "empty", "fallback")


async def test_stables_answer_without_a_value_is_passed_on_and_an_error() -> None:
    got, one, count = await asked(RERANK, {"results": []}, ASKED[RERANK], is_canary=False)

    assert (got, count) == ({"results": []}, 1)
    assert (one.error, one.cause, one.outcome) == (True, "empty", "answered")


@pytest.mark.slow
@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize(
    ("request_", "coding"),
    [
        ({"query": "a", "documents": []}, ""),
        ({"query": "", "documents": ["b"]}, ""),
        ({"query": "a", "documents": ["b"], "score_threshold": 0.9}, ""),
        ({"query": "a", "documents": ["b"]}, "gzip"),  # which is not read a second time
    ],
)
async def test_who_gives_nothing_may_get_nothing(request_: object, coding: str, is_canary: bool) -> None:
    got, one, _ = await asked(RERANK, {"results": []}, request_, is_canary=is_canary, coding=coding)

    assert got == {"results": []}
    assert (one.error, one.outcome, one.served_arm) == (False, "answered", int(is_canary))


# ---- an error by another name


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages", EMBEDDINGS, RERANK, SPOKEN])
@pytest.mark.parametrize("kind", [JSON, "text/plain"])
@pytest.mark.parametrize(
    "body",
    [{"object": "error", "message": "boom", "code": 500}, {"detail": "Not Found"}, {"detail": [{"x": 1}]}],
)
def test_an_object_that_only_says_what_went_wrong_is_an_error(body: object, kind: str, path: str) -> None:
    assert scanned(json.dumps(body).encode(), kind, path=path).fault == "error in the answer"


def test_an_event_of_an_error_is_one_in_mid_stream() -> None:
    body = chunk("a") + chunk("b") + event({"object": "error", "message": "boom", "code": 500})

    assert scanned(body, SSE).fault == "error in the answer"


@pytest.mark.parametrize("body", [{"detail": ""}, {"detail": "x", **listed(vector(1))}])
def test_a_detail_beside_an_answer_is_none(body: object) -> None:
    assert scanned(json.dumps(body).encode(), JSON, path=EMBEDDINGS).fault is None


# ---- JSON that is no object


VALUES = [
    (RERANK, b'[{"score":0.95,"index":0}]'),
    ("/classify", b'[[{"label":"a","score":0.5}]]'),
    (EMBEDDINGS, b"\n[[0.1, NaN]]"),
    (SPOKEN, b'"1\\n00:00:00,000 --> 00:00:01,000\\nHello"'),
]


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize(("path", "body"), VALUES)
async def test_any_whole_json_value_is_an_answer_where_none_must_hold_text(
    path: str, body: bytes, is_canary: bool
) -> None:
    async with router_rig() as rig:
        rig.stable.behave = rig.canary.behave = answers(body, JSON)
        if not is_canary:
            rig.publish(change=2, canary=False)
        answer = await rig.client.post(f"/chat{path}", json=ASKED.get(path, {"input": "a"}))
        one = await rig.record()
        count = len(rig.stable.seen) + len(rig.canary.seen)

    assert (answer.content, count) == (body, 1)
    assert (one.error, one.outcome, one.served_arm) == (False, "answered", int(is_canary))


@pytest.mark.parametrize("path", [RERANK, SPOKEN])
@pytest.mark.parametrize(
    "body", [b'[{"score":0.95', b'"Hel', b"null", b"Hello there", b"", b"<html>", b"[1] [2]"]
)
def test_what_is_no_whole_value_stays_malformed(path: str, body: bytes) -> None:
    assert scanned(body, JSON, path=path).fault == "malformed"


@pytest.mark.slow
def test_a_large_array_is_passed_on() -> None:
    body = json.dumps([[0.25] * 100_000] * 3).encode()

    assert scanned(body, JSON, path=EMBEDDINGS, step=65_536, has_input=True).fault is None
