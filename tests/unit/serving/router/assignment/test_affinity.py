"""Affinity tokens: who stays on which version, for how long, and how such requests are recorded."""

from __future__ import annotations

import pytest

from serving.access import Access, Affinity, ClientKey, digest_of
from serving.messages import CANARY, STABLE, Arm, Replica
from serving.router.assignment import assigner
from serving.router.exchange.exchange import Exchange
from tests.fakes.routed import Routed

AFFINITY = Affinity(b"k" * 32)
HEADER = "x-canaryctl-affinity"


def pinned_router(**changes: object) -> Routed:
    return Routed().use(affinity=AFFINITY, **changes)


def on_stable(routed: Routed) -> str:
    """The token of a client that was drawn for stable."""
    for _ in range(200):
        served = routed.served()
        if served.record.arm == STABLE:
            return served.token
    raise AssertionError("no request was assigned to stable")


def test_a_client_that_sends_its_token_back_stays_when_the_weight_is_raised() -> None:
    routed = pinned_router(weight_bp=100)
    token = on_stable(routed)
    routed.use(weight_bp=10_000)
    with_token, without = routed.served(headers={HEADER: token}), routed.served()

    assert (with_token.record.arm, without.record.arm) == (STABLE, CANARY)
    assert (with_token.attempt.arm, with_token.record.assigned_by) == (STABLE, "pinned")


def test_an_old_token_of_stable_takes_no_user_back_from_the_canary() -> None:
    """A client that sends its token now and then; one that always sends it stays, as it must."""
    routed = pinned_router(weight_bp=100)
    user = next(f"u{n}" for n in range(200) if routed.served({"user": f"u{n}"}).record.arm == STABLE)
    old = routed.served({"user": user}).token
    routed.use(weight_bp=10_000)
    arms = [
        routed.served({"user": user}, headers=one).record.arm for one in ({HEADER: old}, {}, {HEADER: old})
    ]

    assert arms == [STABLE, CANARY, CANARY]


def test_units_at_the_canary_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assigner, "UNITS_LIMIT", 3)
    routed = pinned_router(weight_bp=10_000)
    for number in range(9):
        routed.served({"user": f"u{number}"})

    assert len(routed.core.assigner._at_canary) == 3


def test_a_pinned_request_belongs_to_the_unit_and_weight_of_its_draw() -> None:
    routed = pinned_router(weight_bp=9000)
    first = routed.served()
    routed.use(weight_bp=9500)
    second = routed.served(headers={HEADER: first.token})

    assert (second.record.unit, second.record.w, second.record.arm) == (first.record.unit, 0.9, CANARY)
    assert second.record.bucket == first.record.bucket


def test_a_token_brings_nobody_to_the_canary_beyond_the_weight_of_its_own_key() -> None:
    keys = {digest_of("staff"): ClientKey("s", audiences=("staff",)), digest_of("public"): ClientKey("p")}
    access = Access(keys, keys_required=True, audience_bp={"staff": 10_000})
    routed = pinned_router(weight_bp=0, access=access)
    staff = routed.served(headers={"x-api-key": "staff"})
    again = routed.served(headers={"x-api-key": "staff", HEADER: staff.token})
    public = routed.served(headers={"x-api-key": "public", HEADER: staff.token})

    assert (staff.record.arm, again.record.assigned_by) == (CANARY, "pinned")
    assert (public.record.arm, public.record.assigned_by, public.record.w) == (STABLE, "request", 0.0)


def test_a_canarys_token_ends_when_the_weight_falls_below_its_bucket() -> None:
    routed = pinned_router(weight_bp=10_000)
    first = routed.served()
    bucket = first.record.bucket
    assert bucket is not None
    words = []
    for weight_bp in (bucket + 1, bucket):
        routed.use(weight_bp=weight_bp)
        words.append(routed.served(headers={HEADER: first.token}).record.assigned_by)

    assert words == ["pinned", "request"]


def test_the_token_of_another_user_ties_no_request_of_a_heavy_key() -> None:
    routed = pinned_router()
    other, app = routed.served({"user": "b"}), routed.served({"user": "app"})
    routed.use(heavy=frozenset({app.record.unit}))
    mixed = routed.served({"user": "app"}, headers={HEADER: other.token})

    assert mixed.record.assigned_by == "heavy"
    assert mixed.record.unit != other.record.unit


def test_a_request_of_a_heavy_key_keeps_the_token_of_its_own_draw() -> None:
    routed = pinned_router()
    app = routed.served({"user": "app"})
    routed.use(heavy=frozenset({app.record.unit}))
    first = routed.served({"user": "app"})
    second = routed.served({"user": "app"}, headers={HEADER: first.token})

    assert (first.record.assigned_by, second.record.assigned_by) == ("heavy", "pinned")
    assert second.record.unit == first.record.unit


def test_the_first_turns_without_a_key_and_the_later_ones_with_one_stay_together() -> None:
    routed = pinned_router(weight_bp=5000)
    turn, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for _ in range(20):
        first = routed.served({"messages": [turn]})
        second = routed.served({"messages": [turn, reply, turn]}, headers={HEADER: first.token})
        assert second.record.arm == first.record.arm


@pytest.mark.parametrize(
    ("gaps_s", "word"),
    [
        ([1700.0], "pinned"),
        ([1900.0], "request"),
        ([1700.0] * 4, "pinned"),
        ([1700.0] * 5, "request"),  # 8500 s after the draw
    ],
)
def test_a_token_holds_30_minutes_after_the_last_request_and_2_hours_after_the_draw(
    gaps_s: list[float], word: str
) -> None:
    routed = pinned_router()
    served, at_s = routed.served(), 0.0
    for gap_s in gaps_s:
        at_s += gap_s
        served = routed.served(headers={HEADER: served.token}, after_s=at_s)

    assert served.record.assigned_by == word


def test_a_rollback_revokes_the_tokens_of_its_canary() -> None:
    routed = pinned_router(weight_bp=10_000)
    token = routed.served().token
    canary = Arm("v-2", (Replica("http://canary"),))
    routed.use(canary=None, weight_bp=0)
    withdrawn = routed.served(headers={HEADER: token})
    routed.use(canary=canary, weight_bp=1, generation="1.9")
    again = routed.served(headers={HEADER: token})

    assert (withdrawn.record.arm, b"x-canaryctl-affinity" in withdrawn.headers) == (STABLE, False)
    assert again.record.assigned_by == "request"


@pytest.mark.parametrize("changes", [{"rollout": "r-2"}, {"affinity": Affinity(b"x" * 32)}, {"service": "b"}])
def test_a_token_of_another_rollout_service_or_key_is_none(changes: dict[str, object]) -> None:
    routed = pinned_router()
    token = routed.served().token

    assert routed.use(**changes).served(headers={HEADER: token}).record.assigned_by == "request"


def test_two_routers_with_the_same_table_accept_each_others_tokens() -> None:
    token = pinned_router().served().token

    assert pinned_router().served(headers={HEADER: token}).record.assigned_by == "pinned"


def test_a_named_key_is_not_tied_to_another_ones_token() -> None:
    routed = pinned_router()
    alice = routed.served({"user": "alice"})
    bob = routed.served({"user": "bob"}, headers={HEADER: alice.token})
    again = routed.served({"user": "alice"}, headers={HEADER: alice.token})

    assert (bob.record.assigned_by, again.record.assigned_by) == ("sticky", "pinned")
    assert bob.record.unit != alice.record.unit == again.record.unit


def test_the_token_is_not_sent_to_the_engine() -> None:
    routed = pinned_router()
    served = routed.served(headers={HEADER: routed.served().token})

    assert HEADER.encode() not in dict(served.attempt.headers)


def test_without_a_lease_a_token_gives_no_canary() -> None:
    routed = pinned_router(weight_bp=10_000)
    token = routed.served().token
    routed.core._lease_until_s = 0.0
    exchange = routed.ask(headers={HEADER: token})

    assert isinstance(exchange, Exchange)
    assert exchange.next_attempt().arm == STABLE  # type: ignore[union-attr]


def test_a_cookie_carries_the_token_only_where_the_table_says_so() -> None:
    routed = Routed().use(affinity=Affinity(b"k" * 32, cookie=True))
    served = routed.served()
    cookie = served.headers[b"set-cookie"].decode()
    value = "a=b; " + cookie.partition(";")[0]

    assert cookie.endswith("; Path=/; Max-Age=1800; HttpOnly; SameSite=Lax")
    assert routed.served(headers={"cookie": value}).record.assigned_by == "pinned"
    routed.use(affinity=AFFINITY)
    assert routed.served(headers={"cookie": value}).record.assigned_by == "request"
    assert b"set-cookie" not in routed.served().headers


def test_the_key_that_signs_is_not_shown() -> None:
    assert "k" * 8 not in repr(AFFINITY)
    assert Affinity.of("root").key != Affinity.of("other").key
