"""Whatever way a canary's stream breaks, its client reads one valid stream with the whole text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from serving.credentials import DataSecret
from serving.messages import Arm, Replica, RequestRecord, RouteTable
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Attempt, Deliver, Request, Step
from serving.targets import Target
from tests.fakes.token_engine import PROMPT, Answer, TokenEngine

How = Literal["broken", "ended", "error", "garbage"]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ERROR = b'data: {"error":{"message":"engine died","code":500}}\n\ndata: [DONE]\n\n'
GARBAGE = (
    b"data: {\x98/\x87",
    b"data: 9",
    b"\x98/\x87",
    b'data: {"id":"x"}}',
    b'data: {"id":"\xff"}',
    b"data: [[]",
)
ENDS = ("stop", "length")
TEXTS = st.text(alphabet='ab é日🇫"\\\n', min_size=1, max_size=20)


def core(weight_bp: int = 10_000) -> RouterCore:
    router = RouterCore("chat", router="r")
    stable = Arm("v-1", (Replica("http://s1"), Replica("http://s2")))
    canary = Arm("v-2", (Replica("http://c1"),))
    secret = DataSecret("s3cret")
    router.on_table(RouteTable("chat", 1, 1, 1, "r-1", "s", weight_bp, stable, canary, 0, secret), sent_s=10)
    return router


class Client:
    """Drives one exchange: its engines break as `cuts` say, the rest of their streams is whole."""

    def __init__(
        self,
        path: str,
        body: dict[str, Any],
        engines: tuple[TokenEngine, TokenEngine],
        weight_bp: int = 10_000,
    ) -> None:
        self.router = core(weight_bp)
        self.path, self.body, self.engines = path, body, engines
        request = Request("POST", Target(path), (), json.dumps(body).encode())
        exchange = self.router.begin(request, request_id="req-1", now_s=10.1, wall_s=500.0)
        assert isinstance(exchange, Exchange)
        self.exchange = exchange
        self.data = b""
        self.is_finished_at_first_cut: bool | None = None
        self.is_stable_sound = True

    def run(self, cuts: Iterator[tuple[int, How]], *, parts: int) -> None:
        """cuts: bytes of each stream after which it breaks, and how. parts: bytes that arrive at once."""
        is_over = False
        while not is_over:
            attempt = self.exchange.next_attempt()
            if isinstance(attempt, Deliver):
                is_over = self._take(attempt)
                continue
            assert isinstance(attempt, Attempt)
            is_over = self._attempt(attempt, cuts, parts)

    def _attempt(self, attempt: Attempt, cuts: Iterator[tuple[int, How]], parts: int) -> bool:
        engine, body = self.engines[attempt.arm], json.loads(bytes(attempt.body))
        assert self.exchange.answered(200, engine.head(attempt.path, body)) is Step.HOLD
        if attempt.path == "/tokenize":
            assert body["model"] == "chat"
            self.exchange.received(engine.tokenize(), now_s=12.0)
            return self._take(self.exchange.ended(now_s=12.0))
        whole = b"".join(engine.events(attempt.path, body))
        is_first = not isinstance(body.get("prompt"), list)
        may_break = attempt.arm == 1 or not is_first or not self.is_stable_sound
        at, how = next(cuts, (len(whole), "ended")) if may_break else (len(whole), "ended")
        data = whole[:at]
        if how == "error" and at < len(whole):
            data = data[: data.rfind(b"\n\n") + 2] if b"\n\n" in data else b""
            data += ERROR
        elif how == "garbage":
            data = data[: data.rfind(b"\n\n") + 2] if b"\n\n" in data else b""
            data += GARBAGE[at % len(GARBAGE)] + b"\n\n" + whole[len(data) :]
        if self.is_finished_at_first_cut is None:
            passed = data[: data.rfind(b"\n\n") + 2]
            self.is_finished_at_first_cut = any(f'"finish_reason":"{one}"'.encode() in passed for one in ENDS)
        for start in range(0, len(data), parts):
            action = self.exchange.received(data[start : start + parts], now_s=11.0)
            if action is Step.AGAIN or (isinstance(action, Deliver) and action.then == "again"):
                return self._take(action)
            self._take(action)
        if how == "broken":
            return self._take(self.exchange.broken("cut", now_s=12.0))
        return self._take(self.exchange.ended(now_s=12.0))

    def _take(self, action: object) -> bool:
        if isinstance(action, Deliver):
            self.data += action.data
            assert action.then != "break"
        return isinstance(action, Deliver) and action.then == "end"

    def record(self) -> RequestRecord:
        self.router.on_table(None, sent_s=20.0)
        (one,) = self.router.outbox.next_batch(now_s=600.0).records
        return one


def request(path: str, usage: str, limit: int | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": "chat", "stream": True, "temperature": 0}
    asked |= {"messages": [{"role": "user", "content": "q"}]} if path == CHAT else {"prompt": "q"}
    if usage != "no":
        asked["stream_options"] = {"include_usage": True, "continuous_usage_stats": usage == "always"}
    return asked if limit is None and path == CHAT else {**asked, "max_tokens": limit or 4000}


@settings(max_examples=400, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    path=st.sampled_from([CHAT, COMPLETIONS]),
    text=TEXTS,
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    usage=st.sampled_from(["no", "once", "always"]),
    limit=st.one_of(st.none(), st.integers(1, 30)),
    cuts=st.lists(
        st.tuples(st.integers(0, 6000), st.sampled_from(["broken", "ended", "error", "garbage"])),
        min_size=1,
        max_size=2,
    ),
    parts=st.sampled_from([1, 7, 200, 100_000]),
)
@example(CHAT, "é", (1,), "no", None, [(430, "broken")], 100_000)
@example(COMPLETIONS, "é", (3, 2, 4), "once", 1, [(712, "ended"), (158, "ended")], 7)
@example(COMPLETIONS, '🇫a\n" "', (3, 3, 3), "no", 30, [(575, "garbage"), (265, "garbage")], 200)
@pytest.mark.slow
def test_a_stream_broken_anywhere_is_one_valid_stream_with_the_whole_text(
    path: str,
    text: str,
    sizes: tuple[int, ...],
    usage: str,
    limit: int | None,
    cuts: list[tuple[int, How]],
    parts: int,
) -> None:
    stable, canary = TokenEngine(text, sizes), TokenEngine(text, sizes[::-1], "canary")
    body = request(path, usage, limit)
    client = Client(path, body, (stable, canary))
    client.run(iter(cuts), parts=parts)
    expected = Answer(stable.plain(path, body), path == CHAT)
    answer, record = Answer(client.data, path == CHAT), client.record()

    assert answer.text == expected.text
    assert answer.finish == expected.finish
    assert answer.usage == (expected.usage if usage != "no" else None)
    assert (record.status, record.outcome in ("answered", "fallback")) == (200, True)
    is_failure = bool(record.attempts) and record.outcome == "fallback"
    assert record.error is (is_failure or record.cause is not None)
    if client.is_finished_at_first_cut and cuts[0][1] not in ("error", "garbage"):
        # An answer without a word, such as the first byte of a letter, is stable's to give, unless its limit
        # is why.
        is_void = record.cause == "empty"
        served = ("fallback", 0) if is_void else ("answered", 1)
        assert (record.error, record.outcome, record.served_arm) == (is_void, *served)
    if record.takeover_at is not None:
        assert (record.error, record.arm, record.taken_over_by) == (True, 1, 0)
        assert "cut" in {one.cause for one in record.attempts if one.arm == 1}
        assert answer.id == "id-canary"
        assert record.prompt_tokens == len(PROMPT)


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("usage", ["no", "once", "always"])
def test_every_cut_point_of_a_stream_without_a_limit(path: str, usage: str) -> None:
    """Also that most cuts are taken over at all, which the property above does not say."""
    engines = TokenEngine("naïve 日本語 🇫🇷 end"), TokenEngine("naïve 日本語 🇫🇷 end", (1,), "canary")
    body = request(path, usage, None)
    events = engines[1].events(path, body)
    taken_over = 0
    for cut in range(len(events)):
        client = Client(path, body, engines)
        client.run(iter([(len(b"".join(events[:cut])) + 20, "broken")]), parts=100_000)
        answer, record = Answer(client.data, path == CHAT), client.record()
        taken_over += record.takeover_at is not None

        assert (answer.text, answer.finish) == ("naïve 日本語 🇫🇷 end", "stop")
        if usage != "no":
            tokens = len(engines[0].answer)
            assert answer.usage == (len(PROMPT), tokens, len(PROMPT) + tokens)

    assert taken_over >= len(events) - 5


def test_a_stream_that_a_replica_of_stable_drops_is_continued_by_another() -> None:
    engines = TokenEngine("abc"), TokenEngine("abc")
    client = Client(CHAT, request(CHAT, "once", None), engines, weight_bp=1)
    client.is_stable_sound = False
    cut = len(b"".join(engines[0].events(CHAT, client.body)[:3]))
    client.run(iter([(cut, "broken")]), parts=100_000)
    record = client.record()

    assert Answer(client.data, True).text == "abc"
    assert (record.arm, record.error, record.cause, record.outcome) == (0, True, "cut", "answered")
    assert (record.takeover_at, record.taken_over_by) == (2, 0)
    assert len({one.replica for one in record.attempts}) == 2
