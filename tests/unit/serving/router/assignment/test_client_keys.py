"""Keys of clients: in every place where one may stand it is read, and from none it is passed on."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from serving.access import Access, ClientKey, digest_of
from serving.messages import Arm, Replica
from serving.router.assignment import clients
from serving.router.assignment.client_keys import KEYS_LIMIT, WORDS_LIMIT
from serving.router.exchange.exchange import Exchange
from serving.router.front.admission import Sent, admit
from serving.router.front.paths import find_target
from serving.router.types import Attempt, Refusal, Request
from serving.targets import Target
from tests.fakes.routed import Routed

KEY, UNKNOWN = "sk-0123456789abcdef", "sk-of-somebody-else"
ACCESS = Access({digest_of(KEY): ClientKey("ide", audiences=("staff",))}, audience_bp={"staff": 3000})
ENGINE = Arm("v-1", (Replica("http://stable"),))
ENDPOINT = Arm("v-1", (Replica("https://endpoint"),), True)
PROTOCOL = "openai-insecure-api-key."
PLACES: dict[str, tuple[dict[str, str], str]] = {
    "authorization": ({"authorization": "Bearer {}"}, ""),
    "x-api-key": ({"x-api-key": "{}"}, ""),
    "api-key": ({"api-key": "{}"}, ""),
    "x-goog-api-key": ({"x-goog-api-key": "{}"}, ""),
    "subprotocol": ({"sec-websocket-protocol": f"realtime, {PROTOCOL}{{}}, openai-beta.v1"}, ""),
    "the only subprotocol": ({"sec-websocket-protocol": f"{PROTOCOL}{{}}"}, ""),
    "api-key of the query": ({}, "api-version=1&api-key={}&a=b"),
    "api_key of the query": ({}, "api_key={}"),
    "key of the query": ({}, "a=b&key={}"),
    "encoded name": ({}, "api%2dkey={}"),
}


def at(place: str, key: str) -> tuple[dict[str, str], str]:
    headers, query = PLACES[place]
    return {name: value.format(key) for name, value in headers.items()}, query.format(key)


def sent(routed: Routed, headers: Mapping[str, str], query: str) -> tuple[Exchange, Attempt]:
    raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
    request = Request("POST", Target("/v1/chat/completions", query), raw, b"{}")
    exchange = routed.core.begin(request, request_id="req-1", now_s=1000.0, wall_s=1.8e9)
    assert isinstance(exchange, Exchange)
    attempt = exchange.next_attempt()
    assert isinstance(attempt, Attempt)
    return exchange, attempt


def passed_on(attempt: Attempt) -> str:
    return attempt.path + repr(attempt.headers)


@pytest.mark.parametrize("stable", [ENGINE, ENDPOINT], ids=["engine", "endpoint"])
@pytest.mark.parametrize("access", [None, ACCESS], ids=["no keys", "keys"])
@pytest.mark.parametrize("key", [KEY, UNKNOWN], ids=["known", "unknown"])
@pytest.mark.parametrize("place", PLACES)
def test_no_key_of_a_client_reaches_an_engine_from_where_keys_stand(
    place: str, key: str, access: Access | None, stable: Arm
) -> None:
    _, attempt = sent(Routed().use(weight_bp=0, access=access, stable=stable), *at(place, key))

    assert key not in passed_on(attempt)


@pytest.mark.parametrize("place", PLACES)
def test_a_key_is_known_wherever_it_stands(place: str) -> None:
    exchange, _ = sent(Routed().use(weight_bp=1000, access=ACCESS), *at(place, KEY))

    assert exchange.start.assignment.w == 0.3


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("key", "who"), [(KEY, "key ide"), (UNKNOWN, 401)])
def test_a_client_is_admitted_by_the_head_alone(place: str, key: str, who: str | int) -> None:
    routed = Routed().use(access=Access(ACCESS.keys, keys_required=True))
    headers, query = at(place, key)
    target = b"/v1/chat/completions?" + query.encode()
    raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
    found = find_target("POST", target, ("chat",))
    client = admit({"chat": routed.core}, Sent("POST", target, raw, ""), found)

    assert (client.status if isinstance(client, Refusal) else client) == who


def test_the_rest_of_a_query_and_of_the_subprotocols_is_passed_on_as_it_came() -> None:
    routed = Routed().use(access=ACCESS)
    headers, _ = at("subprotocol", KEY)
    _, attempt = sent(routed, headers, f"after=a%2Fb&key={KEY}&&limit=2&api-version=1")

    assert attempt.path.partition("?")[2] == "after=a%2Fb&&limit=2&api-version=1"
    assert dict(attempt.headers)[b"sec-websocket-protocol"] == b"realtime, openai-beta.v1"


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"x-litellm-key": KEY}, ""),
        ({"x-litellm-key": f"Bearer {KEY}"}, ""),
        ({"sec-websocket-protocol": f"realtime, {KEY}"}, ""),
        ({}, f"access_token={KEY}"),
        ({}, KEY),
        ({}, f"{KEY}=1"),
        ({}, f"x=key%3D{KEY}"),
        ({}, f"x=http://h/{KEY}%3Fa"),
        ({"x-stainless-foo": f"key={KEY}"}, ""),
        ({"x-stainless-foo": f'"{KEY}"'}, ""),
        ({"x-stainless-foo": f"Bearer:{KEY}"}, ""),
        ({"x-stainless-foo": f"<{KEY}>"}, ""),
        ({"referer": f"http://h/?api_key={KEY}"}, ""),
        ({"referer": f"http://h/{KEY}/chat"}, ""),
        ({"user-agent": f"tool/1.0 ({KEY})"}, ""),
        ({"accept": KEY}, ""),
        ({"content-type": f"application/json; key={KEY}"}, ""),
    ],
)
def test_a_key_that_the_table_knows_is_passed_on_from_no_other_place(
    headers: dict[str, str], query: str
) -> None:
    exchange, attempt = sent(
        Routed().use(weight_bp=1000, access=ACCESS), {**headers, "accept-language": "1"}, query
    )

    assert KEY not in passed_on(attempt)
    assert (b"accept-language", b"1") in attempt.headers
    assert exchange.start.assignment.w == 0.1


@pytest.mark.parametrize("key", ["QUJD+RG/Rkc9PQ==", "a.b-c_d~e", "pass:w0rd!{secret}"])
@pytest.mark.parametrize("value", ["{}", "key={}", '"{}"'])
def test_a_key_of_other_characters_is_found_where_it_stands_apart(key: str, value: str) -> None:
    access = Access({digest_of(key): ClientKey("ide")})
    _, attempt = sent(Routed().use(access=access), {"x-stainless-foo": value.replace("{}", key)}, "")
    is_apart = value == "{}" or "!" not in key

    assert (key in passed_on(attempt)) is not is_apart


def test_what_looks_like_a_key_elsewhere_is_passed_on() -> None:
    headers = {"x-stainless-key": UNKNOWN, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00"}
    _, attempt = sent(Routed().use(access=ACCESS), headers, f"access_token={UNKNOWN}")

    assert {(name.encode(), value.encode()) for name, value in headers.items()} <= set(attempt.headers)
    assert attempt.path.endswith(f"?access_token={UNKNOWN}")


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is digested, to look it up among the keys."""
    made = list[str]()

    def noted(key: str) -> str:
        made.append(key)
        return digest_of(key)

    monkeypatch.setattr(clients, "digest_of", noted)
    return made


WORDS = " ".join(f"{n:08}" for n in range(WORDS_LIMIT))
MANY = [
    ({f"x-{n}": WORDS for n in range(20)}, ""),
    ({"x-stainless-a": WORDS + " " + WORDS}, ""),
    ({"sec-websocket-protocol": WORDS.replace(" ", ", ") + ", " + WORDS.replace(" ", ", ")}, ""),
    ({"sec-websocket-protocol": ",".join([PROTOCOL + "a"] * 3 * WORDS_LIMIT)}, ""),
    ({}, "&".join(f"a={n:08}" for n in range(3 * WORDS_LIMIT))),
    ({}, "a=" + "+".join(f"{n:08}" for n in range(3 * WORDS_LIMIT))),
    ({}, "&".join(f"key={n:08}" for n in range(3 * WORDS_LIMIT))),
    ({}, "&".join(f"{n:08}" for n in range(3 * WORDS_LIMIT))),
    ({"user-agent": "/".join(f"{n:08}" for n in range(3 * WORDS_LIMIT))}, ""),
    ({f"x-{n}": "=".join(f"a{n}/b{m:08}+" for m in range(100)) for n in range(20)}, ""),
]


@pytest.mark.parametrize(("headers", "query"), MANY)
def test_of_a_request_a_bounded_number_of_words_is_digested(
    headers: dict[str, str], query: str, digests: list[str]
) -> None:
    """A header of 60 KB in words of 8 characters took 16 ms."""
    sent(Routed().use(access=ACCESS), headers, query)

    assert len(digests) <= WORDS_LIMIT + KEYS_LIMIT


def test_what_has_more_words_is_not_passed_on_and_hides_nothing_else() -> None:
    headers = {
        "x-stainless-a": f"{WORDS} {KEY}",
        "x-stainless-b": KEY,
        "x-stainless-c": "short and long words of more",
        "x-stainless-d": WORDS,
    }
    _, attempt = sent(
        Routed().use(access=ACCESS), headers, f"a={WORDS.replace(' ', '+')}+{KEY}&b={KEY}&c=0123456789"
    )

    assert [
        name
        for name, _ in attempt.headers
        if name in (b"x-stainless-a", b"x-stainless-b", b"x-stainless-c", b"x-stainless-d")
    ] == [b"x-stainless-c"]
    assert attempt.path.partition("?")[2] == "c=0123456789"


def test_a_header_is_passed_on_with_as_many_words_as_are_looked_up() -> None:
    _, attempt = sent(Routed().use(access=ACCESS), {"x-stainless-a": WORDS}, "")

    assert (b"x-stainless-a", WORDS.encode()) in attempt.headers
