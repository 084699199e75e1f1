"""The shipped smoke cases: each fault is found by its kind, alone and beside stable, and chance is none."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from serving.judging.smoke import Result, Smoke, by_kind, smoke
from serving.judging.smoke_cases import Kind, cases, stream_cases
from tests.fakes.chat_endpoint import Model, ModelChat, Reply, faulty, good, leaking, without_tools


def smoked(model: Model, stable: Model | None = None, *, require: tuple[Kind, ...] = ()) -> Smoke:
    beside = ModelChat(stable) if stable is not None else None
    return asyncio.run(smoke(ModelChat(model), beside, require=require))


def is_counting(body: dict[str, Any]) -> bool:
    return "Answer with one word" in str(body["messages"][-1]["content"])


def test_a_good_model_passes_every_kind() -> None:
    found = smoked(good)
    assert {one.kind: one.result for one in by_kind(found.canary)} == dict.fromkeys(Kind, Result.PASSED)
    assert (found.reasons, found.not_judged) == ((), None)


def test_cases_have_names_of_their_own() -> None:
    names = [one.name for one in (*cases(), *stream_cases())]
    assert len(set(names)) == len(names)


def endless(body: dict[str, Any], _reply: Reply) -> Reply | None:
    return Reply("white, " * 60, "length") if is_counting(body) else None


def loops(body: dict[str, Any], _reply: Reply) -> Reply | None:
    is_bread = "bread" in str(body["messages"][-1]["content"])
    return Reply("and the bread is " * 40) if is_bread else None


def empty(body: dict[str, Any], reply: Reply) -> Reply | None:
    return Reply("", "stop") if reply.text and not body.get("stream") else None


def no_json(body: dict[str, Any], _reply: Reply) -> Reply | None:
    return Reply("Anna, 34") if "response_format" in body else None


def other_json(body: dict[str, Any], _reply: Reply) -> Reply | None:
    return Reply('{"name": "Anna", "age": "34"}') if "response_format" in body else None


def no_call(body: dict[str, Any], _reply: Reply) -> Reply | None:
    return Reply("It is cold.") if "tools" in body else None


def bad_call(body: dict[str, Any], _reply: Reply) -> Reply | None:
    return Reply(None, "tool_calls", (("get_weather", '{"town": "Oslo"}'),)) if "tools" in body else None


def forgets(body: dict[str, Any], reply: Reply) -> Reply | None:
    return Reply("1234") if reply.text in ("7341", "5826") else None


def complies(body: dict[str, Any], reply: Reply) -> Reply | None:
    opening = str(body["messages"][-1]["content"]).rpartition("with: ")[2]
    return Reply(f"{opening}, here it is.") if reply.text and "sorry" in reply.text else None


def past_stop(body: dict[str, Any], _reply: Reply) -> Reply | None:
    return Reply("One, two, three, four, five, six.") if "stop" in body else None


def other_stream(_body: dict[str, Any], reply: Reply) -> Reply | None:
    return Reply(reply.text, streamed=f"{reply.text}!") if reply.text else None


def no_finish(_body: dict[str, Any], reply: Reply) -> Reply | None:
    return Reply(reply.text, None) if reply.text else None


FAULTS = [
    (leaking, "chat failed (chat-1: the special token <|im_end|> as text"),
    (loops, "chat failed (chat-3: a loop: 9"),
    (empty, "chat failed (chat-1: an empty answer"),
    (no_finish, "chat-1: no finish reason"),
    (forgets, "long failed (long-60: the fact of the prompt's beginning is not in the answer"),
    (no_json, "json failed (json-person: the answer is no JSON"),
    (other_json, "json failed (json-person: the JSON does not conform to the schema"),
    (no_call, "tools failed (tools-auto: no tool is called"),
    (bad_call, "tools failed (tools-auto: the arguments of the tool call do not conform"),
    (endless, "stop failed (stop-1: a short answer does not end within 128 tokens"),
    (past_stop, "stop failed (stop-text: the answer goes on past its stop text"),
    (complies, "safety failed (safety-1: a harmful request is complied with"),
    (other_stream, "stream failed (stream-1: the streamed text differs from the whole one"),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_refused_alone_and_beside_a_stable_without_it(fault: Any, line: str) -> None:
    alone, beside = smoked(faulty(fault)), smoked(faulty(fault), good)
    assert line in "; ".join(alone.reasons)
    assert line in "; ".join(beside.reasons)
    assert "; stable passes)" in beside.reasons[0]


@pytest.mark.parametrize("fault", [no_call, forgets, complies, endless])
def test_what_stable_does_not_pass_either_is_no_reason(
    fault: Any,
) -> None:
    found = smoked(faulty(fault), faulty(fault))
    assert (found.reasons, found.differences) == ((), ())
    assert Result.FAILED in {one.result for one in by_kind(found.canary)}


def test_an_equal_version_that_wavers_is_not_refused() -> None:
    """A case that a model passes now and then is a failure of neither."""
    turns = itertools.count()

    def wavers(body: dict[str, Any], _reply: Reply) -> Reply | None:
        is_hello = "hello" in str(body["messages"][-1]["content"])
        return Reply("") if is_hello and next(turns) % 3 == 0 else None

    assert smoked(faulty(wavers), good).reasons == ()
    assert next(turns) > 1  # it was asked again


@pytest.mark.parametrize("other", [None, Reply("", "stop")], ids=["passes", "fails"])
def test_one_stray_refusal_of_a_case_is_not_held_against_the_canary(other: Reply | None) -> None:
    """A 404 of a proxy that restarts; failures beside it that are seen at times are no more than that."""
    seen = itertools.count()

    def stray(body: dict[str, Any], _reply: Reply) -> Reply | None:
        if not is_counting(body) or body.get("stream"):
            return None
        at = next(seen)
        return Reply(status=404) if at == 0 else other if at == 1 else None

    assert smoked(faulty(stray), good).reasons == ()


def test_a_stray_refusal_among_failures_that_waver_is_none_either() -> None:
    seen = itertools.count()

    def stray(body: dict[str, Any], _reply: Reply) -> Reply | None:
        if not is_counting(body) or body.get("stream"):
            return None
        at = next(seen)
        return Reply("", "stop") if at == 0 else Reply(status=404) if at == 1 else None

    assert smoked(faulty(stray), good).reasons == ()


def test_a_stable_that_wavers_proves_nothing_of_the_canary() -> None:
    """Stable passes the first time alone, so the canary's failure is no difference."""
    turns = itertools.count()

    def once(body: dict[str, Any], _reply: Reply) -> Reply | None:
        is_hello = "hello" in str(body["messages"][-1]["content"])
        return Reply("") if is_hello and next(turns) else None

    def never(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply("") if "hello" in str(body["messages"][-1]["content"]) else None

    assert smoked(faulty(never), faulty(once)).reasons == ()
    assert "chat failed" in smoked(faulty(never), good).reasons[0]


def test_a_failure_where_stable_refuses_the_request_is_no_reason() -> None:
    def half(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply(status=400) if body.get("tool_choice") == "auto" else None

    def fails_auto(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply("It is cold.") if body.get("tool_choice") == "auto" else None

    assert smoked(faulty(fails_auto), faulty(half)).reasons == ()


def test_an_error_of_the_engine_fails_and_one_of_the_client_is_not_checked() -> None:
    def breaks(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply(status=500) if "tools" in body else None

    assert smoked(faulty(breaks)).reasons == (
        "tools failed (tools-auto: status 500; tools-named: status 500)",
    )
    found = smoked(faulty(without_tools), require=(Kind.TOOLS,))
    assert found.reasons == (
        "tools is required and not checked (tools-auto: status 400; tools-named: status 400)",
    )


def test_what_a_required_kind_fails_is_refused_though_stable_fails_it_too() -> None:
    found = smoked(faulty(no_call), faulty(no_call), require=(Kind.TOOLS,))
    assert found.reasons == (
        "tools is required and failed (tools-auto: no tool is called; tools-named: no tool is called)",
    )


def test_answers_that_are_missing_give_no_verdict() -> None:
    found = smoked(lambda _body: Reply(status=503))
    assert found.not_judged == "the endpoint gave no answer to 19 of 19 cases: status 503"
    chat = ModelChat(lambda _body: Reply(status=503))
    asyncio.run(smoke(chat))
    assert chat.asked == 1


@pytest.mark.parametrize(("needed", "result"), [(3000, Result.PASSED), (9000, Result.NOT_CHECKED)])
def test_a_model_that_reasons_gets_more_tokens_once(needed: int, result: Result) -> None:
    def reasons(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply(None, "length", reasoning="Let me think.") if body["max_tokens"] < needed else None

    assert {one.result for one in smoked(faulty(reasons)).canary} == {result}


def test_no_text_of_an_answer_is_shown_by_its_result() -> None:
    found = smoked(faulty(leaking))
    assert "It is as you would expect" not in repr(found)


def test_a_required_kind_without_answers_is_no_reason_to_refuse() -> None:
    def away(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply(status=503) if "tools" in body else None

    found = smoked(faulty(away), good, require=(Kind.TOOLS,))
    assert found.reasons == ()
    assert found.not_judged == "the endpoint gave no answer to 2 of 19 cases: status 503"
