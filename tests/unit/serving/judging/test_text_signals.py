"""Signals of a text: what each finds, what it must leave alone, and what the text cannot do to it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.judging.text_signals import (
    compression_ratio,
    language,
    refuses,
    repeated_share,
    special_token,
)

LOOP = "The order has been shipped to you. " * 40
PLAIN = (
    "Open the settings of your account and choose the tab for notifications. Every message that we send has"
    " its own switch there, so that invoices still reach you when the newsletter is off. A change takes"
    " effect at once for new messages; those already on their way may arrive in the next hour. If a switch"
    " is grey, somebody with administrator rights decided it for the whole team, and only they can change it"
    " back. Write to them first and to us when they are away, with the name of your team and the day since"
    " which the message should stop."
)


def test_a_loop_repeats_itself_and_prose_does_not() -> None:
    loop, plain = repeated_share(LOOP), repeated_share(PLAIN)
    assert loop is not None
    assert loop > 0.9
    assert plain is not None
    assert plain < 0.05


def test_a_loop_at_the_end_of_a_long_answer_is_seen() -> None:
    words = " ".join(f"word{number}" for number in range(3000))
    share = repeated_share(words + LOOP * 4)
    assert share is not None
    assert share > 0.3


def test_a_loop_without_blanks_is_seen() -> None:
    share = repeated_share("请再说一遍。" * 60)
    assert share is not None
    assert share > 0.9


def test_a_short_text_says_nothing_of_repetition_or_compression() -> None:
    assert repeated_share("yes yes yes yes yes") is None
    assert compression_ratio("yes " * 20) is None


def test_a_loop_compresses_better_than_prose() -> None:
    loop, plain = compression_ratio(LOOP), compression_ratio(PLAIN + PLAIN[::-1])
    assert loop is not None
    assert plain is not None
    assert loop > 10 > 3 > plain


@pytest.mark.parametrize(
    "text",
    [
        "Paris.<|im_end|>",
        "Paris.<|eot_id|><|start_header_id|>assistant",
        "Paris.</s>",
        "Paris.<end_of_turn>\n",
        "[INST] What is it? [/INST] Paris",
        "Paris<｜end▁of▁sentence｜>",
        "<unk> is it",
        "<think>\nThe user asks for a city.\n</think>\n\nParis",
        "The user asks for a city.</think>Paris",
        '<tool_call>\n{"name": "find"}\n</tool_call>',
        "<|tool_call>call:find{}<tool_call|>",
        "find{}<tool_call|>",
        '[TOOL_CALLS][{"name": "find"}]',
        "find[ARGS]{}",
        "[gMASK]<sop>Paris",
        "Paris<unused99>",
        "Paris[|endofturn|]",
    ],
)
def test_a_special_token_as_text_is_found(text: str) -> None:
    assert special_token(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Use <s>old</s> for text that is struck out.",
        "if a <| b then c |> d",
        "a << 2 | b >> 3",
        "let xs = [|1; 2|] |> Array.map f",
        "Write <thinking> and <tools x> as you like, or [args].",
        "The tags <pad-left> and <endofturn> are yours.",
        "",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert special_token(text) is None


def test_a_token_that_the_request_names_is_an_answer_about_it() -> None:
    text = "The token <|im_end|> ends a turn."
    assert special_token(text, b'{"messages":[{"content":"What does <|im_end|> mean?"}]}') is None
    assert special_token(text + "<|im_start|>", b"What does <|im_end|> mean?") == "<|im_start|>"


@pytest.mark.parametrize("escaped", [b"\\u003c|im_end|\\u003e", b"<\\u007cim_end\\u007c>"])
def test_a_token_that_the_request_escapes_is_in_it_too(escaped: bytes) -> None:
    assert special_token("The token <|im_end|> ends a turn.", b'{"prompt":"' + escaped + b'"}') is None


def test_thoughts_that_the_request_asks_for_are_no_leak() -> None:
    request = b'{"messages":[{"content":"Think between <think> and </think> first."}]}'
    assert special_token("<think>Hm.</think>Paris", request) is None


def test_many_tokens_in_a_long_request_take_no_long_time() -> None:
    """Each of 10,900 was searched for in 256 KiB: 8 s."""
    text, request = "<|ab|>" * 13_000, b"x" * (256 << 10)
    began = time.process_time()
    assert special_token(text, request) == "<|ab|>"
    assert special_token(text, request + b"<|ab|>") is None
    assert time.process_time() - began < 2  # an end, no measurement


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t help with that request.",
        "I cannot provide instructions for this.",
        "We are unable to assist here.",
        "As an AI language model, I cannot have opinions.",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Je suis désolé, ce n'est pas possible.",
        "Lo siento, pero no puedo ayudar con eso.",
        "很抱歉，我无法协助您。",
        "申し訳ありませんが、お手伝いできません。",
    ],
)
def test_a_refusal_is_told_by_its_opening(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that! Reset the password like this: open the settings.",
        "You cannot divide by zero.",
        "I can help you with that.",
        "It cannot be undone, so make a backup first.",
        "Sorry for the delay; the order was shipped.",
        "A" * 300 + " I'm sorry, but I can't help with that.",
        "",
    ],
)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_languages_are_told_apart_and_code_has_none() -> None:
    assert language(PLAIN) == "en"
    assert (
        language("Öffnen Sie die Einstellungen Ihres Kontos und wählen Sie dort Benachrichtigungen.") == "de"
    )
    assert language("请打开您的帐户设置，然后选择通知选项卡，每条消息都有自己的开关，非常方便。") == "zh"
    assert language("def f(x):\n    return x + 1\n" * 20) in (None, "en")
    assert language("42") is None


@pytest.mark.slow
@given(st.text(max_size=2000), st.binary(max_size=200))
def test_no_text_breaks_a_signal(text: str, request: bytes) -> None:
    share = repeated_share(text)
    assert share is None or 0.0 <= share <= 1.0
    ratio = compression_ratio(text)
    assert ratio is None or ratio > 0.5
    special_token(text, request)
    refuses(text)
    language(text)


def test_half_of_a_pair_of_surrogates_breaks_nothing() -> None:
    text = "This is a sentence with half a pair \ud800 in it, which no encoding takes. " * 20
    assert language(text) == "en"
    assert compression_ratio(text) is not None
    assert special_token(text) is None
