"""Heavy keys, burst caps, overload, and requests that need an engine's state."""

from __future__ import annotations

import pytest

from serving.credentials import KeyReference
from serving.messages import CANARY, STABLE, Arm, Replica
from serving.router.assignment.assignment import unit_of
from serving.router.bodies.body_budget import BODY_BUDGET
from serving.router.exchange.exchange import Exchange
from serving.router.front.front_wire import WireFront
from serving.router.types import Attempt, Refusal, Step
from tests.fakes.routed import NOW_S, UNIT_KEY, Routed
from tests.fakes.router_rig import NoBackground

TURN, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
JSON = [(b"content-type", b"application/json")]


def unit(key: str) -> str:
    return unit_of(UNIT_KEY.text, "r-1", key)


def test_a_heavy_key_is_drawn_by_its_conversation_and_then_by_the_request() -> None:
    routed = Routed().use(heavy=frozenset({unit("app")}))
    first = routed.served({"user": "app", "messages": [TURN]}).record
    third = routed.served({"user": "app", "messages": [TURN, REPLY, TURN]}).record
    other = routed.served({"user": "bob"}).record

    assert [one.assigned_by for one in (first, third, other)] == ["heavy", "conversation", "sticky"]
    assert len({unit("app"), first.unit, third.unit}) == 3


def test_a_conversation_of_a_heavy_key_stays_together() -> None:
    routed = Routed().use(heavy=frozenset({unit("app")}))
    talk = {"user": "app", "messages": [TURN, REPLY, TURN]}
    units = {routed.served(talk).record.unit for _ in range(3)}

    assert len(units) == 1


def test_a_heavy_opening_that_many_requests_share_is_drawn_by_request() -> None:
    routed = Routed().use()
    talk = {"messages": [TURN, REPLY, TURN]}
    opening = routed.served(talk).record.unit
    routed.use(heavy=frozenset({opening}))
    records = [routed.served(talk).record for _ in range(40)]

    assert {one.assigned_by for one in records} == {"heavy"}
    assert len({one.unit for one in records}) == 40
    assert {one.arm for one in records} == {STABLE, CANARY}


def test_the_router_reports_requests_by_unit_and_begins_anew() -> None:
    routed = Routed().use()
    for n in range(30):
        routed.served({"user": "app"} if n % 3 else {})
    counts = routed.core.take_counts(now_s=NOW_S)
    again = routed.core.take_counts(now_s=NOW_S + 60)

    assert counts is not None
    assert (counts.rollout, counts.requests, counts.units) == ("r-1", 30, {unit("app"): 20})
    assert again is None


def test_beyond_the_burst_cap_nothing_is_drawn_and_both_arms_lose_alike() -> None:
    routed = Routed().use(weight_bp=5000, burst_cap=10.0)
    words = [routed.served(after_s=n * 0.01).record.assigned_by for n in range(50)]
    later = routed.served(after_s=11.0).record

    assert words == ["request"] * 20 + ["capped"] * 30  # 20 requests of weight 0.5
    assert later.assigned_by == "request"


@pytest.mark.slow
def test_over_any_ten_seconds_the_weights_stay_under_the_cap() -> None:
    routed = Routed().use(weight_bp=2500, burst_cap=5.0)
    drawn_s = [
        n * 0.05 for n in range(1500) if routed.served(after_s=n * 0.05).record.assigned_by == "request"
    ]
    worst = max(sum(start <= at_s < start + 10 for at_s in drawn_s) for start in drawn_s)

    assert worst * 0.25 <= 5.0
    assert len(drawn_s) > 0.9 * 75 * 2  # 5 in 10 s for 75 s, a quarter each


def test_whether_the_cap_holds_does_not_depend_on_the_arm() -> None:
    routed = Routed().use(weight_bp=5000, burst_cap=10.0)
    records = [routed.served(after_s=0.01 * n).record for n in range(20)]

    assert {one.arm for one in records} == {STABLE, CANARY}
    assert {one.assigned_by for one in records} == {"request"}


def test_an_overloaded_router_draws_nothing() -> None:
    routed = Routed().use(weight_bp=10_000)
    routed.core.assigner.is_overloaded = True
    record = routed.served().record

    assert (record.arm, record.assigned_by, record.w) == (STABLE, "capped", 0.0)


# ---- the state of an earlier request

TWO = Arm("v-1", (Replica("http://s1"), Replica("http://s2")))
ANSWER = (
    b'{"id":"resp_1","choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"status":"completed"}'
)


def asked(exchange: Exchange, statuses: dict[str, int]) -> list[str]:
    """The hosts that are asked in turn, each answering with its status, until the client gets one."""
    hosts = []
    while isinstance(attempt := exchange.next_attempt(), Attempt):
        host = attempt.endpoint.authority
        hosts.append(host)
        if host not in statuses:
            exchange.broken("refused", now_s=NOW_S + 0.1)
        elif exchange.answered(statuses[host], JSON) is Step.HOLD:
            exchange.received(ANSWER, now_s=NOW_S + 0.2)
            assert exchange.ended(now_s=NOW_S + 0.2) is not Step.AGAIN
            return hosts
    assert isinstance(attempt, Refusal)
    return [*hosts, str(attempt.status)]


def looked_up(statuses: dict[str, int], **how: object) -> list[str]:
    routed = Routed().use(stable=TWO, weight_bp=0)
    default: dict[str, object] = {"path": "/v1/responses/resp_1", "method": "GET"}
    exchange = routed.ask(**(how or default))  # type: ignore[arg-type]
    assert isinstance(exchange, Exchange)
    return asked(exchange, statuses)


@pytest.mark.parametrize("holder", ["s1", "s2", "canary"])
def test_a_stored_response_is_found_on_whichever_engine_holds_it(holder: str) -> None:
    statuses = {"s1": 404, "s2": 404, "canary": 404, holder: 200}

    assert looked_up(statuses)[-1] == holder


def test_an_unknown_id_is_404_once_all_have_said_so() -> None:
    hosts = looked_up({"s1": 404, "s2": 404, "canary": 404})

    assert sorted(hosts) == ["canary", "s1", "s2"]


def test_an_id_is_not_called_unknown_while_an_engine_that_may_hold_it_does_not_answer() -> None:
    assert looked_up({"s1": 404, "canary": 404})[-1] == "503"
    assert looked_up({"s1": 404, "s2": 503, "canary": 404})[-1] == "503"


MANY = Arm("v-1", tuple(Replica(f"http://s{n}") for n in range(20)))


def limits_of_hung_replicas(stable: Arm = MANY, **how: object) -> tuple[list[float], Refusal]:
    """The time limits of the replicas that are asked in turn, each of which never answers."""
    exchange = Routed().use(stable=stable, weight_bp=0).ask(**how)  # type: ignore[arg-type]
    assert isinstance(exchange, Exchange)
    limits: list[float] = []
    while isinstance(attempt := exchange.next_attempt(NOW_S + sum(limits)), Attempt):
        limits.append(attempt.first_byte_s)
        exchange.broken("timeout", now_s=NOW_S + sum(limits))
    assert isinstance(attempt, Refusal)
    return limits, attempt


def test_hung_replicas_hold_the_lookup_of_an_id_up_for_a_minute_in_all() -> None:
    limits, refusal = limits_of_hung_replicas(path="/v1/responses/resp_1", method="GET")

    assert (max(limits), sum(limits)) == (15.0, 60.0)
    assert (refusal.status, refusal.retry_after_s) == (503, 1)


def test_the_error_of_a_lookup_that_ended_at_the_canary_is_of_stable() -> None:
    three = Arm("v-1", MANY.replicas[:3])
    limits, refusal = limits_of_hung_replicas(three, path="/v1/responses/resp_1", method="GET")

    assert sum(limits) == 60.0
    assert dict(refusal.headers)[b"x-canaryctl-arm"] == b"stable"
    assert "stable version v-1" in refusal.message


def test_an_answer_to_an_earlier_one_may_take_as_long_as_any_and_all_replicas_together_no_longer() -> None:
    body = {"previous_response_id": "resp_1", "input": "and?"}
    limits, refusal = limits_of_hung_replicas(body=body, path="/v1/responses")

    assert limits == [600.0]
    assert refusal.status == 503


@pytest.mark.parametrize(
    ("field", "named"),
    [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("conversation", {"id": "conv_1"})],
)
def test_a_response_to_an_earlier_one_goes_to_the_engine_that_made_it_and_is_no_draw(
    field: str, named: object
) -> None:
    routed = Routed().use(stable=TWO, weight_bp=1)
    exchange = routed.ask({field: named, "input": "and?"}, path="/v1/responses")
    assert isinstance(exchange, Exchange)
    hosts = asked(exchange, {"s1": 404, "s2": 404, "canary": 200})
    record = routed.record()

    assert hosts[-1] == "canary"
    assert (record.assigned_by, record.served_arm, record.rejected) == ("stateful", CANARY, False)


def endpoint(host: str, key: str, version: str = "v-1") -> Arm:
    return Arm(version, (Replica(f"https://{host}"),), True, None, KeyReference("env", key))


ENCRYPTED = {"user": "u", "input": [{"type": "reasoning", "encrypted_content": "gAAA", "summary": []}]}
FILE = {"user": "u", "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}


@pytest.mark.parametrize(
    ("body", "path"),
    [(ENCRYPTED, "/v1/responses"), (FILE, "/v1/chat/completions")],
    ids=["reasoning", "file"],
)
def test_what_one_account_alone_can_read_goes_to_the_one_that_can(body: dict[str, object], path: str) -> None:
    """Drawn, identical endpoints were rolled back, and users of stable got the 400."""
    stable, canary = endpoint("a", "A"), endpoint("b", "B", "v-2")
    hosts = []
    for maker, weight_bp in (("a", 10_000), ("b", 0)):
        routed = Routed().use(stable=stable, canary=canary, weight_bp=weight_bp)
        exchange = routed.ask(body, path=path)
        assert isinstance(exchange, Exchange)
        hosts.append(asked(exchange, {"a": 400, "b": 404, maker: 200})[-1])
        assert routed.record().assigned_by == "stateful"

    assert hosts == ["a", "b"]


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        (endpoint("a", "A"), endpoint("a", "A", "v-2")),  # another model of the same account
        (TWO, endpoint("b", "B", "v-2")),  # engines of ours keep nothing of an account
        (TWO, Arm("v-2", (Replica("http://canary"),))),
    ],
    ids=["one account", "one endpoint", "engines"],
)
def test_what_both_arms_can_read_is_drawn(stable: Arm, canary: Arm) -> None:
    routed = Routed().use(stable=stable, canary=canary, weight_bp=5000)

    assert routed.served(ENCRYPTED, path="/v1/responses").record.assigned_by == "sticky"


SIGNED = {
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "so", "signature": "Eo8C"}]},
    ]
}
OURS = Arm("v-2", (Replica("http://canary"),))


@pytest.mark.parametrize("weight_bp", [0, 10_000])
@pytest.mark.parametrize(
    ("stable", "canary"),
    [(endpoint("a", "A"), endpoint("b", "B", "v-2")), (endpoint("a", "A"), OURS)],
    ids=["two endpoints", "an endpoint and an engine"],
)
@pytest.mark.parametrize("maker", ["stable", "canary"])
def test_signed_thinking_goes_to_the_version_that_can_verify_it(
    maker: str, stable: Arm, canary: Arm, weight_bp: int
) -> None:
    """Drawn, the other version answered 400: a rejection of it, and of stable one that the user saw."""
    routed = Routed().use(stable=stable, canary=canary, weight_bp=weight_bp)
    exchange = routed.ask(SIGNED, path="/v1/messages")
    assert isinstance(exchange, Exchange)
    hosts = {"stable": stable.replicas[0].url, "canary": canary.replicas[0].url}
    names = {url.partition("//")[2]: 200 if name == maker else 400 for name, url in hosts.items()}

    assert asked(exchange, names) == (["a"] if maker == "stable" else list(names))
    assert (routed.record().assigned_by) == "stateful"


@pytest.mark.parametrize(
    ("stable", "canary"),
    [(endpoint("a", "A"), endpoint("a", "A", "v-2")), (TWO, OURS)],
    ids=["one account", "engines, which verify nothing"],
)
def test_signed_thinking_that_both_arms_take_is_drawn(stable: Arm, canary: Arm) -> None:
    routed = Routed().use(stable=stable, canary=canary, weight_bp=5000)

    assert routed.served(SIGNED, path="/v1/messages").record.assigned_by == "sticky"


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
@pytest.mark.parametrize("nothing", [None, "", {}, {"id": ""}, {"id": None}, [], False])
def test_a_first_response_is_drawn(field: str, nothing: object) -> None:
    record = Routed().use().served({field: nothing, "input": "hi"}, path="/v1/responses").record

    assert record.assigned_by == "request"


@pytest.mark.parametrize("path", ["/v1/files/file-1", "/v1/files/file-1/content", "/v1/batches/batch_1"])
def test_files_and_batches_are_found_where_they_were_made(path: str) -> None:
    assert looked_up({"s1": 404, "s2": 404, "canary": 200}, path=path, method="GET")[-1] == "canary"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_files_and_batches_are_made_by_stable(path: str) -> None:
    for _ in range(8):
        exchange = Routed().use(weight_bp=10_000).ask(path=path)
        assert isinstance(exchange, Exchange)
        assert exchange.next_attempt().arm == STABLE  # type: ignore[union-attr]


async def test_a_front_that_holds_half_of_what_it_can_stops_drawing_first() -> None:
    routed = Routed().use(weight_bp=10_000)
    front = WireFront(routed.core, NoBackground())
    words = []
    for held in (0, BODY_BUDGET // 2 + 1, 0):
        front.bodies.total = held
        await front.start()  # and one sweep
        words.append(routed.served().record.assigned_by)
        await front.stop(drain_s=0.0)

    assert words == ["request", "capped", "request"]
