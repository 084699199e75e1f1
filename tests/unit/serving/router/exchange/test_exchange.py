"""Exchange and router core with explicit events: no socket, no clock."""

from __future__ import annotations

import json
import math

import pytest

from serving.credentials import DataSecret
from serving.engine_headers import VIA_HEADER
from serving.messages import CANARY, Arm, Replica, RequestRecord, RouteTable
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Attempt, Deliver, Refusal, Request, Step
from serving.targets import Target

CHAT = "/v1/chat/completions"
SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json"), (b"content-length", b"20")]
FENCE = [(b"x-canaryctl-refused", b"fence")]
GOOD = b'data: {"id":"a1","choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
ANSWER = b'{"id":"a2","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'


def table(
    *,
    weight_bp: int = 10_000,
    stable: tuple[str, ...] = ("http://stable",),
    canary: tuple[str, ...] | None = ("http://canary",),
    external: bool = False,
    change: int = 1,
) -> RouteTable:
    arm = None if canary is None else Arm("v-2", tuple(map(Replica, canary)), external)
    return RouteTable(
        service="chat",
        epoch=3,
        revision=change,
        change=change,
        rollout="r-1",
        salt="salt",
        weight_bp=weight_bp if canary is not None else 0,
        stable=Arm("v-1", tuple(map(Replica, stable))),
        canary=arm,
        stage=2,
        secret=DataSecret("s3cret"),
    )


def core(one: RouteTable | None = None, *, sent_s: float = 10.0) -> RouterCore:
    router = RouterCore("chat", router="r")
    router.on_table(one or table(), sent_s=sent_s)
    return router


def request(
    body: object = None, *, path: str = CHAT, method: str = "POST", headers: tuple[tuple[str, str], ...] = ()
) -> Request:
    raw = tuple((name.encode(), value.encode()) for name, value in headers)
    asked = {"stream": True} if body is None else body
    return Request(method, Target(path), raw, json.dumps(asked).encode())


def begin(router: RouterCore, one: Request | None = None, *, now_s: float = 10.1) -> Exchange:
    exchange = router.begin(one or request(), request_id="req-1", now_s=now_s, wall_s=500.0)
    assert isinstance(exchange, Exchange)
    return exchange


def attempt(exchange: Exchange) -> Attempt:
    one = exchange.next_attempt()
    assert isinstance(one, Attempt)
    return one


def answer(exchange: Exchange, *, body: bytes = GOOD, headers: object = SSE, status: int = 200) -> None:
    """One more attempt, which is answered within half a second."""
    attempt(exchange)
    assert exchange.answered(status, headers) is Step.HOLD  # type: ignore[arg-type]
    assert exchange.received(body, now_s=10.4) is not Step.AGAIN
    assert isinstance(exchange.ended(now_s=10.6), Deliver)


def record(router: RouterCore, *, sent_s: float = 20.0) -> RequestRecord:
    """The only record, confirmed by a later poll."""
    router.on_table(None, sent_s=sent_s)
    (one,) = router.outbox.next_batch(now_s=600.0).records
    return one


# ---- assignment


def test_a_canary_request_carries_the_revision_and_the_secret() -> None:
    headers = dict(attempt(begin(core())).headers)

    assert headers[b"x-canaryctl-revision"] == b"3.1"
    assert headers[b"x-canaryctl-secret"] == b"s3cret"


def test_a_stable_request_carries_no_revision_because_stable_is_never_fenced() -> None:
    one = attempt(begin(core(table(canary=None))))

    assert str(one.url) == "http://stable" + CHAT
    assert b"x-canaryctl-revision" not in dict(one.headers)


def test_an_external_endpoint_never_sees_our_secret_or_revision() -> None:
    names = {name for name, _ in attempt(begin(core(table(external=True)))).headers}

    assert {name for name in names if name.startswith(b"x-canaryctl-")} == {VIA_HEADER}


def test_an_external_endpoint_never_sees_a_raw_session_id() -> None:
    named = request(headers=(("x-session-id", "alice@example.org"), ("openai-beta", "1")))
    outside, inside = (
        {name for name, _ in attempt(begin(core(table(external=external)), named)).headers}
        for external in (True, False)
    )

    assert (b"x-session-id" in outside, b"x-session-id" in inside) == (False, True)
    assert b"openai-beta" in outside


def test_the_clients_credentials_and_forged_headers_never_reach_an_engine() -> None:
    forged = (
        ("authorization", "Bearer x"),
        ("x-api-key", "k"),
        ("x-canaryctl-revision", "9.9"),
        ("connection", "close, x-private"),
        ("x-private", "1"),
        ("x-not-known", "1"),
        ("traceparent", "1"),
    )
    names = [name for name, _ in attempt(begin(core(table(canary=None)), request(headers=forged))).headers]

    assert names == [b"traceparent", b"accept-encoding", b"x-request-id", b"x-canaryctl-secret"]


def test_without_a_lease_no_canary_request_starts_and_nothing_is_randomised() -> None:
    router = core(sent_s=10.0)
    exchange = begin(router, now_s=11.01)
    answer(exchange)
    one = record(router)

    assert (one.arm, one.assigned_by, one.w) == (0, "fenced", 0.0)


def test_a_lease_that_expires_before_the_head_is_written_withholds_the_request() -> None:
    router = core(sent_s=10.0)
    exchange = begin(router, now_s=10.9)
    attempt(exchange)
    may_start = (exchange.may_start(10.9), exchange.may_start(11.1))
    exchange.broken("withheld", now_s=10.3)

    assert may_start == (True, False)
    assert str(attempt(exchange).url) == "http://stable" + CHAT


def test_a_canary_withdrawn_before_the_head_is_written_withholds_the_request() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    router.on_table(table(canary=None, change=2), sent_s=10.2)

    assert not exchange.may_start(10.3)


def test_a_canary_without_ready_replicas_excludes_both_arms_from_the_evidence() -> None:
    router = core(table(canary=()))
    answer(begin(router))
    one = record(router)

    assert (one.arm, one.assigned_by, one.w) == (0, "no-capacity", 0.0)


def test_an_ineligible_request_goes_to_stable_and_is_not_recorded() -> None:
    router = core()
    exchange = begin(router, request(path="/v1/models", method="GET"))
    one = attempt(exchange)
    exchange.answered(200, JSON)
    exchange.ended(now_s=11.0)

    assert str(one.url) == "http://stable/v1/models"
    assert router.outbox.next_batch(now_s=600.0).records == ()


def test_the_record_has_bucket_weight_unit_and_key_source_but_not_the_key() -> None:
    router = core(table(weight_bp=10_000))
    answer(begin(router, request({"user": "alice", "stream": True})))
    one = record(router)

    assert (one.arm, one.w, one.assigned_by, one.stage, one.rollout) == (1, 1.0, "sticky", 2, "r-1")
    assert one.bucket is not None
    assert "alice" not in repr(one)


def test_the_record_has_the_size_of_the_request_body() -> None:
    sent = request({"user": "alice"})
    router = core()
    answer(begin(router, sent), body=ANSWER, headers=JSON)

    assert record(router).body_bytes == len(sent.body)


def test_before_any_table_the_answer_is_503_with_a_reason() -> None:
    router = RouterCore("chat", router="r")
    refusal = router.begin(request(), request_id="req-1", now_s=1.0, wall_s=1.0)

    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.retry_after_s) == (503, 1)
    assert "service chat has no version in service yet" in refusal.message


def test_an_older_table_never_replaces_a_newer_one() -> None:
    router = core(table(change=5))
    router.on_table(table(change=4), sent_s=11.0)

    assert router.applied == (3, 5)


# ---- failures before the first byte


@pytest.mark.parametrize("why", ["timeout", "error in the answer"])
def test_a_failed_canary_is_replaced_by_stable_and_the_error_counts_against_the_canary(why: str) -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.broken(why, now_s=10.3)  # type: ignore[arg-type]
    answer(exchange)
    one = record(router)

    assert (one.arm, one.served_arm, one.outcome) == (CANARY, 0, "fallback")
    assert (one.error, one.cause, one.status) == (True, why, 200)


@pytest.mark.parametrize("body", [b"<html>log in</html>", b""])
def test_a_canarys_page_in_place_of_an_answer_is_replaced_by_stable(body: bytes) -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.answered(200, [(b"content-type", b"text/html")])
    exchange.received(body, now_s=10.2)
    ended = exchange.ended(now_s=10.3)
    answer(exchange)
    one = record(router)

    assert ended is Step.AGAIN
    assert (one.error, one.cause, one.served_arm) == (True, "malformed", 0)


@pytest.mark.parametrize("status", [500, 503, 429, 307])
def test_a_canarys_status_that_is_no_answer_is_replaced_by_stable(status: int) -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    head = exchange.answered(status, JSON)
    answer(exchange)
    one = record(router)

    assert head is Step.AGAIN
    assert (one.error, one.cause, one.served_arm) == (True, f"status {status}", 0)


@pytest.mark.parametrize(
    ("path", "why", "attempts"),
    [
        ("/v1/batches", "reset", 1),
        ("/v1/batches", "cut", 1),
        ("/v1/batches", "timeout", 1),
        ("/v1/batches", "refused", 2),
        ("/v1/files", "reset", 1),
        (CHAT, "reset", 2),
    ],
)
def test_what_creates_something_is_repeated_only_if_it_was_never_sent(
    path: str, why: str, attempts: int
) -> None:
    router = core(table(weight_bp=0, stable=("http://a", "http://b"), external=True))
    exchange = begin(router, request(path=path))
    asked = 0
    while isinstance(exchange.next_attempt(), Attempt):
        asked += 1
        exchange.broken(why if asked == 1 else "timeout", now_s=10.2)  # type: ignore[arg-type]
        if asked > 3:
            break

    assert min(asked, 2) == attempts


def test_latency_includes_the_failed_attempt() -> None:
    router = core()
    exchange = begin(router, now_s=10.0)
    attempt(exchange)
    exchange.broken("timeout", now_s=10.3)
    answer(exchange)

    assert record(router).latency_ms == pytest.approx(400.0)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
@pytest.mark.parametrize("streams", [False, True])
def test_a_canarys_4xx_is_replaced_by_stable_and_is_a_rejection(status: int, streams: bool) -> None:
    router = core()
    exchange = begin(router, request({"stream": streams}))
    attempt(exchange)
    head = exchange.answered(status, JSON)
    answer(exchange)
    one = record(router)

    assert head is Step.AGAIN
    assert (one.rejected, one.error, one.cause) == (True, False, f"status {status}")
    assert (one.arm, one.served_arm, one.status, one.outcome) == (CANARY, 0, 200, "fallback")
    assert (one.latency_ms, one.ttft_ms, one.completion_tokens) == (None, None, None)


@pytest.mark.parametrize("second", [200, 404, 503])
def test_what_stable_answers_the_second_time_changes_no_rejection(second: int) -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.answered(404, JSON)
    answer(exchange, status=second, headers=JSON, body=ANSWER)
    one = record(router)

    assert (one.rejected, one.error, one.cause, one.latency_ms) == (True, False, "status 404", None)
    assert one.status == second


def test_stables_4xx_is_a_rejection_by_the_same_rule_and_reaches_the_client() -> None:
    router = core(table(canary=None))
    answer(begin(router), status=404, headers=JSON, body=b"{}")
    one = record(router)

    assert (one.rejected, one.error, one.cause, one.latency_ms) == (True, False, "status 404", None)
    assert (one.served_arm, one.status, one.outcome) == (0, 404, "answered")


def test_a_429_is_an_error_and_no_rejection() -> None:
    router = core(table(canary=None))
    answer(begin(router), status=429, headers=JSON, body=b"{}")
    one = record(router)

    assert (one.rejected, one.error, one.cause) == (False, True, "status 429")


def test_a_client_that_leaves_before_any_answer_leaves_the_rejection_unknown() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.cancelled(now_s=10.5)

    assert record(router).rejected is None


def outcomes(weight_bp: int, statuses: list[int]) -> tuple[object, ...]:
    """(error, rejected, cause, attempts on the arm) of a request whose arm has two replicas."""
    pair = ("http://a", "http://b")
    router = core(table(weight_bp=weight_bp, stable=pair, canary=pair))
    exchange = begin(router)
    asked = 0
    for status in statuses:
        asked += attempt(exchange).arm == (1 if weight_bp else 0)
        if exchange.answered(status, JSON) is Step.HOLD:
            exchange.received(ANSWER, now_s=10.4)
            exchange.ended(now_s=10.5)
            break
    one = record(router)
    return one.error, one.rejected, one.cause, asked


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 307, 202, 206, 404, 200])
def test_the_first_attempts_outcome_is_recorded_by_one_rule_on_both_arms(status: int) -> None:
    stable, canary = outcomes(0, [status, 200]), outcomes(10_000, [status, 200, 200])

    assert stable == canary
    assert stable[0] is (status not in (404, 200, 202, 206))  # with a sound answer


@pytest.mark.parametrize("why", ["refused", "reset", "cut", "timeout"])
def test_a_repeat_that_succeeds_does_not_change_the_first_attempts_error(why: str) -> None:
    seen = []
    for weight_bp in (0, 10_000):
        pair = ("http://a", "http://b")
        router = core(table(weight_bp=weight_bp, stable=pair, canary=pair))
        exchange = begin(router)
        attempt(exchange)
        exchange.broken(why, now_s=10.3)  # type: ignore[arg-type]
        answer(exchange, headers=JSON, body=ANSWER)
        one = record(router)
        seen.append((one.error, one.cause, one.retries, one.status))

    assert seen == [(True, why, 1, 200)] * 2


@pytest.mark.slow
def test_identical_arms_with_one_replica_in_two_that_fails_have_the_same_error_rate() -> None:
    rates = []
    for weight_bp in (0, 10_000):
        errors = 0
        for user in range(200):
            pair = ("http://good", "http://bad")
            router = core(table(weight_bp=weight_bp, stable=pair, canary=pair))
            exchange = begin(router, request({"user": f"u{user}"}))
            while True:
                is_good = attempt(exchange).endpoint.authority == "good"
                if exchange.answered(200 if is_good else 503, JSON) is Step.HOLD:
                    break
            exchange.received(ANSWER, now_s=10.4)
            exchange.ended(now_s=10.5)
            errors += record(router).error is True
        rates.append(errors)

    assert abs(rates[0] - rates[1]) < 45
    assert 60 < rates[0] < 140


def test_an_endpoint_cannot_claim_to_be_fenced() -> None:
    router = core(table(external=True))
    exchange = begin(router)
    attempt(exchange)
    exchange.answered(409, FENCE)
    answer(exchange)
    one = record(router)

    assert (one.outcome, one.rejected) == ("fallback", True)


def test_a_fenced_request_is_served_by_stable_and_is_no_error_of_the_canary() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    head = exchange.answered(409, FENCE)
    answer(exchange)
    one = record(router)

    assert head is Step.AGAIN
    assert (one.outcome, one.error, one.cause, one.served_arm) == ("fenced", False, None, 0)
    # They would hold the wait for the canary that left, and stable's time.
    assert (one.latency_ms, one.ttft_ms, one.itl_ms, one.completion_tokens) == (None, None, None, None)


@pytest.mark.parametrize("why", [b"closed", b"secret", b"cancelled"])
def test_a_refusal_by_the_engines_front_never_reaches_the_client(why: bytes) -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    head = exchange.answered(503, [(b"x-canaryctl-refused", why)])
    answer(exchange)
    one = record(router)

    assert head is Step.AGAIN
    assert (one.outcome, one.error, one.cause) == ("fallback", True, "refused")


def test_a_failure_before_the_fence_stays_an_error() -> None:
    router = core(table(canary=("http://c1", "http://c2")))
    exchange = begin(router)
    attempt(exchange)
    exchange.broken("reset", now_s=10.3)
    attempt(exchange)
    exchange.answered(409, FENCE)
    answer(exchange)

    assert record(router).cause == "reset"


def test_a_409_without_the_refused_header_is_the_engines_own_answer() -> None:
    exchange = begin(core(table(canary=None)))
    attempt(exchange)

    assert exchange.answered(409, JSON) is Step.HOLD


def test_a_refused_connection_is_first_retried_on_the_canarys_other_replica() -> None:
    router = core(table(canary=("http://c1", "http://c2")))
    exchange = begin(router)
    first = attempt(exchange)
    exchange.broken("refused", now_s=10.3)
    second = attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(GOOD, now_s=10.3)
    exchange.ended(now_s=10.4)
    one = record(router)

    assert {str(first.url), str(second.url)} == {"http://c1" + CHAT, "http://c2" + CHAT}
    assert (one.error, one.cause, one.retries) == (True, "refused", 1)
    assert (one.outcome, one.served_arm) == ("answered", CANARY)


def test_a_reset_connection_is_retried_once_before_stable_serves() -> None:
    exchange = begin(core())
    urls = []
    for _ in range(3):
        urls.append(str(attempt(exchange).url))
        exchange.broken("reset", now_s=10.3)

    assert urls == ["http://canary" + CHAT] * 2 + ["http://stable" + CHAT]


def test_stable_is_tried_on_every_replica_while_connections_are_refused() -> None:
    router = core(table(canary=None, stable=("http://a", "http://b", "http://c")))
    exchange = begin(router)
    urls = set()
    for _ in range(3):
        urls.add(str(attempt(exchange).url))
        exchange.broken("refused", now_s=10.3)
    refusal = exchange.next_attempt()

    assert urls == {"http://a" + CHAT, "http://b" + CHAT, "http://c" + CHAT}
    assert isinstance(refusal, Refusal)
    assert refusal.status == 503


def test_stable_is_retried_after_503_and_the_last_answer_is_passed_on() -> None:
    exchange = begin(core(table(canary=None, stable=("http://a", "http://b"))))
    attempt(exchange)
    first = exchange.answered(503, JSON)
    attempt(exchange)
    second = exchange.answered(503, JSON)

    assert first is Step.AGAIN
    assert second is Step.HOLD
    assert exchange.ended(now_s=10.5).head.status == 503  # type: ignore[union-attr]


def test_stable_never_falls_back_to_a_canary() -> None:
    router = core(table(weight_bp=1, stable=()))
    exchange = begin(router)

    assert isinstance(exchange.next_attempt(), Refusal)


def test_fallback_uses_stable_of_the_current_table() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    router.on_table(table(canary=None, stable=("http://newer",), change=2), sent_s=10.2)
    exchange.broken("timeout", now_s=10.3)

    assert str(attempt(exchange).url) == "http://newer" + CHAT


@pytest.mark.parametrize("why", [b"closed", b"secret"])
def test_when_stables_only_engine_is_dead_the_client_gets_503_with_retry_after(why: bytes) -> None:
    exchange = begin(core(table(canary=None)))
    attempt(exchange)
    head = exchange.answered(503, [(b"x-canaryctl-refused", why)])
    refusal = exchange.next_attempt()

    assert head is Step.AGAIN
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.retry_after_s) == (503, 1)
    assert "no replica of stable version v-1 answers" in refusal.message


def test_when_no_replica_answers_the_client_gets_503_and_the_record_an_error() -> None:
    router = core(table(canary=None))
    exchange = begin(router)
    attempt(exchange)
    exchange.broken("refused", now_s=10.3)
    refusal = exchange.next_attempt()
    assert isinstance(refusal, Refusal)
    exchange.refused(refusal, now_s=10.9)
    one = record(router)

    assert json.loads(refusal.body())["error"]["code"] == "no_capacity"
    assert (one.outcome, one.error, one.status, one.served_arm) == ("failed", True, 503, None)


# ---- after the first byte


def test_a_stream_is_timed_by_the_arrival_of_the_engines_bytes() -> None:
    router = core(table(canary=None))
    exchange = begin(router, request({"stream": True}), now_s=10.0)
    attempt(exchange)
    exchange.answered(200, SSE)
    for index in range(5):
        exchange.received(b'data: {"id":"a","choices":[{"delta":{"content":"x"}}]}\n\n', now_s=11 + index)
    exchange.received(FINISH + b"data: [DONE]\n\n", now_s=16.0)
    exchange.ended(now_s=99.0)
    one = record(router)

    assert (one.ttft_ms, one.latency_ms, one.itl_ms) == (1000.0, 6000.0, 1000.0)
    assert one.answer_id == "a"


def test_a_whole_answer_has_no_time_to_first_token() -> None:
    router = core(table(canary=None))
    answer(begin(router), headers=JSON, body=ANSWER)
    one = record(router)

    assert (one.ttft_ms, one.itl_ms, one.finish_reason, one.answer_id) == (None, None, "stop", "a2")


def test_a_stream_cut_by_the_canary_is_its_error_and_ends_with_an_error_event() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(b'data: {"id":"a","choices":[{"delta":{"content":"x"}}]}\n\n', now_s=10.5)
    last = exchange.broken("cut", now_s=10.6)
    one = record(router)

    assert isinstance(last, Deliver)
    assert last.then == "end"
    assert json.loads(last.data.removeprefix(b"data: "))["error"]["code"] == "cut"
    assert (one.outcome, one.error, one.cause, one.latency_ms) == ("cut", True, "cut", None)


def test_of_a_stream_cut_inside_an_event_whole_events_reach_the_client_and_then_the_error() -> None:
    exchange = begin(core())
    attempt(exchange)
    exchange.answered(200, SSE)
    first = exchange.received(EVENT + b'data: {"id":"a","cho', now_s=10.5)
    last = exchange.broken("cut", now_s=10.6)

    assert isinstance(first, Deliver)
    assert isinstance(last, Deliver)
    assert first.data == EVENT
    assert b'"code": "cut"' in last.data


def test_an_event_beyond_the_limit_passes_in_pieces_and_its_cut_breaks_the_connection() -> None:
    exchange = begin(core())
    attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(EVENT + b'data: "' + b"x" * (2 << 20), now_s=10.5)

    assert exchange.broken("cut", now_s=10.6) == Deliver(None, b"", "break")


def test_a_stream_that_ends_without_a_finish_is_an_error() -> None:
    router = core(table(canary=None))
    answer(begin(router), body=b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')

    assert record(router).cause == "cut"


def test_a_canarys_stream_that_begins_with_an_error_is_unusable() -> None:
    exchange = begin(core())
    attempt(exchange)
    exchange.answered(200, SSE)

    error = b'data: {"error":{"message":"dead","code":500}}\n\n'
    assert exchange.received(error, now_s=10.5) is Step.AGAIN


def test_a_stream_without_a_byte_is_unusable() -> None:
    exchange = begin(core())
    attempt(exchange)
    exchange.answered(200, SSE)

    assert exchange.ended(now_s=10.5) is Step.AGAIN


NOTHING = GOOD.replace(b"hi", b"")


@pytest.mark.parametrize(
    ("headers", "body"), [(JSON, ANSWER.replace(b"hi", b"")), (JSON, b"{}"), (SSE, NOTHING)]
)
def test_an_empty_answer_is_an_error_of_its_arm_and_a_canarys_is_replaced_by_stable(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    routers = core(table(canary=None)), core()
    answer(begin(routers[0]), headers=headers, body=body)
    exchange = begin(routers[1])
    attempt(exchange)
    exchange.answered(200, headers)
    held = exchange.received(body, now_s=10.3), exchange.ended(now_s=10.4)
    answer(exchange, headers=JSON, body=ANSWER)
    found = [record(router) for router in routers]

    assert held == (Step.HOLD, Step.AGAIN)
    assert [(one.error, one.cause) for one in found] == [(True, "empty")] * 2
    assert [(one.empty, one.outcome) for one in found] == [(True, "answered"), (False, "fallback")]


@pytest.mark.parametrize("how", ["broken", "ended"])
def test_a_canarys_stream_that_ends_without_a_word_is_replaced_however_it_ends(how: str) -> None:
    exchange = begin(core())
    attempt(exchange)
    exchange.answered(200, SSE)
    held = exchange.received(NOTHING.removesuffix(b"data: [DONE]\n\n"), now_s=10.3)
    end = exchange.broken("cut", now_s=10.4) if how == "broken" else exchange.ended(now_s=10.4)

    assert (held, end, attempt(exchange).arm) == (Step.HOLD, Step.AGAIN, 0)


def test_a_client_that_disconnects_is_recorded_as_cancelled_and_no_error() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.cancelled(now_s=10.5)
    one = record(router)

    assert (one.outcome, one.error, one.status, one.latency_ms) == ("cancelled", None, None, None)


def test_a_canary_failure_stays_an_error_when_the_client_disconnects_later() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.broken("timeout", now_s=10.3)
    attempt(exchange)
    exchange.cancelled(now_s=10.5)

    assert record(router).error is True


def test_in_flight_counts_return_to_zero() -> None:
    router = core()
    one, two = begin(router), begin(router)
    attempt(one)
    attempt(two)
    during = dict(router.in_flight)
    one.broken("timeout", now_s=10.3)
    two.cancelled(now_s=10.5)
    answer(one)

    assert during == {"http://canary": 2}
    assert router.in_flight == {}


def test_the_replica_with_less_in_flight_is_chosen() -> None:
    router = core(table(canary=None, stable=("http://a", "http://b")))
    router.in_flight["http://a"] = 5

    assert {str(attempt(begin(router)).url) for _ in range(4)} == {"http://b" + CHAT}


def test_a_key_is_sent_to_the_same_replica() -> None:
    stable = tuple(f"http://s{index}" for index in range(8))
    router = core(table(canary=None, stable=stable))
    urls = set()
    for _ in range(6):
        exchange = begin(router, request({"user": "alice"}))
        urls.add(str(attempt(exchange).url))
        exchange.cancelled(now_s=10.2)

    assert len(urls) == 1


def test_an_event_out_of_order_raises_and_records_nothing() -> None:
    router = core()
    exchange = begin(router)

    with pytest.raises(RuntimeError, match="answered is out of order"):
        exchange.answered(200, SSE)
    answer(exchange)
    with pytest.raises(RuntimeError, match="out of order"):
        exchange.ended(now_s=11.0)
    assert record(router).outcome == "answered"


def test_an_infinite_lease_never_expires() -> None:
    router = RouterCore("chat", router="r", lease_s=math.inf)
    router.on_table(table(), sent_s=0.0)

    assert router.has_lease(1e12)


# ---- requests open at their deadline


EVENT = b'data: {"id":"a1","choices":[{"delta":{"content":"x"}}]}\n\n'
FINISH = b'data: {"id":"a1","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


def reported(router: RouterCore, now_s: float = 70.2) -> list[RequestRecord]:
    """The records of a report at `now_s`; every assignment is confirmed."""
    router.on_table(None, sent_s=now_s - 0.1)
    records = router.report(now_s=now_s, wall_s=600.0).records
    router.outbox.acknowledge()
    return list(records)


def begin_stream(router: RouterCore, *, first_s: float = 10.5) -> Exchange:
    """A stream that has sent one event."""
    exchange = begin(router, request({"stream": True}))
    attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(EVENT, now_s=first_s)
    return exchange


@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_a_stream_open_at_the_deadline_is_slow_and_no_error(weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    begin_stream(router)
    assert reported(router, now_s=70.0) == []
    (one,) = reported(router, now_s=70.1)

    assert (one.outcome, one.error, one.cause, one.status) == ("open", False, None, 200)
    assert (one.arm, one.served_arm) == ((1, 1) if weight_bp else (0, 0))
    assert one.latency_ms == pytest.approx(60_000)
    assert one.ttft_ms == pytest.approx(400)
    assert (one.w, one.assigned_by, one.done_at_s) == (weight_bp / 10_000, "request", 560.0)


@pytest.mark.parametrize("weight_bp", [0, 10_000])
@pytest.mark.parametrize("has_head", [False, True])
def test_an_answer_without_a_byte_at_the_deadline_is_an_error(weight_bp: int, has_head: bool) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router)
    attempt(exchange)
    if has_head:
        exchange.answered(200, SSE)
    (one,) = reported(router)

    assert (one.outcome, one.error, one.cause, one.status) == ("open", True, "silent", None)
    assert (one.latency_ms, one.ttft_ms, one.served_arm) == (None, None, None)


def test_the_record_does_not_depend_on_how_late_the_deadline_is_checked() -> None:
    router = core()
    begin_stream(router)
    (on_time,) = reported(router)
    router = core()
    late = begin_stream(router)
    late.received(GOOD, now_s=70.15)
    late.ended(now_s=70.15)
    (ended,) = reported(router)

    assert (on_time.error, on_time.outcome, on_time.latency_ms) == (False, "open", ended.latency_ms)
    assert (ended.outcome, ended.error, ended.finish_reason) == ("open", False, "stop")


def test_a_first_byte_after_the_deadline_does_not_count() -> None:
    router = core()
    begin_stream(router, first_s=70.11)
    (one,) = reported(router)

    assert (one.error, one.cause, one.ttft_ms, one.answer_id) == (True, "silent", None, None)


def test_the_end_of_a_request_recorded_as_open_is_not_recorded() -> None:
    router = core()
    exchange = begin_stream(router)
    reported(router)
    in_flight = dict(router.in_flight)
    exchange.received(GOOD, now_s=80.0)
    exchange.ended(now_s=80.1)

    assert reported(router, now_s=200.0) == []
    assert (in_flight, router.in_flight) == ({"http://canary": 1}, {})


def test_an_endless_request_holds_the_watermark_no_longer_than_the_deadline() -> None:
    router = core()
    begin_stream(router)
    before = router.report(now_s=70.0, wall_s=560.0).low_watermark_s
    router.outbox.acknowledge()
    router.on_table(None, sent_s=70.0)

    assert before == 500.0
    assert router.report(now_s=70.2, wall_s=560.2).low_watermark_s == 560.2


def test_a_stalled_streams_current_gap_counts_in_its_inter_token_latency() -> None:
    router = core()
    exchange = begin_stream(router, first_s=10.1)
    exchange.received(EVENT, now_s=10.2)
    (one,) = reported(router)

    assert one.itl_ms == pytest.approx(30_000)


def test_a_finished_stream_with_a_slow_reader_has_the_latency_of_its_last_byte() -> None:
    router = core()
    exchange = begin_stream(router)
    exchange.received(GOOD, now_s=12.1)
    (one,) = reported(router)

    assert (one.outcome, one.error, one.finish_reason) == ("answered", False, "stop")
    assert one.latency_ms == pytest.approx(2000)


def test_an_error_inside_an_open_stream_is_an_error() -> None:
    router = core()
    exchange = begin_stream(router)
    exchange.received(b'data: {"error":{"message":"dead","code":500}}\n\n', now_s=11.0)
    (one,) = reported(router)

    assert (one.outcome, one.error, one.cause) == ("open", True, "error in the answer")


def test_a_failed_canary_replaced_by_a_slow_stable_keeps_its_error() -> None:
    router = core()
    exchange = begin(router, request({"stream": True}))
    attempt(exchange)
    exchange.broken("timeout", now_s=10.3)
    attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(EVENT, now_s=20.0)
    (one,) = reported(router)

    assert (one.outcome, one.arm, one.served_arm) == ("open", 1, 0)
    assert (one.error, one.cause) == (True, "timeout")


def test_an_open_request_that_was_fenced_is_no_evidence_about_the_canary() -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.broken("withheld", now_s=10.3)
    attempt(exchange)
    (one,) = reported(router)

    assert (one.outcome, one.error, one.cause) == ("open", None, None)


@pytest.mark.parametrize("weight_bp", [1, 10_000])
def test_an_assignment_unconfirmed_at_the_deadline_is_fenced_ended_or_not(weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    begin_stream(router)
    other = router.begin(request(), request_id="req-2", now_s=10.1, wall_s=500.0)
    assert isinstance(other, Exchange)
    other.cancelled(now_s=10.2)
    early = router.report(now_s=70.0, wall_s=560.0)
    router.outbox.acknowledge()
    late = router.report(now_s=70.2, wall_s=560.2)

    assert (early.records, early.low_watermark_s) == ((), 500.0)
    assert sorted(one.request_id for one in late.records) == ["req-1", "req-2"]
    assert {one.assigned_by for one in late.records} == {"fenced"}


def test_an_endless_ineligible_request_is_not_recorded() -> None:
    router = core()
    begin(router, request(path="/v1/models", method="GET"))

    assert reported(router) == []


def test_timestamps_never_go_back_when_the_clock_is_set_back() -> None:
    router = core()
    ahead_s = router.report(now_s=20.0, wall_s=4100.0).low_watermark_s
    router.outbox.acknowledge()
    exchange = router.begin(request(), request_id="req-1", now_s=21.0, wall_s=501.0)
    assert isinstance(exchange, Exchange)
    exchange.cancelled(now_s=21.5)
    (one,) = reported(router, now_s=22.0)
    later_s = router.report(now_s=23.0, wall_s=503.0).low_watermark_s

    assert ahead_s < one.at_s < later_s < 4103.0
