"""Identical engines, identical records: whatever a client does, asks for and is answered, the arms are alike.

Every cell of the table (client x kind of answer x behaviour of the engines) is run twice, assigned to stable
and to the canary, with the same script behind both. What the gate reads of the two records must be equal;
times up to TOLERANCE_MS, which is less than any step of a script.

What may differ, and why:
- `outcome`, `status`, `served_arm`, `retries`, `attempts`, `taken_over_by`, `takeover_at`, `covered`: what
  was done for the user after the first attempt, which for a canary is more; `cause`: the word for it. Of
  `outcome` the gate reads whether the client left and whether the request was open, which must be equal.
- `fell_back`: of a canary alone, by its definition; it is no metric of a gate.
- The values of a request whose first attempt failed or was rejected: the gate reads `error`, `rejected`.
- The values of a request whose client left before an answer: the gate reads that it left.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from controller.evidence.records import draw_of
from serving.messages import RequestRecord
from serving.router.exchange.exchange import Exchange
from serving.router.types import Limits
from tests.fakes.token_engine import TokenEngine
from tests.fakes.virtual_wire import (
    LAST_CHUNK,
    LIMITS,
    Behaviour,
    Habit,
    Piece,
    ask,
    chunked,
    head,
    virtual_time,
)

TOLERANCE_MS = 60.0  # the pool looks at its deadlines every 50 ms
CHAT, COMPLETIONS, RESPONSES, MESSAGES, COHERE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/cohere/v2/chat",
)
TOOLS = [{"type": "function", "function": {"name": "f"}}]
USAGE = {"stream_options": {"include_usage": True}}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}]}
STREAM = {**ASKED, "stream": True}
ENGINE = TokenEngine("abcde", name="x")

HABITS = {
    "reads all": Habit(),
    "reads slowly": Habit(reads_bytes_a_s=100e3),
    "leaves before the head": Habit(leaves_at_s=0.05),
    "leaves at 0.17 s": Habit(leaves_at_s=0.17),
    "leaves at 0.63 s": Habit(leaves_at_s=0.63),
    "leaves at 1.93 s": Habit(leaves_at_s=1.93),
    "leaves after the head": Habit(leaves_after_head_s=0.0),
    "leaves on the second word": Habit(leaves_on_reading=b'"b"'),
    "leaves on the finish": Habit(leaves_on_reading=b'"stop"'),
    "read time-out 0.93 s": Habit(read_timeout_s=0.93),
    "read time-out 2.33 s": Habit(read_timeout_s=2.33),
    "half-closes": Habit(closes_its_side=True),
    "pipelines": Habit(pipelines=True),
}
# Path and body.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "unary": (CHAT, ASKED),
    "embeddings": ("/v1/embeddings", {"input": "x"}),
    "chat": (CHAT, STREAM),
    "chat, usage": (CHAT, {**STREAM, **USAGE}),
    "completions, usage": (COMPLETIONS, {"prompt": "q", "stream": True, "max_tokens": 16, **USAGE}),
    "tools": (CHAT, {**STREAM, "tools": TOOLS}),
    "tools, usage": (CHAT, {**STREAM, "tools": TOOLS, **USAGE}),
    "n=2": (CHAT, {**STREAM, "n": 2}),
    "responses": (RESPONSES, {"input": "q", "stream": True}),
    "messages": (MESSAGES, STREAM),
    "cohere": (COHERE, STREAM),
}


def sse(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def is_content(event: bytes) -> bool:
    return any(b'"%b"' % word in event for word in (b"a", b"b", b"c", b"d", b"e"))


def events_of(path: str, body: dict[str, Any]) -> list[bytes]:
    """The whole stream."""
    if path in (CHAT, COMPLETIONS):
        if body.get("n") != 2:
            return ENGINE.events(path, body)
        words = [(i % 2, word) for i, word in enumerate("abcdeabcde")]
        made = [sse(id="c", choices=[{"index": i, "delta": {"content": word}}]) for i, word in words]
        ends = [sse(id="c", choices=[{"index": i, "delta": {}, "finish_reason": "stop"}]) for i in (0, 1)]
        return [*made, *ends, b"data: [DONE]\n\n"]
    if path == RESPONSES:
        made = [sse(type="response.output_text.delta", delta=word) for word in "abcde"]
        usage = {"input_tokens": 3, "output_tokens": 5}
        done = sse(type="response.completed", response={"id": "r", "usage": usage, "stop": "stop"})
        return [sse(type="response.created", response={"id": "r"}), *made, done]
    if path == COHERE:
        said = [{"message": {"content": {"text": word}}} for word in "abcde"]
        last = {"finish_reason": "COMPLETE", "usage": {"tokens": {"input_tokens": 3, "output_tokens": 5}}}
        done = sse(type="message-end", delta=last, stop="stop")
        started = sse(type="message-start", id="c", delta={"message": {"role": "assistant"}})
        return [started, *(sse(type="content-delta", delta=one) for one in said), done]
    made = [sse(type="content_block_delta", delta={"type": "text_delta", "text": word}) for word in "abcde"]
    end = sse(type="message_delta", delta={"stop_reason": "stop"}, usage={"output_tokens": 5})
    return [sse(type="message_start", message={"id": "m"}), *made, end, sse(type="message_stop")]


def whole_of(path: str) -> bytes:
    if path == CHAT:
        choice = {"index": 0, "message": {"role": "assistant", "content": "abcde"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 5}
        return json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()
    return json.dumps({"id": "e", "data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}}).encode()


Cut = Callable[[str, dict[str, Any]], Sequence[Piece] | None]


def engine(of_stream: Cut, of_whole: Cut | None = None) -> Behaviour:
    """An engine that answers so; what a takeover asks of it, it answers properly."""

    def behave(path: str, body: dict[str, Any]) -> Sequence[Piece] | None:
        if not path:  # a connection
            return ()
        if path == "/tokenize":
            data = ENGINE.tokenize()
            more = "x-canaryctl-tokens: d1\r\n"
            return [(0.3, head(200, "application/json", length=len(data), more=more) + data)]
        if isinstance(body.get("prompt"), list):
            return sound(path, body)
        return of_stream(path, body) if body.get("stream") or of_whole is None else of_whole(path, body)

    return behave


def start(path: str, body: dict[str, Any]) -> bytes:
    if not body.get("stream"):
        return head(200, "application/json", length=len(whole_of(path)))
    is_named = path in (CHAT, COMPLETIONS) and body.get("n") != 2
    return head(more=f"x-canaryctl-tokens: {'d1 4093'}\r\n" if is_named else "")


def paced(
    *,
    head_s: float = 0.1,
    first_s: float = 0.1,
    gap_s: float = 0.2,
    upto: int | None = None,
    ping: bool = False,
) -> Cut:
    """The head, then event after event; `upto`: only so many of them, negative: all but so many."""

    def behave(path: str, body: dict[str, Any]) -> list[Piece]:
        pieces: list[Piece] = [(head_s, start(path, body))]
        if not body.get("stream"):
            return [*pieces, (first_s, whole_of(path))]
        if ping:
            pieces += [(0.4, chunked(b": ping\n\n"))] * 5
        events = events_of(path, body)
        for index, event in enumerate(events[:upto]):
            pieces.append((gap_s if index else first_s, chunked(event)))
            if ping:
                pieces += [(0.1, chunked(b": ping\n\n"))] * 2
        return pieces

    return behave


def then(first: Cut, *more: Piece) -> Cut:
    """So, and after a stream these pieces."""
    return lambda path, body: [*(first(path, body) or ()), *(more if body.get("stream") else ())]


def ended(first: Cut) -> Cut:
    return then(first, (0.0, LAST_CHUNK))


sound = ended(paced())


def until_finish(path: str, body: dict[str, Any], *, gap_s: float = 0.2) -> list[Piece]:
    """All up to the event by which the last choice finishes."""
    events = events_of(path, body)
    last = max(i for i, one in enumerate(events) if b'"stop"' in one)
    kept = events[: last + 1]
    if path == MESSAGES:
        kept = events
    return [(0.1, start(path, body)), *((gap_s, chunked(one)) for one in kept)]


def within_usage(path: str, body: dict[str, Any]) -> list[Piece]:
    pieces = until_finish(path, body)
    rest = events_of(path, body)[len(pieces) - 1 :]
    return [*pieces, (0.1, chunked(rest[0][:30])), (0.1, "reset")] if rest else [*pieces, (0.1, "reset")]


def status(code: int, *, is_cut: bool = False) -> Cut:
    def behave(path: str, body: dict[str, Any]) -> list[Piece]:
        data = b'{"error":{"message":"no"}}'
        answer = head(code, "application/json", length=len(data) + 100 * is_cut) + data
        return [(0.1, answer), (0.1, "reset")] if is_cut else [(0.1, answer)]

    return behave


def answers(kind: str, data: bytes, *, code: int = 200) -> Cut:
    return lambda path, body: [(0.1, head(code, kind, length=len(data)) + data)]


def large(size: int) -> Cut:
    def behave(path: str, body: dict[str, Any]) -> list[Piece]:
        if not body.get("stream"):
            answer = json.loads(whole_of(path)) | {"more": "x" * size}
            data = json.dumps(answer).encode()
            step = len(data) // 10
            parts = [data[at : at + step] for at in range(0, len(data), step)]
            return [
                (0.1, head(200, "application/json", length=len(data))),
                *((0.1, one) for one in parts),
            ]
        first, *rest = events_of(path, body)
        words = next(one for one in rest if is_content(one))
        word = words[words.find(b"data:") :]
        big = word.replace(b'"a"', b'"%b"' % (b"x" * (size // 10))).replace(
            b'"b"', b'"%b"' % (b"x" * (size // 10))
        )
        events = [first, *[big] * 10, *rest]
        return [
            (0.1, start(path, body) if body.get("n") == 2 or body.get("tools") else head()),
            *((0.1, chunked(one)) for one in events),
            (0.0, LAST_CHUNK),
        ]

    return behave


WHOLE = b'{"id":"c","choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
CUT_WHOLE = b'{"id":"c","choices":[{"index":0,"message":{"content":""},"finish_reason":"length"}]}'
FILTERED = sse(id="c", choices=[{"index": 0, "delta": {"content": ""}, "finish_reason": "content_filter"}])
HEARTBEATS = b"event: ping\ndata: 08:00\n\ndata: null\n\n"


def with_heartbeats(path: str, body: dict[str, Any]) -> list[Piece]:
    events = [(0.2, chunked(HEARTBEATS + one)) for one in events_of(path, body)]
    return [(0.1, start(path, body)), *events, (0.0, LAST_CHUNK)]


PING: Piece = (0.4, chunked(b": ping\n\n"))
RESET: Piece = (0.1, "reset")
ENGINES: dict[str, Behaviour] = {
    "sound": engine(sound),
    "slow head": engine(ended(paced(head_s=3.0))),
    "slow first content": engine(ended(paced(first_s=3.0))),
    "first content after the deadline": engine(ended(paced(first_s=8.6))),
    "slow between events": engine(ended(paced(gap_s=1.1))),
    "open at the deadline": engine(ended(paced(gap_s=2.4))),
    "pings": engine(ended(paced(ping=True))),
    "silent from the head on": engine(lambda path, body: [(0.1, start(path, body))]),
    "never a head": engine(lambda path, body: []),
    "stalls": engine(paced(upto=3)),
    "stalls, then goes on": engine(
        lambda path, body: [
            *paced(upto=3)(path, body),  # type: ignore[misc]
            (4.0, chunked(b"".join(events_of(path, body)[3:])) if body.get("stream") else b""),
            (0.0, LAST_CHUNK),
        ]
    ),
    "pings for ever in mid-answer": engine(then(paced(upto=3), *[PING] * 60)),
    "cut in mid-answer": engine(then(paced(upto=3), RESET)),
    "cut after the head": engine(lambda path, body: [(0.1, start(path, body)), RESET]),
    "clean end before the finish": engine(then(paced(upto=3), (0.1, LAST_CHUNK))),
    "cut after the finish": engine(lambda path, body: [*until_finish(path, body), RESET]),
    "clean end after the finish": engine(lambda path, body: [*until_finish(path, body), (0.1, LAST_CHUNK)]),
    "cut within the usage": engine(within_usage),
    "silent after the finish": engine(until_finish),
    "pings for ever after the finish": engine(lambda path, body: [*until_finish(path, body), *[PING] * 60]),
    "no blank line at the end": engine(
        lambda path, body: [
            *until_finish(path, body)[:-1],
            (0.2, chunked(events_of(path, body)[len(until_finish(path, body)) - 2][:-1])),
            (0.0, LAST_CHUNK),
        ]
    ),
    "error first": engine(
        lambda path, body: [(0.1, start(path, body)), (0.1, chunked(sse(error="no"))), RESET]
    ),
    "error in mid-answer": engine(then(paced(upto=3), (0.1, chunked(sse(error="no"))), (0.1, LAST_CHUNK))),
    "garbage in mid-answer": engine(then(paced(upto=3), (0.1, chunked(b"data: <html>\n\n")), RESET)),
    "no HTTP": engine(lambda path, body: [(0.1, b"hello\r\n\r\n")]),
    "HTML": engine(answers("text/html", b"<html>")),
    "{}": engine(answers("application/json", b"{}")),
    "empty body": engine(answers("application/json", b"")),
    "empty stream": engine(lambda path, body: [(0.1, head()), (0.1, LAST_CHUNK)]),
    "no content": engine(
        lambda path, body: [
            (0.1, head()),
            *((0.2, chunked(one)) for one in events_of(path, body) if not is_content(one)),
            (0.0, LAST_CHUNK),
        ],
        answers(
            "application/json", b'{"id":"c","choices":[{"message":{"content":""},"finish_reason":"stop"}]}'
        ),
    ),
    "reset before the head": engine(lambda path, body: [RESET]),
    "refused": lambda path, body: None,
    "202": engine(answers("application/json", b"{}", code=202)),
    "201": engine(answers("application/json", WHOLE, code=201)),
    "whole, named a stream": engine(answers("text/event-stream", WHOLE)),
    "whole, without a name": engine(answers("", WHOLE)),
    "cut at its limit before any text": engine(
        lambda path, body: [(0.1, head()), (0.2, chunked(FILTERED)), (0.2, LAST_CHUNK)],
        answers("application/json", CUT_WHOLE),
    ),
    "heartbeats as data": engine(with_heartbeats, sound),
    "307": engine(status(307)),
    "400": engine(status(400)),
    "400, cut": engine(status(400, is_cut=True)),
    "404": engine(status(404)),
    "429": engine(status(429)),
    "500": engine(status(500)),
    "503": engine(status(503)),
    "503, cut": engine(status(503, is_cut=True)),
    "600 kB": engine(large(600_000)),
    "2 MB": engine(large(2_000_000)),
}


def read_by_the_gate(record: RequestRecord) -> dict[str, Any]:
    """What the evaluator reads of a record (`evaluator._value`); `UNANSWERED` has no other value."""
    draw = draw_of(record)
    common = {"error": draw.error, "rejected": bool(draw.flags.get("rejected"))}
    if draw.is_unanswered:
        return common
    if draw.is_cancelled:
        return {"cancelled": True}
    flags = {name: on for name, on in draw.flags.items() if name not in ("fell_back", "rejected")}
    times = {"latency_ms": draw.latency_ms, "ttft_ms": draw.ttft_ms, "itl_ms": draw.itl_ms}
    others = {"tokens": draw.tokens, "prompt_tokens": record.prompt_tokens, "finish": record.finish_reason}
    return {**common, **flags, **times, **others}


def differences(stable: Sequence[RequestRecord], canary: Sequence[RequestRecord]) -> list[str]:
    """What differs, as words."""
    if len(stable) != len(canary):
        return [f"{len(stable)} and {len(canary)} records"]
    found = []
    for one, other in zip(stable, canary, strict=True):
        left, right = read_by_the_gate(one), read_by_the_gate(other)
        for name in sorted(left.keys() | right.keys()):
            a, b = left.get(name), right.get(name)
            if isinstance(a, float) and isinstance(b, float):
                is_equal = abs(a - b) <= TOLERANCE_MS
            else:
                is_equal = a == b
            if not is_equal:
                found.append(f"{name}: {a} and {b}")
    return found


def differing_cells(
    kind: str, clients: Sequence[str], *, replicas: int = 1, external: bool = False
) -> dict[tuple[str, str], list[str]]:
    """What differs between the arms, by engine and client."""
    path, body = KINDS[kind]
    found = {}
    with virtual_time() as loop:
        for engines, behaviour in ENGINES.items():
            for client in clients:
                asked: dict[str, Any] = {
                    "path": path,
                    "body": body,
                    "replicas": replicas,
                    "external": external,
                }
                stable, canary = (
                    loop.run_until_complete(ask(behaviour, HABITS[client], arm=arm, **asked)).records
                    for arm in (0, 1)
                )
                if differing := differences(stable, canary):
                    found[engines, client] = differing
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "unary",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("chat, usage", "tools, usage", "responses")
        ),
    ],
)
def test_identical_engines_have_identical_records(kind: str) -> None:
    telling = [
        "reads all",
        "reads slowly",
        "leaves at 0.63 s",
        "leaves after the head",
        "read time-out 0.93 s",
    ]

    assert differing_cells(kind, telling) == {}


@pytest.mark.parametrize("first_s", [2.0, 4.0, 9.0])
@pytest.mark.parametrize("kind", ["unary", "chat", "tools"])
@pytest.mark.parametrize("client", ["reads all", "leaves at 0.63 s", "read time-out 2.33 s"])
def test_a_shorter_limit_of_the_canary_is_an_error_on_either_arm(
    kind: str, client: str, first_s: float
) -> None:
    """`LIMITS` have the canary's limit to a stream where a request is recorded as open; here it is before."""
    limits = replace(LIMITS, canary_stream_s=3.0, canary_whole_s=3.0, settle_s=20.0, stable_s=60.0)
    behaviour, (path, body) = engine(ended(paced(first_s=first_s))), KINDS[kind]
    with virtual_time() as loop:
        stable, canary = (
            loop.run_until_complete(
                ask(behaviour, HABITS[client], arm=arm, path=path, body=body, limits=limits)
            ).records
            for arm in (0, 1)
        )

    assert differences(stable, canary) == []
    if client == "reads all":
        assert stable[0].error is (first_s > 3.0)


# A stop 2 s after the request; the time to drain is 25 s. Seconds that the whole answer takes.
@pytest.mark.slow
@pytest.mark.sample(6)
@pytest.mark.parametrize("seconds", [10, 18, 24, 40, 1000])
@pytest.mark.parametrize("kind", ["unary", "chat", "tools", "messages"])
def test_a_router_that_stops_is_the_same_to_both_arms(kind: str, seconds: int) -> None:
    path, body = KINDS[kind]
    gap_s = seconds / len(events_of(path, body)) if kind != "unary" else 0.0
    first_s = seconds if kind == "unary" or seconds == 1000 else 0.5
    behaviour = engine(ended(paced(first_s=first_s, gap_s=gap_s)))
    seen = []
    with virtual_time() as loop:
        for arm in (0, 1):
            of_wire: dict[str, Any] = {"limits": replace(Limits(), drain_s=25.0), "stop": (2.0, 25.0)}
            asked = ask(behaviour, HABITS["reads all"], arm=arm, path=path, body=body, **of_wire)
            seen.append(loop.run_until_complete(asked))

    stable, canary = seen
    assert differences(stable.records, canary.records) == []
    for one in seen:
        (record,) = one.records
        if seconds < 25:
            assert (record.outcome, record.error, record.arm) == ("answered", False, record.served_arm)
            assert b'"error"' not in one.answer
        else:
            assert (record.outcome in ("failed", "cut"), record.error, record.cause) == (True, None, None)
            assert b'"stopping"' in one.answer or b'"error"' in one.answer


@pytest.mark.parametrize("engines", ["silent after the finish", "no content, then silent"])
@pytest.mark.parametrize("kind", ["chat, usage", "tools", "tools, usage", "n=2", "messages", "cohere"])
@pytest.mark.parametrize("stop_s", [3.0, 8.0])  # before and after a first keep-alive
def test_what_is_whole_when_a_router_stops_is_the_clients_on_either_arm(
    kind: str, engines: str, stop_s: float
) -> None:
    def says_nothing(path: str, body: dict[str, Any]) -> list[Piece]:
        return [one for one in until_finish(path, body) if isinstance(one[1], str) or not is_content(one[1])]

    behaviour = ENGINES.get(engines) or engine(says_nothing)
    path, body = KINDS[kind]
    seen = []
    with virtual_time() as loop:
        for arm in (0, 1):
            of_wire: dict[str, Any] = {"limits": replace(Limits(), drain_s=1.0), "stop": (stop_s, 1.0)}
            asked = ask(behaviour, HABITS["reads all"], arm=arm, path=path, body=body, **of_wire)
            seen.append(loop.run_until_complete(asked))

    stable, canary = seen
    assert differences(stable.records, canary.records) == []
    for one in seen if engines == "silent after the finish" else ():
        assert [(record.outcome, record.error) for record in one.records] == [("answered", False)]
        assert b'"stopping"' not in one.answer


@pytest.mark.slow
@pytest.mark.parametrize("fleet", [{}, {"replicas": 2}, {"external": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_identical_engines_have_identical_records_in_every_cell(kind: str, fleet: dict[str, Any]) -> None:
    assert differing_cells(kind, list(HABITS), **fleet) == {}


@pytest.mark.slow
def test_identical_engines_have_identical_records_at_any_moment_of_leaving() -> None:
    rng, found = random.Random(5), []
    with virtual_time() as loop:
        for _ in range(1500):
            kind, engines = rng.choice(list(KINDS)), rng.choice(list(ENGINES))
            habit = rng.choice(
                [
                    Habit(leaves_at_s=rng.uniform(0.0, rng.choice([1.0, 9.0]))),
                    Habit(leaves_after_head_s=rng.uniform(0.0, 3.0)),
                    Habit(read_timeout_s=rng.uniform(0.1, 5.0)),
                    Habit(reads_bytes_a_s=rng.choice([1e3, 1e4, 1e6]), leaves_at_s=rng.uniform(2.0, 20.0)),
                ]
            )
            path, body = KINDS[kind]
            asked: dict[str, Any] = {"path": path, "body": body, "replicas": rng.choice([1, 2])}
            stable, canary = (
                loop.run_until_complete(ask(ENGINES[engines], habit, arm=arm, **asked)).records
                for arm in (0, 1)
            )
            if differing := differences(stable, canary):
                found.append((kind, engines, habit, differing))

    assert found == []


@pytest.mark.slow
def test_the_table_finds_a_router_that_treats_the_arms_unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exchange, "reads_on", False)

    assert ("600 kB", "reads slowly") in differing_cells("tools", ["reads slowly"])
