"""Redaction of stored texts: what is replaced, what stays, and how long it takes."""

from __future__ import annotations

import time

import pytest

from serving.judging.redaction import PIECE, Redaction

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to jane.doe+x@mail.example.org, please", "write to [email-1], please"),
        ("call +49 (30) 901820-0 or 555-123-4567", "call [phone-1] or [phone-2]"),
        ("card 4111 1111 1111 1111 exp 12/27", "card [card-1] exp 12/27"),
        ("pay to GB82 WEST 1234 5698 7654 32 now", "pay to [account-1] now"),
        ("SSN 123-45-6789.", "SSN [ssn-1]."),
        ("from 192.0.2.17:8080", "from [ip-1]:8080"),
        ("host 192.0.2.17 and 2001:db8::17", "host [ip-1] and [ip-2]"),
        ("key sk-proj-abcdefghij0123456789", "key [key-1]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[key-1]"),
        (f"token {JWT} ends", "token [key-1] ends"),
        ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer [key-1]"),
        ('password = "correct horse"', 'password = "[password-1]"'),
        ("https://bob:hunter2@db.example/x", "https://[login-1]@db.example/x"),
        (
            "a -----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY----- b",
            "a [private key] b",
        ),
        ("cut off: -----BEGIN PRIVATE KEY-----\nMIIE", "cut off: [private key]"),
        ("data:image/png;base64,iVBORw0KGgo= is", "[data] is"),
    ],
)
def test_what_names_or_opens_something_is_replaced(text: str, redacted: str) -> None:
    assert Redaction().text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29 14:33:11 and 1764426791 s, 1764426791123 ms",
        "3.14159265358979 * 1000000000 = 3141592653.58979",
        "version 1.2.3 of 10.0.0, at 12:30:45",
        "4111 1111 1111 1112 is no card, DE00 1234 5678 9012 3456 78 no account",
        "token = tokenizer.encode(text); secret = os.environ['X']",
        "user@localhost, @handle, a@b",
        "127.0.0.1 and ::1, std::vector<int>, a::b::c",
        "x[1:2, ::3]; y[1::2]; f(a=1)",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert Redaction().text(text) == text


def test_the_same_value_has_the_same_mark_in_all_texts_of_a_pair() -> None:
    one = Redaction()
    request = {"messages": [{"role": "user", "name": "jane", "content": "I am a@x.org, he is b@x.org"}]}

    assert one.value(request) == {
        "messages": [{"role": "user", "content": "I am [email-1], he is [email-2]"}]
    }
    assert one.value(({"text": "Dear b@x.org", "n": 1, "more": None},)) == [
        {"text": "Dear [email-2]", "n": 1, "more": None}
    ]


def test_the_name_of_a_tool_stays() -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"a": True}}}

    assert Redaction().value({"tools": [tool]}) == {"tools": [tool]}


def test_nothing_is_missed_where_a_long_text_is_searched_in_pieces() -> None:
    word = "mail a.b@example.org or +49 30 901820 0 "
    text = word * (4 * PIECE // len(word))

    assert "@" not in Redaction().text(text)
    assert "9018" not in Redaction().text(text)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "text", ["a" * 300_000, "1" * 300_000, "a.b-" * 75_000, "::" * 150_000, " 1 2" * 75_000, "sk-" * 100_000]
)
def test_no_text_takes_long(text: str) -> None:
    began_s = time.process_time()
    Redaction().text(text)

    assert time.process_time() - began_s < 2.0
