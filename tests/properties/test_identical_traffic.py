"""Identical engines under traffic: what a router keeps between requests touches both arms alike.

`test_identical_engines.py` has one request in a router of its own. Here many share one, with its pool of
connections and its health of the upstreams.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pvariance
from typing import Any, Literal, TypeAlias

import pytest

from controller.evidence.records import draw_of
from serving.messages import RequestRecord
from serving.router.types import Limits
from tests.fakes.virtual_wire import Behaviour, Piece, head, traffic, virtual_time, wire
from tests.properties.test_identical_engines import ASKED, CHAT, STREAM, ended, paced, whole_of

MOST_Z = 3.5  # standard errors by which the means of identical arms may differ
DRAWN = frozenset({"request", "sticky"})
WHOLE = head(200, "application/json", length=len(whole_of(CHAT))) + whole_of(CHAT)


def asked(count: int, rate: float, body: Mapping[str, Any], seed: int = 3) -> list[tuple[float, str, Any]]:
    """So many requests, each of another user, at random moments."""
    rng, at_s, made = random.Random(seed), 0.0, []
    for index in range(count):
        at_s += rng.expovariate(rate)
        made.append((at_s, CHAT, {**body, "user": f"u{index}"}))
    return made


def drawn(records: Sequence[RequestRecord], arm: int) -> list[RequestRecord]:
    return [one for one in records if one.arm == arm and one.assigned_by in DRAWN]


def error_rate(records: Sequence[RequestRecord], arm: int) -> float:
    return fmean(bool(draw_of(one).error) for one in drawn(records, arm))


def z_of(records: Sequence[RequestRecord], value: Callable[[RequestRecord], float | None]) -> float:
    """By how many standard errors the canary's mean is above stable's."""
    stable, canary = ([one for one in map(value, drawn(records, arm)) if one is not None] for arm in (0, 1))
    error = math.sqrt(pvariance(stable) / len(stable) + pvariance(canary) / len(canary))
    return (fmean(canary) - fmean(stable)) / error if error else 0.0


def errors(record: RequestRecord) -> float:
    return float(bool(draw_of(record).error))


Outage: TypeAlias = Literal["refused", "reset", "late reset", "silent"]


def failing(kind: Outage, *, down_s: float, every_s: float) -> Behaviour:
    """An engine that answers nothing at the end of each period. refused: new connections, and what comes on
    those that are open stays unanswered."""

    def behave(path: str, body: Mapping[str, Any]) -> Sequence[Piece] | None:
        if asyncio.get_running_loop().time() % every_s < every_s - down_s:
            return [(0.05, WHOLE)] if path else ()
        if kind == "refused":
            return None
        return [] if kind == "silent" or not path else [(0.01 if kind == "reset" else 2.0, "reset")]

    return behave


def sound(path: str, body: Mapping[str, Any]) -> Sequence[Piece]:
    return [(0.05, WHOLE)] if path else ()


OUTAGES: list[tuple[Outage, float, float]] = [
    ("reset", 0.5, 60.0),
    ("refused", 1.0, 60.0),
    ("late reset", 2.0, 60.0),
    ("silent", 40.0, 200.0),
    ("refused", 40.0, 200.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "down_s", "every_s"), OUTAGES)
def test_the_same_outages_of_both_arms_are_recorded_alike(
    kind: Outage, down_s: float, every_s: float
) -> None:
    """Whether the canary is set aside, which stable never is."""
    of_wire: dict[str, Any] = {"weight_bp": 5000, "external": True, "failures": 3}
    behave = failing(kind, down_s=down_s, every_s=every_s)
    with virtual_time() as loop:
        records, _ = loop.run_until_complete(traffic(asked(4000, 10.0, ASKED), behave, **of_wire))

    assert not any(one.assigned_by == "no-capacity" for one in records)
    assert error_rate(records, 1) > 0.5 * down_s / every_s
    assert abs(z_of(records, errors)) < MOST_Z


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "down_s", "every_s"), OUTAGES[1:4])
def test_setting_a_canary_aside_changes_nothing_in_its_error_rate(
    kind: Outage, down_s: float, every_s: float
) -> None:
    behave, of_failures = failing(kind, down_s=down_s, every_s=every_s), []
    for failures in (0, 3):
        of_wire: dict[str, Any] = {"weight_bp": 5000, "external": True, "failures": failures}
        with virtual_time() as loop:
            work = traffic(asked(4000, 10.0, ASKED), sound, canary=behave, **of_wire)
            of_failures.append(loop.run_until_complete(work)[0])

    asking, aside = of_failures
    assert (error_rate(asking, 0), error_rate(aside, 0)) == (0.0, 0.0)
    assert error_rate(aside, 1) == pytest.approx(error_rate(asking, 1), abs=0.002)
    assert len(drawn(aside, 1)) == len(drawn(asking, 1))
    assert {one.status for one in drawn(aside, 1)} <= {200, None}  # no user saw it; None: is still open


def slow(median_s: float, seed: int) -> Behaviour:
    """Whole answers after a random time; streams with as random a first content."""
    rng = random.Random(seed)

    def behave(path: str, body: Mapping[str, Any]) -> Sequence[Piece]:
        wait_s = rng.lognormvariate(math.log(median_s), 0.4)
        return ended(paced(first_s=wait_s, gap_s=0.02))(path, dict(body)) or () if path else ()

    return behave


@pytest.mark.slow
@pytest.mark.parametrize(("body", "count", "external"), [(ASKED, 4000, True), (STREAM, 1200, False)])
def test_the_times_of_a_small_weight_hold_no_cold_connections(
    body: dict[str, Any], count: int, external: bool
) -> None:
    """A connection takes 120 ms; 5 % of a few requests a second are the canary's."""
    with virtual_time() as loop:
        of_wire: dict[str, Any] = {"weight_bp": 500, "external": external, "connect_s": 0.12}
        records, made = loop.run_until_complete(
            traffic(asked(count, 4.0 if body is ASKED else 1.5, body), slow(0.2, 8), **of_wire)
        )

    connecting = {arm: [one.connect_ms or 0.0 for one in drawn(records, arm)] for arm in (0, 1)}
    assert abs(z_of(records, lambda one: draw_of(one).latency_ms)) < MOST_Z
    if body is STREAM:
        assert abs(z_of(records, lambda one: draw_of(one).ttft_ms)) < MOST_Z
    # What is left out of the times is recorded, and is seldom: no more of the canary's users wait for it.
    assert max(max(of_arm) for of_arm in connecting.values()) == pytest.approx(120, abs=1)
    late = {arm: fmean(one > 1 for one in of_arm) for arm, of_arm in connecting.items()}
    assert late[1] < 0.2
    assert min(made.connections.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("weight_bp", [0, 500])
def test_a_router_that_nobody_asks_opens_no_connection(weight_bp: int) -> None:
    async def idle() -> list[dict[str, int]]:
        made = await wire(slow(0.2, 8), weight_bp=weight_bp, external=True)
        counts = []
        for seconds in (60, 62, 120):
            for _ in range(4 * seconds):
                await made.records()
            counts.append(dict(made.connections))
            made.send(CHAT, {**ASKED, "user": "u"})
        await made.close()
        return counts

    with virtual_time() as loop:
        before, busy, after = loop.run_until_complete(idle())

    assert before == {"stable": 0, "canary": 0}
    # One every four seconds for a minute, on both arms alike.
    assert min(busy.values()) > 10
    assert max(busy.values()) - min(busy.values()) <= 1
    assert max(after[arm] - busy[arm] for arm in after) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("body", [ASKED, STREAM])
def test_the_canarys_own_limit_is_one_rule_for_both_arms(body: dict[str, Any]) -> None:
    limits = replace(Limits(), canary_stream_s=5.0, canary_whole_s=5.0)
    with virtual_time() as loop:
        of_wire: dict[str, Any] = {"weight_bp": 5000, "external": True, "failures": 3, "limits": limits}
        records, _ = loop.run_until_complete(traffic(asked(800, 4.0, body), slow(3.0, 8), **of_wire))

    late = {arm: [one for one in drawn(records, arm) if one.cause == "timeout"] for arm in (0, 1)}
    assert min(map(len, late.values())) > 20
    assert all(one.error and one.outcome == "answered" for one in late[0])
    assert {one.cause for arm in (0, 1) for one in drawn(records, arm)} == {None, "timeout"}
    assert abs(z_of(records, errors)) < MOST_Z
