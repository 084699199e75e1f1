"""What another engine is asked when it continues a stream: ids and numbers stay as they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.continuable import fields_of
from serving.router.exchange import continuation
from serving.router.exchange.continuation import Continuation
from serving.router.exchange.takeover import Prompt, continuation_body, read_prompt, tokens_left


def fields(**body: object) -> Any:
    return fields_of(json.dumps(body).encode())


def test_the_ids_of_an_answer_of_tokenize_are_asked_for_with_those_that_are_there() -> None:
    prompt = read_prompt(b'{"count":2,"max_model_len":9,"tokens":[ 1, 2 ],"token_strs":null}')

    assert prompt is not None
    assert (prompt.count, prompt.context) == (2, 9)
    asked = json.loads(continuation_body(fields(model="m", seed=5), prompt, [3, 4], 7))
    assert (asked["prompt"], asked["seed"], asked["max_tokens"]) == ([1, 2, 3, 4], 7, 7)


def test_a_prompt_without_ids_is_continued_from_the_answers_own() -> None:
    assert json.loads(continuation_body({}, Prompt(b"[]", 0), [3], None))["prompt"] == [3]


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"tokens":null}', b'{"tokens":[1.0]}', b'{"tokens":[[1]]}', b'{"tokens":[1'],
)
def test_what_holds_no_ids_is_no_prompt(answer: bytes) -> None:
    assert read_prompt(answer) is None


@pytest.mark.parametrize("limit", [[0] * 1000, 10**30, 1.5])
def test_a_limit_or_a_seed_that_is_no_integer_of_the_usual_size_is_left_to_the_engine(limit: object) -> None:
    asked = fields(messages=[], max_tokens=limit, seed=limit)
    prompt = Prompt(b"[1]", 1, 100)

    assert tokens_left(asked, prompt, 4, None) == 95
    assert json.loads(continuation_body(asked, prompt, [], 95))["seed"] == limit


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"prompt":[1.0,2]}', b'{"prompt":' + b"[" * 5000])
def test_what_cannot_be_continued_is_known_and_raises_nothing(body: bytes) -> None:
    """It raised in the router's stop, and no other client was told that it ends."""
    scan = AnswerScan("/v1/completions", "text/event-stream", takes_ids=True)

    assert not Continuation("/v1/completions", body, scan, "d", None).is_possible


def test_an_answer_of_tokenize_beyond_its_limit_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "ANSWER_LIMIT", 40)
    found = []
    for ids in ([1, 2], [1] * 20):
        scan = AnswerScan("/v1/completions", "text/event-stream", takes_ids=True)
        one = Continuation("/v1/completions", b'{"prompt":"a"}', scan, "d", None)
        one.received(json.dumps({"tokens": ids}).encode())
        found.append(one.tokenized())

    assert found == [True, False]
