from __future__ import annotations

import hmac
import json
import math
import re

import pytest

from serving.router.assignment.assignment import (
    AssignmentKey,
    bucket_of,
    find_key,
    hash64,
    is_eligible,
    salt_of,
    unit_of,
)
from serving.router.bodies.body_facts import OPENING_TURNS, BodyFacts, read_facts
from serving.router.front.request_ids import RequestIds


def test_the_hash_has_its_reference_value() -> None:
    assert hash64("salt", "key") == 11907544988806243802


def test_the_boundary_between_salt_and_key_is_hashed() -> None:
    assert hash64("ab", "c") != hash64("a", "bc")


@pytest.mark.slow
def test_the_share_of_canary_keys_matches_the_weight_within_4_5_sigma() -> None:
    n, weight_bp = 100_000, 500
    canary = sum(bucket_of("r-1", f"user-{index}") < weight_bp for index in range(n))

    w = weight_bp / 10_000
    assert abs(canary - n * w) < 4.5 * math.sqrt(n * w * (1 - w))


@pytest.mark.slow
def test_assignments_with_different_salts_are_independent() -> None:
    n, w = 40_000, 0.2
    both = sum(
        bucket_of("one", f"user-{index}") < 2000 and bucket_of("two", f"user-{index}") < 2000
        for index in range(n)
    )

    assert abs(both - n * w * w) < 4.5 * math.sqrt(n * w * w * (1 - w * w))


def key_of(headers: dict[str, str], body: object, *, request_id: str) -> AssignmentKey:
    facts = read_facts(json.dumps(body).encode()) or BodyFacts()
    return find_key(headers.get("x-session-id"), facts, request_id=request_id)


TURN = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({"x-session-id": "s"}, {"prompt_cache_key": "p", "user": "u"}, "s"),
        ({}, {"prompt_cache_key": "p", "safety_identifier": "i", "user": "u"}, "p"),
        ({}, {"safety_identifier": "i", "user": "u"}, "i"),
        ({}, {"user": "u", "messages": [TURN, REPLY]}, "u"),
        ({"x-session-id": " "}, {"user": ""}, "req"),
        ({}, {"user": 7}, "req"),
        ({}, {"messages": [TURN]}, "req"),
        ({}, {"input": "just text"}, "req"),
        ({}, None, "req"),
    ],
)
def test_the_key_comes_from_the_first_source_that_is_present(
    headers: dict[str, str], body: object, text: str
) -> None:
    key = key_of(headers, body, request_id="req")

    assert (key.text, key.source) == (text, "request" if text == "req" else "sticky")


def test_a_conversation_keeps_its_key_as_it_grows() -> None:
    second = key_of({}, {"messages": [TURN, REPLY, TURN]}, request_id="a")
    third = key_of({}, {"messages": [TURN, REPLY, TURN, REPLY, TURN]}, request_id="b")

    assert second == third


def test_the_order_of_json_keys_in_a_turn_does_not_matter() -> None:
    reply = dict(reversed(REPLY.items()))
    one = key_of({}, {"messages": [TURN, REPLY, TURN]}, request_id="a")
    two = key_of({}, {"messages": [TURN, reply, TURN]}, request_id="a")

    assert one == two


def test_the_system_text_of_the_messages_api_is_part_of_a_conversation() -> None:
    turns = [TURN, REPLY, TURN]
    one, two = (key_of({}, {"system": text, "messages": turns}, request_id="a") for text in ("x", "y"))

    assert one != two


def test_blanks_between_the_words_of_json_do_not_matter() -> None:
    body = {"messages": [TURN, REPLY, TURN], "model": "chat"}
    spellings = [json.dumps(body, indent=2), json.dumps(body, separators=(",", ":"))]

    assert len({read_facts(text.encode()) for text in spellings}) == 1


def test_conversations_with_different_openings_have_different_keys() -> None:
    other = {"role": "assistant", "content": "hi!"}
    one = key_of({}, {"messages": [TURN, REPLY, TURN]}, request_id="a")
    two = key_of({}, {"messages": [TURN, other, TURN]}, request_id="a")

    assert one != two


def test_the_input_of_the_responses_api_is_a_conversation() -> None:
    assert key_of({}, {"input": [TURN, REPLY, TURN]}, request_id="a").source == "sticky"


def test_a_unit_hides_its_key_and_differs_between_rollouts() -> None:
    one, two = unit_of("secret", "r-1", "alice"), unit_of("secret", "r-2", "alice")

    assert one != two
    assert one != unit_of("other", "r-1", "alice")
    assert "alice" not in one
    assert one == unit_of("secret", "r-1", "alice")


def test_a_key_with_a_lone_surrogate_is_assigned() -> None:
    assert 0 <= bucket_of("salt", "\ud800") < 10_000
    assert unit_of("secret", "r-1", "\ud800")


@pytest.mark.parametrize("secret", ["k", "k" * 64, "k" * 65])
def test_a_unit_is_the_hmac_of_the_key(secret: str) -> None:
    expected = hmac.digest(secret.encode(), b"r-1\0alice", "sha256").hex()[:32]

    assert unit_of(secret, "r-1", "alice") == expected


@pytest.mark.parametrize(
    ("method", "path", "drawn"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/v1/chat/completions/batch", True),
        ("POST", "/v1/score", True),
        ("POST", "/v1/rerank", True),
        ("GET", "/v1/models", False),
        ("POST", "/tokenize", False),
        ("GET", "/v1/chat/completions", False),
    ],
)
def test_only_requests_for_an_answer_are_eligible(method: str, path: str, drawn: bool) -> None:
    assert is_eligible(method, path) is drawn


@pytest.mark.slow
def test_two_services_without_a_salt_pick_different_users() -> None:
    n, weight_bp = 20_000, 1000
    both = 0
    for index in range(n):
        buckets = [bucket_of(salt_of(service, ""), f"user-{index}") for service in ("chat", "search")]
        both += max(buckets) < weight_bp

    w = weight_bp / 10_000
    assert abs(both - n * w * w) < 4.5 * math.sqrt(n * w * w * (1 - w * w))


@pytest.mark.parametrize("turns", [[1, REPLY], [TURN] * OPENING_TURNS + [REPLY]])
def test_the_search_for_a_conversations_opening_has_an_end(turns: list[object]) -> None:
    """Half a million odd turns, each tried in vain, held up every stream for half a second."""
    facts = read_facts(json.dumps({"messages": turns}).encode())

    assert facts is not None
    assert facts.opening is None


def test_ids_of_requests_are_long_and_none_comes_twice() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(1000)]

    assert len(set(made)) == 1000
    assert all(re.fullmatch(r"req-[0-9a-f]{24}", one) for one in made)
