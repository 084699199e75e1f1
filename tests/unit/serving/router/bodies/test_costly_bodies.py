"""Bodies that cost more than their bytes: what is kept of them, how they are read, and who waits for them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from serving.router.assignment.assignment import find_key
from serving.router.bodies.body_facts import KEY_LIMIT, MODEL_LIMIT, ONE_SPELLING, BodyFacts, read_facts
from serving.router.bodies.body_reader import BodyReader, Job
from serving.router.bodies.prepared import Prepared, prepare
from serving.router.front.admission import network_of

LONG = "a" * 1_000_000


def facts(body: dict[str, object], *, is_messages: bool = False) -> BodyFacts:
    found = read_facts(json.dumps(body).encode(), is_messages=is_messages)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "body",
    [
        {"user": LONG},
        {"prompt_cache_key": LONG},
        {"safety_identifier": LONG},
        {"metadata": {"user_id": LONG}},
        {"user": LONG, "n": "2"},  # read in the other way
    ],
)
def test_a_long_key_counts_as_its_digest(body: dict[str, object]) -> None:
    found = facts(body, is_messages=True)

    assert found.key is not None
    assert len(found.key) <= KEY_LIMIT
    assert found.key == facts({"user": LONG}).key != facts({"user": LONG + "b"}).key
    assert len(find_key(None, found, request_id="r").text) <= KEY_LIMIT


def test_a_key_of_the_usual_length_stays_as_it_is() -> None:
    assert facts({"user": "b" * KEY_LIMIT}).key == "b" * KEY_LIMIT


def test_a_long_name_of_a_model_is_cut() -> None:
    form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n' + LONG.encode() + b"\r\n--b--\r\n"
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    of_form = prepare(form, headers, (), route="POST /x", is_eligible=False, by_service={"a": ()}).facts

    assert facts({"model": LONG}).model == "a" * MODEL_LIMIT == of_form.model


def cpu_s(body: bytes) -> float:
    began_s = time.thread_time()
    assert read_facts(body) is not None
    return time.thread_time() - began_s


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"messages":[{"role":"assistant","content":', b"}]}"),
        (b'{"n":"1","stream":', b"}"),
        (b'{"n":', b"}"),
        (b'{"n":"1","background":', b"}"),
    ],
)
def test_numbers_of_many_digits_cost_what_other_values_do(before: bytes, after: bytes) -> None:
    numbers = [b"[" + b",".join([one] * 20_000) + b"]" for one in (b"1." + b"2" * 30 + b"e-300", b'"2"')]
    hard, easy = (min(cpu_s(before + one + after) for _ in range(3)) for one in numbers)

    assert hard < 4 * easy + 0.005


def opening(blank: str, text: str) -> str | None:
    turns = f'[{{"content":{blank}"{text}", "role":"user"}},{{"role":"assistant","content":1.50}}]'
    found = read_facts(f'{{"messages":{turns}}}'.encode())
    assert found is not None
    return found.opening


def test_a_short_opening_is_the_same_however_it_is_spaced() -> None:
    assert opening("", "a") == opening("  ", "a") != opening("", "b")


def test_a_long_opening_is_digested_as_it_is_written() -> None:
    text = "a" * ONE_SPELLING

    assert opening("", text) == opening("", text)
    assert len({opening("", text), opening(" ", text), opening("", text + "b")}) == 3


async def order_of(sent: list[tuple[str, bytes, bool]], took_s: dict[str, float]) -> list[str]:
    """The clients in the order in which their bodies are read. took_s: by client, for each of its bodies."""
    reader, done = BodyReader(), list[str]()
    now_s = [1000.0]

    async def ask(job: Job) -> Prepared:
        done.append(job.client)
        now_s[0] += took_s[job.client]
        return Prepared()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_ask", ask)
        patch.setattr("serving.router.bodies.body_reader.boot_s", lambda: now_s[0])
        encoded = [(b"content-encoding", b"gzip")]
        asked = [
            reader.prepare(body, encoded if zipped else [], (), route="/", is_eligible=True, client=client)
            for client, body, zipped in sent
        ]
        await asyncio.gather(*asked)
    return done


async def test_who_has_cost_most_waits_for_the_others() -> None:
    sent = [("bad", b"a", False)] * 3 + [("good", b"a", False)] * 3

    assert await order_of(sent, {"bad": 5.0, "good": 0.1}) == ["bad", "good", "good", "good", "bad", "bad"]


async def test_clients_that_cost_the_same_take_turns() -> None:
    sent = [("a", b"x", False)] * 2 + [("b", b"x", False)] * 2

    assert await order_of(sent, {"a": 0.2, "b": 0.2}) == ["a", "b", "a", "b"]


async def test_what_may_become_large_waits_for_what_is_small_whoever_is_new() -> None:
    """A hundred addresses with a compressed body each do not keep a small body of another waiting."""
    sent = [(f"bad-{n}", b"a" * 100_000, True) for n in range(100)] + [("good", b"a" * 2_000_000, False)]
    order = await order_of(sent, {"good": 0.1} | {f"bad-{n}": 5.0 for n in range(100)})

    assert order.index("good") == 0


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("a:b:c", "a:b:c"),
    ],
)
def test_a_client_without_a_key_is_its_network(peer: str, network: str) -> None:
    assert network_of(peer) == network
