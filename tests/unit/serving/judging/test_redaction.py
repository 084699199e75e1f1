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
        ("password: hunter22, host=a", "password: [password-1], host=a"),
        ("clientSecret='abcdefgh'", "clientSecret='[password-1]'"),
        ("db?password=secret12&x=1", "db?password=[password-1]&x=1"),
        ("host=a password='my secret' x", "host=a password='[password-1]' x"),
        ('DB_PASSWORD="hunter22"', 'DB_PASSWORD="[password-1]"'),
        ("AWS_SECRET_ACCESS_KEY=wJalr/K7MDENG", "AWS_SECRET_ACCESS_KEY=[password-1]"),
        ('{"client_secret": "abcdefgh"}', '{"client_secret": "[password-1]"}'),
        ('{\\"password\\": \\"hunter22\\"}', '{\\"password\\": \\"[password-1]\\"}'),
        ('"token": "abcdefgh12345678"', '"token": "[password-1]"'),
        ("secret: bob@example.org", "secret: [email-1]"),
        ("sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc", "[key-1]"),
        ("xapp-1-A0B1C2D3E4-1234567890123-abcdef", "[key-1]"),
        ("mysql://root:p@ss@localhost/db", "mysql://[login-1]@localhost/db"),
        ("postgres://alice:a/b@db.example:5432/app", "postgres://[login-1]@db.example:5432/app"),
        ("redis://:secretpw@host", "redis://[login-1]@host"),
        (
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQ\n-----END PGP PRIVATE KEY BLOCK-----",
            "[private key]",
        ),
        ("2226470000082007", "[card-1]"),
        ("4111\u00a01111\u202f1111\u202f1111", "[card-1]"),
        ("555\u2011123\u20114567 or 078\u201105\u20111120", "[phone-1] or [ssn-1]"),
        ("SSN 078-05-\n1120", "SSN [ssn-1]"),
        ("GB82\u00a0WEST\u00a01234\u00a05698\u00a07654\u00a032", "[account-1]"),
        ("bob\uff20test.org and jo@xn--80ak.xn--p1ai", "[email-1] and [email-2]"),
        ("почта@пример.рф", "[email-1]"),
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
        "http://localhost:8000/@user and http://a.example/x:y@z",
        "max_tokens: 100, token: Hello, password: required; 1764426791123, 2026\u201111\u201129",
        "2100000000000005, 20\u202f000",
        '{"token": "Hello", "logprob": -0.5}',
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


def test_a_card_may_be_a_number_of_json() -> None:
    value = {"card": 4111111111111111, "at": 1764426791123, "is": True, "x": 0.5}

    assert Redaction().value(value) == {**value, "card": "[card-1]"}


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
    "text",
    [
        "a" * 300_000,
        "1" * 300_000,
        "a.b-" * 75_000,
        "::" * 150_000,
        " 1 2" * 75_000,
        "sk-" * 100_000,
        "_" * 300_000,
        "a_" * 150_000,
        "_token=" * 40_000,
        "://a:" * 60_000,
        "secret=a " * 30_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    began_s = time.process_time()
    Redaction().text(text)

    assert time.process_time() - began_s < 2.0
