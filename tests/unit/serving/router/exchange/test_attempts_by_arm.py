"""Attempts of one request are counted by arm: what a dead canary has used up is not taken from stable."""

from __future__ import annotations

import pytest

from serving.messages import Arm, Replica
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.tried import MAX_ATTEMPTS, MAX_LOOKUPS
from serving.router.types import Attempt, Failure, Limits, Refusal, Step
from tests.fakes.routed import NOW_S, Routed


def arm(version: str, hosts: list[str]) -> Arm:
    return Arm(version, tuple(Replica(f"http://{host}") for host in hosts))


def asked(exchange: Exchange, *, dead: set[str], why: Failure = "refused") -> tuple[list[str], bool]:
    """The hosts that are asked in turn, of which these fail, and whether one answers."""
    hosts = []
    while isinstance(attempt := exchange.next_attempt(NOW_S), Attempt):
        hosts.append(attempt.endpoint.authority)
        if hosts[-1] not in dead:
            return hosts, True
        exchange.broken(why, now_s=NOW_S)
    return hosts, False


def begun(routed: Routed, **how: object) -> Exchange:
    exchange = routed.ask({"messages": []}, **how)  # type: ignore[arg-type]
    assert isinstance(exchange, Exchange)
    return exchange


@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_users_of_a_dead_canary_are_served_wherever_users_of_stable_are(weight_bp: int) -> None:
    # A node that held two replicas of each died. 51 of 300 users of the canary got 503 beside two sound
    # replicas of stable: its two attempts had left stable two.
    stable, canary = arm("v-1", ["s1", "s2", "s3", "s4"]), arm("v-2", ["c1", "c2"])
    served = []
    for user in range(60):
        routed = Routed().use(stable=stable, canary=canary, weight_bp=weight_bp)
        exchange = begun(routed, headers={"x-session-id": f"u{user}"})
        served.append(asked(exchange, dead={"s1", "s2", "c1", "c2"})[1])

    assert all(served)


def test_each_arm_is_asked_so_many_times_and_no_more() -> None:
    many = [f"{n}" for n in range(10)]
    stable, canary = [f"s{n}" for n in many], [f"c{n}" for n in many]
    routed = Routed().use(stable=arm("v-1", stable), canary=arm("v-2", canary), weight_bp=10_000)
    hosts, is_served = asked(begun(routed), dead={*stable, *canary})

    assert ([host[0] for host in hosts], is_served) == (["c"] * 2 + ["s"] * MAX_ATTEMPTS, False)


def test_time_outs_of_both_arms_do_not_multiply() -> None:
    stable, canary = [f"s{n}" for n in range(10)], [f"c{n}" for n in range(10)]
    routed = Routed().use(stable=arm("v-1", stable), canary=arm("v-2", canary), weight_bp=10_000)
    exchange, now_s = begun(routed), NOW_S
    while isinstance(attempt := exchange.next_attempt(now_s), Attempt):
        now_s += attempt.first_byte_s / 2 if now_s == NOW_S else attempt.first_byte_s
        exchange.broken("reset" if now_s < NOW_S + 200 else "timeout", now_s=now_s)

    assert now_s - NOW_S <= Limits().canary_whole_s + Limits().stable_s


def test_as_many_replicas_as_stable_has_a_response_of_the_canary_is_looked_for_there_too() -> None:
    stable = [f"s{n}" for n in range(MAX_LOOKUPS)]
    routed = Routed().use(stable=arm("v-1", stable), canary=arm("v-2", ["c1"]))
    exchange = begun(routed, path="/v1/responses/resp_1", method="GET")
    hosts = []
    while isinstance(attempt := exchange.next_attempt(NOW_S), Attempt):
        hosts.append(attempt.endpoint.authority)
        if exchange.answered(404 if hosts[-1] != "c1" else 200, []) is not Step.AGAIN:
            break

    assert not isinstance(attempt, Refusal)
    assert (len(hosts), hosts[-1]) == (MAX_LOOKUPS + 1, "c1")
