"""Fewer vectors or scores than texts: who pairs them by their places takes those of other texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.inputs import COUNTED_LIMIT, inputs_of
from serving.router.types import Request
from serving.targets import Target
from tests.fakes.router_rig import router_rig
from tests.unit.serving.router.test_public_reports_content import JSON, answers

EMBEDDINGS, SCORE, EMBED = "/v1/embeddings", "/v1/score", "/v2/embed"


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        (EMBEDDINGS, {"input": ["a", "b", "c"]}, 3),
        (EMBEDDINGS, {"input": "a"}, 1),
        (EMBEDDINGS, {"input": [1, 2, 3]}, 1),  # the ids of the tokens of one text
        (EMBEDDINGS, {"input": [[1, 2], [3]]}, 2),
        (EMBEDDINGS, {"input": [{"text": "a"}, {"image": "b"}]}, 0),  # parts of one, or several
        (EMBEDDINGS, {"input": ["a", {"image": "b"}]}, 0),
        (EMBEDDINGS, {"messages": [{"role": "user", "content": "a"}]}, 0),
        (EMBEDDINGS, {"input": ["a"] * COUNTED_LIMIT}, COUNTED_LIMIT),
        (EMBEDDINGS, {"input": ["a"] * (COUNTED_LIMIT + 1)}, 0),
        (EMBEDDINGS, {"input": [[7]] * (COUNTED_LIMIT + 1)}, 0),
        (EMBEDDINGS, ["a"], 0),
        ("/classify", {"input": ["a", "b"]}, 2),
        ("/pooling", {"input": ["a", "b"]}, 2),
        (EMBED, {"texts": ["a", "b"], "images": None}, 2),
        (SCORE, {"text_1": "q", "text_2": ["a", "b", "c"]}, 3),
        ("/score", {"text_1": ["q", "r"], "text_2": ["a", "b"]}, 2),
        (SCORE, {"text_1": "q", "text_2": "a"}, 1),
        ("/v1/rerank", {"query": "q", "documents": ["a", "b"]}, 0),  # who asks gets the best, by their index
        ("/v1/chat/completions/batch", {"messages": [[], []]}, 0),
    ],
)
def test_the_texts_of_a_request_are_counted(path: str, body: object, count: int) -> None:
    assert inputs_of(Request("POST", Target(path), [], json.dumps(body).encode())) == count


def vectors(count: int, size: int = 1) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": [0.5] * size} for i in range(count)]
    return {"object": "list", "data": data, "model": "m"}


@pytest.mark.parametrize("size", [1, 3000])
@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        (EMBEDDINGS, vectors(3), None),
        (EMBEDDINGS, vectors(4), None),
        (EMBEDDINGS, vectors(2), "empty"),
        (EMBEDDINGS, [[0.5], [0.5], [0.5]], None),
        (EMBEDDINGS, [[0.5], [0.5]], "empty"),
        (EMBEDDINGS, {"embeddings": [[0.5], [0.5]]}, "empty"),
        (EMBEDDINGS, {"vectors": [[0.5], [0.5]]}, None),  # of a form that is not known
        (EMBED, {"embeddings": {"float": [[0.5], [0.5]], "int8": None}}, "empty"),
        (EMBED, {"embeddings": {"float": [[0.5]] * 3}}, None),
        (SCORE, {"data": [{"index": 0, "score": 0.5}]}, "empty"),
        (SCORE, {"data": [{"index": i, "score": 0.5} for i in range(3)]}, None),
        (SCORE, {"scores": [0.5]}, "empty"),
        ("/classify", [[{"label": "a", "score": 0.5}]], "empty"),
    ],
)
def test_fewer_values_than_texts_are_no_answer(path: str, body: Any, fault: str | None, size: int) -> None:
    text = json.dumps(body).replace("0.5", ", ".join(["0.5"] * size) if "score" not in str(body) else "0.5")
    scan = AnswerScan(path, JSON, has_input=True, inputs=3)
    scan.feed(text.encode())

    assert scan.end() == fault
    assert scan.is_void is (fault is not None)


@pytest.mark.parametrize("arm", [0, 1])
async def test_a_vector_too_few_is_an_error_on_either_arm_and_stables_are_given(arm: int) -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=10_000 * arm, change=2)
        engine, other = (rig.canary, rig.stable) if arm else (rig.stable, rig.canary)
        engine.behave = answers(json.dumps(vectors(2)).encode(), JSON)
        other.behave = answers(json.dumps(vectors(3)).encode(), JSON)
        answer = await rig.client.post(f"/chat{EMBEDDINGS}", json={"input": ["a", "b", "c"]})
        record = await rig.record()

    assert len(answer.json()["data"]) == 2 + arm
    assert (record.error, record.cause, record.arm) == (True, "empty", arm)
