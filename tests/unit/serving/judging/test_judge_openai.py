"""A judge behind an endpoint: what it says, and what is no verdict."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from evaluation.judging.admission import PairVerdict, PlantVerdict, admission
from serving.judging.examined import Examined, examine
from serving.judging.judge_openai import FAILURES_IN_A_ROW, JudgeOpenAI
from serving.judging.plants import pairs, plants
from serving.judging.questions import NO, YES, Fault, about
from serving.targets import Endpoint
from tests.fakes.judge_endpoint import Says, judge_endpoint, spoken, truthful

ASKED = about(Fault.WRONG, "What is 2 + 2?", "5")


async def _examined(says: Says) -> Examined:
    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m", at_once=8) as judge:
            return await examine(judge)


def _admitted(found: Examined) -> tuple[str, ...]:
    return admission(
        [PlantVerdict(*one) for one in found.plants], [PairVerdict(*one) for one in found.pairs]
    ).reasons


def test_there_are_enough_plants_of_each_kind() -> None:
    kinds = [one.kind for one in plants()]
    assert (len(kinds), kinds.count("good"), len(pairs())) == (100, 40, 20)
    assert min(kinds.count(kind) for kind in set(kinds)) == 5
    assert set(kinds) == {"good", "swapped", "another's", "cut off", "looped", "empty", "order"}
    assert sum(first.is_bad for first, _ in pairs()) == 10


@pytest.mark.slow
async def test_a_judge_that_knows_is_admitted() -> None:
    assert _admitted(await _examined(truthful)) == ()


@pytest.mark.slow
async def test_a_judge_that_can_only_compare_with_a_reference_is_refused() -> None:
    """It was admitted, by questions that showed the right answer; live ones show none."""

    def compares(body: dict[str, Any]) -> tuple[int, Any]:
        is_shown = "KNOWN TO BE RIGHT" in body["messages"][1]["content"]
        return truthful(body) if is_shown else spoken("T" if "ANSWER A" in str(body) else "no")

    assert "0% of the bad plants found, needed 80%" in _admitted(await _examined(compares))


@pytest.mark.slow
async def test_a_judge_that_always_says_the_first_word_is_refused() -> None:
    def first(body: dict[str, Any]) -> tuple[int, Any]:
        return spoken("A" if "ANSWER A" in body["messages"][1]["content"] else "no")

    reasons = _admitted(await _examined(first))
    assert "0% of the bad plants found, needed 80%" in reasons
    assert any(one.startswith("the first position won 100%") for one in reasons)


@pytest.mark.slow
async def test_probabilities_are_asked_for_and_read() -> None:
    seen: list[dict[str, Any]] = []

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(body)
        return spoken("yes", {"yes": -0.2231, "no": -1.6094})

    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url + "/v1", "m") as judge:
            found = await judge.ask(ASKED)
    assert found is not None
    assert found[YES] == pytest.approx(0.8, abs=1e-3)
    assert (seen[0]["max_tokens"], seen[0]["logprobs"], seen[0]["temperature"]) == (1, True, 0.0)
    assert (judge.asked, judge.tokens) == (1, 100)


@pytest.mark.slow
async def test_an_endpoint_without_probabilities_is_asked_for_words() -> None:
    def says(body: dict[str, Any]) -> tuple[int, Any]:
        return (400, {"error": "unknown field"}) if "logprobs" in body else spoken("No.")

    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m") as judge:
            assert await judge.ask(ASKED) == {YES: 0.0, NO: 1.0}
            assert await judge.ask(ASKED) is not None
    assert judge.asked == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        ((500, {}), "status 500"),
        ((429, {}), "status 429"),
        ((200, "not json"), "its answer is not of the form of chat completions"),
        ((200, {"choices": []}), "its answer is not of the form of chat completions"),
        ((200, "[" * 100_000), "its answer is not of the form of chat completions"),
        (spoken("I will not say."), "its answer is none of the words"),
    ],
)
async def test_what_cannot_be_read_is_no_verdict(answer: tuple[int, Any], trouble: str) -> None:
    with judge_endpoint(lambda _body: answer) as url:
        async with JudgeOpenAI(url, "m") as judge:
            said = await judge.said(ASKED)
    assert (said.shares, said.why) == (None, trouble)


@pytest.mark.slow
async def test_why_there_is_no_verdict_is_said_of_each_question_by_itself() -> None:
    """It was kept in one place for all: a question beside it, answered meanwhile, took the reason away."""

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        return (413, {"error": "too long"}) if "long" in body["messages"][1]["content"] else spoken("yes")

    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m", keeps_refusal=True) as judge:
            refused, good = await asyncio.gather(
                judge.said(about(Fault.WRONG, "long", "5")), judge.said(ASKED)
            )
    assert (refused.why, good.why, good.refusal) == ("status 413", None, "")
    assert "too long" in refused.refusal


@pytest.mark.slow
async def test_a_judge_that_does_not_answer_is_left_alone_for_a_while() -> None:
    now_s, calls = 100.0, 0

    def says(_body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal calls
        calls += 1
        return (503, {}) if calls <= FAILURES_IN_A_ROW + 1 else spoken("yes")

    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m", clock=lambda: now_s) as judge:
            for _ in range(FAILURES_IN_A_ROW + 5):
                assert await judge.ask(ASKED) is None
            assert calls == FAILURES_IN_A_ROW
            now_s += 6.0  # it fails once more, and the pause doubles
            assert await judge.ask(ASKED) is None
            now_s += 6.0
            assert await judge.ask(ASKED) is None
            assert calls == FAILURES_IN_A_ROW + 1
            now_s += 6.0
            assert await judge.ask(ASKED) is not None


@pytest.mark.slow
async def test_a_key_is_sent_and_never_shown() -> None:
    with judge_endpoint(lambda _body: spoken("yes")) as url:
        async with JudgeOpenAI(url, "m", "secret-key-1") as judge:
            await judge.ask(ASKED)
            assert "secret-key-1" not in repr(judge)


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_question_that_is_refused_alone_does_not_end_the_asking(status: int) -> None:
    """A user with texts beyond the judge's context could have ended it for everybody."""

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        return (status, {}) if "long" in body["messages"][1]["content"] else spoken("yes", {"yes": -0.1})

    with judge_endpoint(says) as url:
        async with JudgeOpenAI(url, "m") as judge:
            for _ in range(FAILURES_IN_A_ROW + 2):
                assert (await judge.said(about(Fault.WRONG, "long", "5"))).cause == "unreadable"
            said = await judge.said(ASKED)
    assert said.shares is not None
    assert said.shares[YES] == 1.0
    assert (said.cause, said.tokens) == (None, 100)
    assert judge._forms.known == 0  # it was the text that was refused


@pytest.mark.slow
async def test_an_answer_without_an_end_is_read_to_a_limit_and_for_a_time() -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, JudgeOpenAI(url, "m", timeout_s=0.3) as judge:
        piece, pause_s = b" " * (256 << 10), 0.0
        large = await judge.said(ASKED)
        piece, pause_s = b" ", 0.05  # each comes in time, and they never end
        slow = await judge.said(ASKED)
    assert (large.cause, slow.cause) == ("unreadable", "timeout")


@pytest.mark.slow
@pytest.mark.parametrize("is_inside", [True, False])
async def test_to_a_judge_inside_no_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, is_inside: bool
) -> None:
    def noted(name: str) -> Says:
        return lambda _body: (asked.append(name), spoken("yes"))[1]  # type: ignore[func-returns-value]

    asked: list[str] = []
    monkeypatch.setattr(Endpoint, "is_inside", property(lambda _self: is_inside))
    with judge_endpoint(noted("judge")) as url, judge_endpoint(noted("proxy")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with JudgeOpenAI(url, "m", "secret-key-1") as judge:
            await judge.ask(ASKED)
    assert asked == ["judge" if is_inside else "proxy"]
