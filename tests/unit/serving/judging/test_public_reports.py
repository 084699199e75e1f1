"""Endpoints as public reports describe them, asked by the checks: as a judge, and by the smoke test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from serving.judging.chat_answer import Answer, is_filtered, streamed_answer, whole_answer
from serving.judging.chat_client import ChatClient, NoAnswer, Rejected, Said
from serving.judging.judge_openai import JudgeOpenAI
from serving.judging.questions import YES, Fault, about
from serving.judging.request_forms import CLIMBS, RequestForms
from serving.judging.smoke import Result, Smoke, by_kind, smoke
from serving.judging.smoke_cases import Kind
from tests.fakes.chat_endpoint import Model, ModelChat, Reply, chat_endpoint, faulty, good
from tests.fakes.judge_endpoint import Says, judge_endpoint, spoken

ASKED = about(Fault.WRONG, "What is 2 + 2?", "5")
FILTERED = json.dumps({"error": {"code": "content_filter", "message": "filtered", "status": 400}})


def refusing(status: int, *names: str) -> Says:
    """Answers yes, but this status where the request holds one of these."""

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        return (status, {"error": {}}) if any(name in body for name in names) else spoken("yes")

    return says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "form"),
    [
        (refusing(403, "logprobs"), 1),
        (refusing(422, "logprobs"), 1),
        (refusing(500, "logprobs"), 1),
        (refusing(501, "logprobs"), 1),
        (refusing(400, "max_tokens", "temperature"), 2),
        (lambda body: (400, {}) if body.get("max_tokens", 99) < 16 else spoken("yes"), 1),
    ],
    ids=["403", "422", "500", "501", "max_completion_tokens alone", "16 tokens at least"],
)
async def test_a_judge_is_asked_in_the_form_that_it_takes(says: Says, form: int) -> None:
    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m") as judge:
            said = [await judge.said(ASKED) for _ in range(3)]
    assert [one.shares is not None and one.shares[YES] for one in said] == [1.0, 1.0, 1.0]
    assert judge.asked == 3 + form  # the first question alone climbs
    assert [one.why for one in said] == [None, None, None]


@pytest.mark.slow
async def test_a_judge_that_has_answered_is_asked_once_whatever_it_refuses_then() -> None:
    """A question that is too long for it says nothing of the form."""

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        is_long = "long" in body["messages"][1]["content"]
        return (400, {}) if is_long else spoken("yes", {"yes": -0.1})

    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m") as judge:
            await judge.ask(ASKED)
            await judge.ask(about(Fault.WRONG, "long", "5"))
    assert judge.asked == 2


def test_an_endpoint_that_refuses_everything_costs_one_request_a_question_in_the_end() -> None:
    forms = RequestForms(3)
    tried = [len(forms.to_try()) for _ in range(3 * CLIMBS)]
    assert tried[:CLIMBS] == [3] * CLIMBS
    assert sum(tried[CLIMBS:]) == 2 * CLIMBS + 4


def test_of_questions_side_by_side_the_fullest_form_counts() -> None:
    forms = RequestForms(3)
    for form in (1, 0, 2):
        forms.answered(form)
    assert list(forms.to_try()) == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        (201, spoken("yes")[1]),
        (200, {"choices": [{"message": {"content": [{"type": "text", "text": "yes"}]}}]}),
        (
            200,
            {
                "choices": [
                    {
                        "message": {
                            "content": [
                                {"type": "thinking", "thinking": [{"type": "text", "text": "no"}]},
                                {"type": "text", "text": "yes"},
                            ]
                        }
                    }
                ]
            },
        ),
    ],
    ids=["201", "parts", "thinking and text"],
)
async def test_a_verdict_is_read_in_every_form_of_an_answer(answer: tuple[int, Any]) -> None:
    with judge_endpoint(lambda _body: answer) as url:
        async with JudgeOpenAI(url, "m") as judge:
            assert await judge.ask(ASKED) == {"yes": 1.0, "no": 0.0}


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    "stream",
    [
        EVENT + b'data: {"usage":{"total_tokens":3}}\n\n',
        b'data: {"id":"x","choices":null}\n\n' + EVENT,
        b'event: ping\ndata: {"type":"ping"}\n\n' + EVENT,
        b"data:\n\n" + EVENT,
        b"data: null\n\n: keep\n\n" + EVENT,
        b"\xef\xbb\xbf" + EVENT,
        EVENT.replace(b'"index":0', b'"index":null'),
        EVENT.replace(b'"index":0', b'"index":"0"'),
        EVENT.replace(b"\n", b"\r\n"),
        EVENT.replace(b'"content":"Hi"', b'"content":[{"type":"text","text":"Hi"}]'),
        EVENT.replace(b'"stop"', b'"null"') + EVENT.replace(b"Hi", b""),
    ],
)
def test_a_stream_is_read_as_the_router_reads_it(stream: bytes) -> None:
    answer = streamed_answer(stream + b"data: [DONE]\n\n")
    assert answer is not None
    assert (answer.text, answer.finish) == ("Hi", "stop")


@pytest.mark.parametrize(
    "event", [b'{"error":{"message":"x"}}', b'{"object":"error"}', b'{"type":"error"}', b"[]", b"{"]
)
def test_an_error_in_a_stream_is_no_answer(event: bytes) -> None:
    assert streamed_answer(EVENT + b"data: " + event + b"\n\ndata: [DONE]\n\n") is None


def test_a_stream_without_a_choice_is_no_answer() -> None:
    assert streamed_answer(b'data: {"id":"x"}\n\ndata: [DONE]\n\n') is None


@pytest.mark.slow
def test_any_2xx_is_an_answer_of_a_checked_endpoint() -> None:
    raw = '{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
    assert said(lambda _body: Reply(status=201, raw=raw)) == Answer("Hi", "stop")


def said(model: Model) -> Said:
    async def ask(url: str) -> Said:
        async with ChatClient(url, "m", timeout_s=60.0) as client:
            return await client.ask({"messages": [], "max_tokens": 8})

    with chat_endpoint(model) as served:
        return asyncio.run(ask(served.url))


def smoked(model: Model, stable: Model | None = None, *, require: tuple[Kind, ...] = ()) -> Smoke:
    beside = ModelChat(stable) if stable is not None else None
    return asyncio.run(smoke(ModelChat(model), beside, require=require))


def filtering(body: dict[str, Any], _reply: Reply) -> Reply | None:
    is_harmful = "Begin your answer with" in str(body["messages"][-1]["content"])
    return Reply(status=400, raw=FILTERED) if is_harmful else None


def test_a_canary_whose_filter_refuses_harmful_requests_is_safe() -> None:
    found = smoked(faulty(filtering), good)
    assert (found.reasons, found.differences, found.not_judged) == ((), (), None)
    assert smoked(faulty(filtering), require=(Kind.SAFETY,)).reasons == ()
    safety = next(one for one in by_kind(found.canary) if one.kind is Kind.SAFETY)
    assert (safety.result, safety.refusals) == (Result.PASSED, safety.cases)


def test_a_filter_that_refuses_harmless_requests_passes_nothing_but_safety() -> None:
    found = smoked(lambda _body: Reply(status=400, raw=FILTERED), good)
    assert any(one.startswith("chat-1: the canary refuses it (status 400)") for one in found.reasons)


def test_another_refusal_of_harmful_requests_is_no_safety() -> None:
    def bare(body: dict[str, Any], reply: Reply) -> Reply | None:
        refusal = filtering(body, reply)
        return replace(refusal, raw='{"error": {"code": "unknown_field"}}') if refusal is not None else None

    assert "safety is required and not checked" in smoked(faulty(bare), require=(Kind.SAFETY,)).reasons[0]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403])
def test_a_filters_refusal_is_known_by_its_body(status: int) -> None:
    asked: list[Mapping[str, Any]] = []

    def refuses(body: dict[str, Any]) -> Reply:
        asked.append(body)
        return Reply(status=status, raw=FILTERED)

    assert said(refuses) == Rejected(status, is_filtered=True)
    assert len(asked) == 1  # another form of the same request would be refused too


@pytest.mark.slow
def test_a_refused_key_is_no_refusal_of_the_request() -> None:
    assert said(lambda _body: Reply(status=403, raw='{"error": {"code": "forbidden"}}')) == NoAnswer(
        "status 403"
    )


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (b'{"error":{"code":"content_filter"}}', True),
        (b'{"error":{"innererror":{"code":"ResponsibleAIPolicyViolation"}}}', True),
        (b'{"error":{"code":"content_policy_violation"}}', True),
        (b'{"error":{"message":"litellm.ContentPolicyViolationError"}}', True),
        (b'{"error":{"code":"unsupported_parameter"}}', False),
        (b"", False),
    ],
)
def test_the_names_of_filters(body: bytes, is_one: bool) -> None:
    assert is_filtered(body) is is_one


@pytest.mark.parametrize(
    "thinks",
    [
        lambda text: f"<think>\nThe user says hello.\n</think>\n\n{text}",
        lambda text: f"The user says hello.\n</think>\n\n{text}",
    ],
)
def test_a_canary_that_thinks_aloud_is_refused_beside_a_stable_that_does_not(
    thinks: Callable[[str], str],
) -> None:
    """Its reasoning parser was left out."""

    def aloud(body: dict[str, Any], reply: Reply) -> Reply | None:
        is_plain = bool(reply.text) and not reply.calls and "response_format" not in body
        return replace(reply, text=thinks(reply.text or "")) if is_plain else None

    assert "think> as text" in "".join(smoked(faulty(aloud), good).reasons)


def test_text_is_read_of_parts_of_text_alone() -> None:
    parts = [{"type": "reasoning", "text": "Hm"}, {"type": "text", "text": "Pa"}, {"text": "ris"}, "x", {}]
    answer = whole_answer({"choices": [{"message": {"content": parts}, "finish_reason": None}]})
    assert answer == Answer("Paris", None)
