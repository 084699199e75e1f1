"""Golden sets: lines that cannot be used are named, checkers are exact, and pairs are counted by tag."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from serving.judging import golden_checks
from serving.judging.golden import MAX_CASES, BadGolden, golden_set
from serving.judging.golden_checks import check_of, normalised, reference_check, word_f1
from serving.judging.golden_run import Golden, Tally, ask_golden
from tests.fakes.chat_endpoint import ModelChat, Reply

ASKED = [{"role": "user", "content": "A secret question?"}]


def line(**more: Any) -> bytes:
    return json.dumps({"messages": ASKED, **more}).encode()


def errors(data: bytes) -> tuple[str, ...]:
    with pytest.raises(BadGolden) as caught:
        golden_set(data, name="g.jsonl")
    return caught.value.lines


def test_a_set_is_read_with_its_lines_tags_and_digest() -> None:
    read = golden_set(line(reference="one", tags=["a", "a"]) + b"\n\n" + line(reference="two"), name="g")
    assert [(one.line, one.tags, one.max_tokens) for one in read.cases] == [(1, ("a",), 512), (3, (), 512)]
    assert len(read.digest) == 64
    assert "secret" not in repr(read)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "is no JSON object"),
        (b"[1]", "Expected `object`, got `array`"),
        (b'{"messages": "x"}', "Expected `array`, got `str` - at `$.messages`"),
        (line(), "has both reference and checker, or neither"),
        (line(reference="x", checker={"contains": "y"}), "has both reference and checker, or neither"),
        (line(reference="  !? "), "reference holds no word"),
        (line(reference="A"), "reference has 1 characters, which wrong answers hold too; give a checker"),
        (line(reference="No."), "reference has 2 characters"),
        (line(reference="x", max_tokens=0), "max_tokens 0 is outside 1..8192"),
        (line(reference="x", tags=["a" * 65]), "tags are at most 16"),
        (line(reference="x", label="y"), "unknown field `label`"),
        (line(checker={}), "checker must hold exactly one of contains, regex"),
        (line(checker={"contains": "a", "equals": "b"}), "checker must hold exactly one of"),
        (line(checker={"looks": "a"}), "checker must hold exactly one of"),
        (line(checker={"contains": [1]}), "checker.contains is no text"),
        (line(checker={"regex": "(?=a)b"}), "checker.regex is no pattern of linear time"),
        (line(checker={"regex": r"(a)\1"}), "checker.regex is no pattern of linear time"),
        (line(checker={"regex": "a" * 1001}), "checker.regex is no text of 1 to 1000 characters"),
        (line(checker={"json_schema": {"type": "nonsense"}}), "checker.json_schema is no JSON Schema"),
        (line(checker={"json_schema": {"$ref": "http://127.0.0.1:9/"}}), "checker.json_schema is no"),
        (line(checker={"number": "42"}), "checker.number is no number"),
        (line(checker={"number": True}), "checker.number is no number"),
        (line(checker={"number": 10**400}), "checker.number is no number"),
        (line(checker={"number": {"value": 1, "within": 2}}), "checker.number is no number"),
        (
            b'{"messages": [{"role": "boss", "content": "x"}], "reference": "y"}',
            "messages[0].role is none of",
        ),
        (b'{"messages": [{"role": "user"}], "reference": "y"}', "messages[0].content is neither a text"),
    ],
)
def test_a_broken_line_is_named_with_its_remedy(data: bytes, said: str) -> None:
    (error,) = errors(line(reference="fine") + b"\n" + data)
    assert error.startswith("g.jsonl line 2: ")
    assert said in error
    assert "secret" not in error


def test_a_mark_of_byte_order_is_no_part_of_the_first_line() -> None:
    assert len(golden_set(b"\xef\xbb\xbf" + line(reference="one"), name="g").cases) == 1


def test_sets_are_bounded_and_never_empty() -> None:
    assert "g.jsonl holds no case" in errors(b"\n \n")[0]
    assert f"more than {MAX_CASES}" in errors(b"\n".join([line(reference="one")] * (MAX_CASES + 1)))[0]
    assert "more than 16777216" in errors(b" " * ((16 << 20) + 1))[0]
    assert errors(b"{\n" * 25)[-1] == "g.jsonl: 5 more lines are wrong"


@pytest.mark.parametrize(
    ("checker", "right", "wrong"),
    [
        ({"contains": "Paris"}, "It is Paris.", "It is paris."),
        ({"contains": ["a", "b"]}, "b a", "a"),
        ({"equals": "yes"}, " yes\n", "yes."),
        ({"regex": r"^\d{4}-\d\d$"}, "2024-05", "on 2024-05"),
        ({"number": 42}, "First 7, then it is 42.", "42, no: 43"),
        ({"number": 1234.5}, "1,234.50 EUR", "1.2345"),
        ({"number": -3}, "the result is \u22123", "the result is 3"),
        ({"number": {"value": 10, "tolerance": 0.5}}, "about 10.4", "about 10.6"),
        ({"number": 0.3}, "0.3", "three"),
        ({"number": 0.5}, "The answer is .5", "The answer is 5"),
        ({"number": -0.5}, "-.5", ".5"),
        ({"number": 12}, "for 10-12 players", "for -12 players"),
        ({"number": 3}, "due on 2023-12-03", "it is -3"),
        ({"number": 15}, "10%-15%", "-15%"),
        ({"number": 20000}, "some 20\u202f000 people", "000"),
        ({"number": 20000}, "some 20\u00a0000 or 20'000", "20 or 000"),
        ({"number": -3}, "x=-3", "x3"),
        ({"json_schema": {"type": "object", "required": ["a"]}}, '```json\n{"a": 1}\n```', '{"b": 1}'),
        ({"json_schema": {"type": "object"}}, "```JSON\n{}\n```", "```JSON\n1\n```"),
        ({"json_schema": {"type": "null"}}, "null", "nothing"),
    ],
)
def test_a_checker_tells_right_from_wrong(checker: dict[str, Any], right: str, wrong: str) -> None:
    check = check_of(checker)
    assert (check(right), check(wrong)) == (True, False)


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("Paris", "the capital is PARIS!", "Comparison"),
        ("1.5 kg", "It weighs 1.5 kg.", "It weighs 15 kg."),
        ("東京", "首都は東京です。", "首都は京都です。"),
        ("two  words", "Two words", "two other words"),
        ("main.js", "It is in `main.js`.", "It is in `domain.js`."),
        ("30 days", "Within `30 days`", "Within `300 days`"),
        ("29.00", "It costs $29.00", "It costs $129.00"),
        ("300", "some ~300", "more than >300"),
        ("300", "so x=300", "so x=3000"),
        ("300", "$300$", "\u2212300"),
        ("$30", "It is `$30`.", "It is \u20ac30."),
        ("Paris", "Paris\u2122 \U0001f389", "Parish\u2122"),
        ("Paris", "|Paris|", "|Parisian|"),
        ("Notepad", "It is `Notepad`", "It is Notepad++"),
        ("C++ and Go", "`C++` and `Go`", "C and Go"),
        ("是的", "是的。", "不是"),
    ],
)
def test_a_reference_is_held_by_the_answer(reference: str, right: str, wrong: str) -> None:
    check = reference_check(reference)
    assert (check(right), check(wrong)) == (True, False)


def test_a_long_reference_is_compared_by_its_words() -> None:
    reference = "the invoice is due within thirty days of its date unless both sides agree on another term"
    check = reference_check(reference)
    assert check(f"As a rule, {reference}.")
    assert check("The invoice is due thirty days from its date, unless another term is agreed by both sides.")
    assert not check("I do not know when it is due.")
    assert word_f1(["a", "b", "c"], ["b", "c", "d", "d"]) == 4 / 7
    assert normalised("  The  answer: 1.5 kg!") == "the answer 1.5 kg"


def test_patterns_and_blocks_take_linear_time() -> None:
    answer = "a" * 200_000 + "!"
    began = time.process_time()
    assert not check_of({"regex": "^(a+)+$"})(answer)
    assert not check_of({"json_schema": {}})("```\n" + " " * 200_000)
    assert not check_of({"number": 5})("1" * 200_000)
    assert time.process_time() - began < 5  # an end, no measurement


@pytest.mark.parametrize(
    "checker",
    [
        {"regex": r"\b30\s+days\b"},
        {"json_schema": {"type": "string", "pattern": r"\b30\s+days\b"}},
    ],
)
def test_a_long_answer_is_as_right_as_a_short_one(checker: dict[str, Any]) -> None:
    check = check_of(checker)
    said = f"{'Our shop is glad to help. ' * 4_000}You have 30 days."
    answers = [said, said.replace("30", "40")]
    if "json_schema" in checker:
        answers = [json.dumps(one) for one in answers]
    assert [check(one) for one in answers] == [True, False]


def test_an_answer_that_its_checker_cannot_judge_is_missing_and_the_endpoint_is_asked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(golden_checks, "WORK_OF_AN_ANSWER", 1_000_000)
    data = b"\n".join([line(checker={"regex": r"\b30\s+days\b"})] * 12)
    chat = ModelChat(lambda _body: Reply("x" * 100_000))
    found = asyncio.run(ask_golden(golden_set(data, name="g").cases, chat, None))
    assert (chat.asked, found.total.right, found.total.missing) == (12, 0, 12)
    assert found.canary[0].why == "an answer too long for its checker"


def asked(canary: list[Reply], stable: list[Reply]) -> Golden:
    """One case for each reply; a right answer holds 'right'."""
    lines = [
        json.dumps({"messages": [{"role": "user", "content": str(at)}], "reference": "right", "tags": tags})
        for at, tags in enumerate([["a"], ["a", "b"], ["b"], [], []][: len(canary)])
    ]
    cases = golden_set("\n".join(lines).encode(), name="g").cases

    def chat(replies: list[Reply]) -> ModelChat:
        return ModelChat(lambda body: replies[int(body["messages"][0]["content"])])

    return asyncio.run(ask_golden(cases, chat(canary), chat(stable) if stable else None))


RIGHT, WRONG, GONE = Reply("right"), Reply("no"), Reply(status=503)


def test_of_the_answers_only_the_beginning_is_kept_and_only_to_be_shown() -> None:
    cases = golden_set(line(reference="xxx"), name="g").cases
    chat = ModelChat(lambda _body: Reply("wrong " * 1000))
    assert asyncio.run(ask_golden(cases, chat, chat)).canary[0].text == ""
    shown = asyncio.run(ask_golden(cases, chat, chat, kept=8))
    assert (shown.canary[0].text, shown.stable and shown.stable[0].text) == ("wrong wr", "")


def test_pairs_are_counted_in_all_and_by_tag() -> None:
    found = asked([WRONG, WRONG, RIGHT, RIGHT, Reply(status=400)], [RIGHT, RIGHT, WRONG, RIGHT, RIGHT])
    assert found.total == Tally(5, 2, 0, 4, 0, lost=3, won=1)
    assert found.by_tag["a"] == Tally(2, 0, 0, 2, 0, lost=2, won=0)
    assert found.by_tag["b"] == Tally(2, 1, 0, 1, 0, lost=1, won=1)
    assert found.lost_lines == (1, 2, 5)


def test_an_answer_that_is_missing_makes_no_pair() -> None:
    found = asked([GONE, RIGHT], [RIGHT, RIGHT])
    assert found.total == Tally(2, 1, 1, 2, 0, lost=0, won=0)
    assert found.not_judged == "the endpoint gave no answer to 1 of 2 golden cases (at most 10%): status 503"


def test_without_stable_there_are_no_pairs() -> None:
    assert asked([WRONG, RIGHT], []).total == Tally(2, 1, 0, None, None, lost=0, won=0)


def test_an_endpoint_that_is_gone_is_not_asked_on() -> None:
    cases = golden_set(b"\n".join([line(reference="one")] * 100), name="g").cases
    chat = ModelChat(lambda _body: GONE)
    found = asyncio.run(ask_golden(cases, chat, None))
    assert chat.asked == 8
    assert found.total.missing == 100
