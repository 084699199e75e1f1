"""Identical arms under each fault, through the router's core and the gate as shipped.

Real requests on sockets are too slow for a thousand runs of thousands of requests. Here the router's own
core (`Exchange`, assignment, records) runs in this process in simulated time: no socket, no front, no engine.
Both arms are the same engine, with the same faults at the same rate; their records go to the controller's own
feed, which evaluates them as it does in a rollout, with its guard, at every page.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias
from zlib import crc32

from msgspec import structs

from benchmarks.gate.trials import most_allowed as allowed_of
from benchmarks.soak.answers import KINDS, Kind, answer_of, body_of, engine_of, kind_of, prompt_in
from controller.evidence.feed import Feed
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig
from controller.evidence.score_join import Joined
from controller.rollout.state import Phase, RolloutState
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from serving.credentials import DataSecret, UnitKey
from serving.messages import Arm, Replica, RequestRecord, RouteTable
from serving.router.bodies.prepared import Prepared, prepare
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Attempt, Deliver, Refusal, Request, Step
from serving.targets import Target
from tests.fakes.rollouts import a_rollout

START_S = 1_800_000_000.0
ROLLOUT = "r-00000001"
PRESETS = ("strict", "default")
WEIGHTS_BP = (1000, 2500, 5000)
RATES = (0.002, 0.01, 0.05)  # of attempts that meet the fault, on both arms
REQUESTS = 2000  # of a run
PAGE = 250
GAP_S = 0.5  # mean pause between two requests
MEDIAN_S, SIGMA = 0.8, 0.5  # latency of a sound answer, lognormal
MOST_ROLLED_BACK = 0.016
PROMPTS = 40
#: Faults, by the word that `_Engine` acts on.
CLASSES = (
    *(
        "none",
        "refused",
        "reset",
        "timeout",
        "status 500",
        "status 503",
        "status 429",
        "status 400",
        "status 404",
    ),
    *(
        "error in the answer",
        "error in mid-stream",
        "garbage",
        "truncated",
        "cut",
        "stalled",
        "slow",
        "mixed",
    ),
)


Rates: TypeAlias = tuple[float, float]  # share of the attempts on stable, on the canary, that meet the fault


@dataclass(frozen=True, slots=True)
class _Asked:
    kind: Kind
    request: Request
    prepared: Prepared
    fields: Mapping[str, Any]


def _asked(number: int) -> _Asked:
    kind, body = kind_of(number), body_of(number)
    request = Request("POST", Target(kind.path), ((b"x-session-id", b"-"),), body)
    made = prepare(body, request.headers, (), route=f"POST {kind.path}", is_eligible=True)
    return _Asked(kind, request, made, json.loads(body))


_POOL: list[_Asked] = []


def _pool() -> list[_Asked]:
    """A few requests of every kind, read once."""
    if not _POOL:
        wanted = Counter({kind.name: PROMPTS // 4 for kind in KINDS})
        number = 0
        while +wanted:
            if wanted[(kind_of(number)).name] > 0:
                wanted[kind_of(number).name] -= 1
                _POOL.append(_asked(number))
            number += 1
    return _POOL


def core_of(weight_bp: int, replicas: int) -> RouterCore:
    """A router of two equal arms with so many replicas each."""
    router = RouterCore("chat", router="r", lease_s=math.inf)
    stable, canary = (
        Arm(f"v-{arm}", tuple(Replica(f"http://{arm}{index}") for index in range(replicas)))
        for arm in ("stable", "canary")
    )
    table = RouteTable(
        "chat",
        1,
        1,
        1,
        ROLLOUT,
        "s",
        weight_bp,
        stable,
        canary,
        secret=DataSecret("x"),
        unit_key=UnitKey("k"),
    )
    router.on_table(table, sent_s=0.0)
    return router


class _Drive:
    """One request from its assignment to its end, in simulated time."""

    def __init__(
        self, exchange: Exchange, asked: _Asked, fault: str, rates: Rates, rng: random.Random
    ) -> None:
        self._exchange, self._asked, self._fault, self._rates, self._rng = exchange, asked, fault, rates, rng
        self.now_s = 0.0

    def run(self, now_s: float) -> None:
        self.now_s = now_s
        is_over = False
        while not is_over:
            one = self._exchange.next_attempt()
            if isinstance(one, Refusal):
                self._exchange.refused(one, now_s=self.now_s)
                is_over = True
            elif isinstance(one, Deliver):
                is_over = one.then in ("end", "break")
            else:
                is_over = self._attempt(one)

    def _attempt(self, one: Attempt) -> bool:
        body = json.loads(bytes(one.body)) if one.body is not self._asked.request.body else self._asked.fields
        arm = "canary" if one.arm else "stable"
        is_sound = one.path == "/tokenize" or self._rng.random() >= self._rates[one.arm]
        fault = "none" if is_sound else self._fault
        if fault == "mixed":
            fault = self._rng.choice(CLASSES[1:-1])
        took_s = self._rng.lognormvariate(math.log(MEDIAN_S), SIGMA)
        match fault:
            case "refused" | "reset" | "timeout":
                self.now_s += {"timeout": 60.0}.get(fault, 0.002)
                return _is_over(self._exchange.broken(fault, now_s=self.now_s))
            case "slow":
                took_s *= 20
        if fault.startswith("status"):
            self.now_s += 0.01
            step = self._exchange.answered(int(fault[7:]), [(b"content-type", b"application/json")])
            return False if step is Step.AGAIN else self._rest([b'{"error":{"message":"x"}}'], 0.0)
        engine = engine_of(arm, prompt_in(body) or "")
        if one.path == "/tokenize":
            events, head = [engine.tokenize()], [(b"x-canaryctl-tokens", engine.vocabulary.encode())]
        else:
            events, head = answer_of(arm, one.path, body), engine.head(one.path, dict(body))
        if not one.path.endswith("completions"):
            head = [(b"content-type", b"text/event-stream")]
        if one.path == "/tokenize":
            head = [
                (b"content-type", b"application/json"),
                (b"x-canaryctl-tokens", engine.vocabulary.encode()),
            ]
        if self._exchange.answered(200, head) is Step.AGAIN:
            return False
        if fault in ("none", "slow"):
            return self._rest(events, took_s)
        return self._break(events, fault, took_s, is_stream=bool(body.get("stream")))

    def _rest(self, events: Sequence[bytes], took_s: float) -> bool:
        """The answer arrives in two reads, and ends."""
        half = max(1, len(events) // 2)
        for share, part in ((0.3, events[:half]), (0.7, events[half:])):
            self.now_s += share * took_s
            if part and _is_over_or_again(
                action := self._exchange.received(b"".join(part), now_s=self.now_s)
            ):
                return _is_over(action)
        return _is_over(self._exchange.ended(now_s=self.now_s))

    def _break(self, events: Sequence[bytes], fault: str, took_s: float, *, is_stream: bool) -> bool:
        """A part of the answer arrives, then what the fault does."""
        data = b"".join(events)
        at = self._rng.randrange(len(events)) if is_stream else 0
        begun = b"".join(events[:at]) if is_stream else data[: self._rng.randrange(len(data))]
        if (fault in ("error in the answer", "garbage") and not is_stream) or fault == "error in the answer":
            begun = b""
        self.now_s += took_s * len(begun) / len(data)
        if begun:
            action = self._exchange.received(begun, now_s=self.now_s)
            if _is_over_or_again(action):
                return _is_over(action)
        match fault:
            case "error in the answer" | "error in mid-stream":
                error = b'{"error":{"message":"died","code":500}}'
                return self._last(b"data: " + error + b"\n\n" if is_stream else error)
            case "garbage":
                return self._last(b"data: \x98\x99\n\n" if is_stream else b"[]")
            case "truncated":
                return _is_over(self._exchange.ended(now_s=self.now_s))
            case "stalled":
                self.now_s += 30.0
                if self._exchange.stalled():
                    return _is_over(self._exchange.broken("timeout", now_s=self.now_s))
                rest = data[len(begun) :]
                action = self._exchange.received(rest, now_s=self.now_s)
                return _is_over(action) or (
                    not _is_over_or_again(action) and _is_over(self._exchange.ended(now_s=self.now_s))
                )
        return _is_over(self._exchange.broken("cut", now_s=self.now_s))

    def _last(self, data: bytes) -> bool:
        action = self._exchange.received(data, now_s=self.now_s)
        if _is_over_or_again(action):
            return _is_over(action)
        return _is_over(self._exchange.ended(now_s=self.now_s))


def _is_over(action: object) -> bool:
    return isinstance(action, Deliver) and action.then in ("end", "break")


def _is_over_or_again(action: object) -> bool:
    return action is Step.AGAIN or (isinstance(action, Deliver) and action.then != "more")


def records_of(
    fault: str, rates: Rates, weight_bp: int, rng: random.Random, n: int
) -> Iterator[RequestRecord]:
    """Records of `n` requests of users who ask three times on average, in order of their assignment."""
    router, pool = core_of(weight_bp, 1 + rng.randrange(2)), _pool()
    now_s = 100.0
    users = [f"u{index}" for index in range(n // 3 + 1)]
    for index in range(n):
        now_s += rng.expovariate(1 / GAP_S)
        asked = rng.choice(pool)
        user = rng.choice(users).encode()
        request = structs.replace(asked.request, headers=((b"x-session-id", user),))
        exchange = router.begin(
            request,
            request_id=f"q{index}",
            now_s=now_s,
            wall_s=START_S + now_s,
            prepared=asked.prepared,
        )
        assert isinstance(exchange, Exchange)
        _Drive(exchange, asked, fault, rates, rng).run(now_s)
        router.on_table(None, sent_s=now_s + 1e-6)
        # A sum of latencies would not end in order; the log gets a record when its request has ended.
        batch = router.outbox.next_batch(now_s=START_S + now_s)
        router.outbox.acknowledge()
        for record in batch.records:
            yield replace(record, seq=index + 1)


def run_once(fault: str, rep: int, requests: int = REQUESTS, rates: Rates | None = None) -> dict[str, str]:
    """What each preset decides on one run: '' or why it rolled back. rates: None: equal ones, by `rep`."""
    rng = random.Random(crc32(fault.encode()) + rep)
    weight_bp, rate = WEIGHTS_BP[rep % 3], RATES[rep // 3 % 3]
    both = rates or (rate, rate)
    feeds = {preset: _feed(preset, weight_bp) for preset in PRESETS}
    why = dict.fromkeys(PRESETS, "")
    page: list[Joined] = []
    for record in records_of(fault, both, weight_bp, rng, requests):
        page.append(Joined(record, True, ()))
        if len(page) == PAGE:
            _look(feeds, why, page)
            page = []
    _look(feeds, why, page)
    return why


def _feed(preset: str, weight_bp: int) -> Feed:
    feed = Feed(ROLLOUT, GateConfig(GatePolicy.named(preset), (StagePlan(weight_bp / 10_000, 500),)))
    feed.follow(_state(weight_bp), None, START_S)
    return feed


def _state(weight_bp: int) -> RolloutState:
    made = a_rollout(now_s=START_S)
    return replace(made, phase=Phase.STAGE, stage=0, weight_bp=weight_bp, acked_at_s=START_S, exposed=True)


def _look(feeds: Mapping[str, Feed], why: dict[str, str], page: Sequence[Joined]) -> None:
    if not page:
        return
    until_s = max(one.request.done_at_s for one in page) + 1.0
    for preset, feed in feeds.items():
        if why[preset]:
            continue
        feed.on_page(JoinedPage(page, (), until_s, True), until_s)
        status = feed.status()
        if status is None:
            continue
        guards = [one.name for one in status.guards if not one.both_arms]
        if status.rollback is not None:
            why[preset] = f"gate {status.rollback.metric}"
        elif guards:
            why[preset] = f"guard {guards[0]}"


def measure(fault: str, runs: int, jobs: int = 1) -> dict[str, Any]:
    """How many of so many runs each preset rolled back, and by what. jobs: processes."""
    began_s = time.monotonic()
    by: dict[str, Counter[str]] = {preset: Counter() for preset in PRESETS}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for row in pool.imap_unordered(partial(run_once, fault), range(runs), chunksize=2):
            for preset, why in row.items():
                by[preset][why] += 1
    rolled_back = {preset: runs - counts[""] for preset, counts in by.items()}
    most = most_allowed(runs)
    return {
        "runs": runs,
        "requests_a_run": REQUESTS,
        "records": "of the router's core in process, in simulated time; no sockets",
        "rolled_back": rolled_back,
        "by": {preset: {why: n for why, n in counts.items() if why} for preset, counts in by.items()},
        "most_allowed": most,
        "took_s": round(time.monotonic() - began_s, 1),
        "missed": [f"{preset} rolled back {n} of {runs}" for preset, n in rolled_back.items() if n > most],
    }


def most_allowed(runs: int) -> int:
    """16 of a thousand; of few runs, what the promised 1 % may cause by chance."""
    return allowed_of(runs, MOST_ROLLED_BACK, 0.01)
