"""A/B tests of a running service: what counts, in which order, and what survives a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.ab import Book, Judge, Outcome, parse_ab
from controller.ab_service import AbTests
from controller.ab_store import AbStore
from controller.errors import BadInput, BadSpec, Conflict, RolloutRunning
from controller.security import Identity, Role
from controller.spec import parse_policy
from evaluation.ab_test import AbVerdict
from serving.messages import Event, LostSpan, RecordPage, RequestRecord, ScoreRecord

ADMIN = Identity("ada", Role.ADMIN)
BODY = {"version": {"model": "/models/b"}}
RECORD = RequestRecord(
    seq=1, request_id="q1", answer_id="a1", unit="u1", bucket=5, arm=0, w=0.5, assigned_by="request", stage=0,
    rollout="r-1", at_s=1.0, done_at_s=2.0, status=200, outcome="ok", served_arm=0, error=False, cause=None,
    latency_ms=900.0, ttft_ms=None, itl_ms=None, prompt_tokens=5, completion_tokens=7, finish_reason="stop",
    empty=False, path="/v1/chat/completions", router="x", epoch=1, revision=1,
)  # fmt: skip


def request(n: int, *, arm: int = 0, at_s: float | None = None, **more: Any) -> RequestRecord:
    at = float(n) if at_s is None else at_s
    named = {"seq": n, "request_id": f"q{n}", "answer_id": f"a{n}", "unit": f"u{n}", "at_s": at, "arm": arm}
    return replace(RECORD, **(named | more))


class Log:
    """A records log in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lost: tuple[LostSpan, ...] = ()
        self.low_watermark_s = 1e9

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        new = [event for event in self.events if event.seq > after_seq][:limit]
        return RecordPage(tuple(new), new[-1].seq if new else after_seq, self.lost, self.low_watermark_s)


class Rollouts:
    """Begins every rollout it is asked for, as r-1."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.over = False
        self.is_running = False

    def deploy(self, service: str, body: Mapping[str, Any], identity: Identity) -> Any:
        if self.is_running:
            raise RolloutRunning(f"{service} has rollout r-0")
        self.bodies.append(body)
        return SimpleNamespace(id="r-1")

    def rollback(self, service: str, identity: Identity, *, reason: str) -> tuple[str, str]:
        self.over = True
        return "asked", "rollback begins"


class Bench:
    """One controller over a database file."""

    def __init__(self, path: Path) -> None:
        self.log, self.rollouts, self.now = Log(), Rollouts(), SimpleNamespace(now_s=lambda: 5000.0)
        self.path = path
        self.tests = self.restarted()

    def restarted(self) -> AbTests:
        store = AbStore(f"sqlite:///{self.path / 'ab.db'}", mounts=self.path / "no-mounts")
        return AbTests(store, self.rollouts, self.log, self.now, is_over=lambda rollout: self.rollouts.over)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "no-mounts").write_text("")
    return Bench(tmp_path)


def graded(n: int, seed: int = 0) -> list[Event]:
    """Requests and their grades; B (arm 1) is clearly better."""
    rng = np.random.default_rng(seed)
    out: list[Event] = []
    for i in range(n):
        arm = int(rng.random() < 0.5)
        out.append(request(2 * i + 1, arm=arm, at_s=float(i)))
        grade = float(rng.random() < (0.9 if arm else 0.5))
        out.append(ScoreRecord(2 * i + 2, f"a{2 * i + 1}", "quality", grade, i + 1.0))
    return out


def test_a_better_b_is_found_from_the_log(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = graded(400)
    bench.tests.look("chat", now_s=5000.0)

    view = bench.tests.status("chat")
    assert view.verdict == "b better"
    assert view.n_a + view.n_b == 400


def test_b_gets_its_share_and_can_never_be_promoted_by_the_test(bench: Bench) -> None:
    bench.tests.create("chat", BODY | {"split": "30%", "duration": "2h"}, ADMIN)

    [body] = bench.rollouts.bodies
    [stage] = parse_policy(body["policy"]).stages or ()
    assert (stage.bp, stage.duration, stage.deadline, stage.margins) == (3000, 7200.0, 7200.0, {})
    assert stage.min_canary >= 10**9


def test_a_restart_goes_on_where_it_was_and_says_the_same(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    events = graded(400)
    bench.log.events = events[:301]
    bench.tests.look("chat", now_s=750.0)
    assert 0 < bench.tests.status("chat").n_a < 150
    again = bench.restarted()
    bench.log.events = events
    again.look("chat", now_s=5000.0)
    whole = Judge(parse_ab(BODY))
    book = Book("r-1", "quality")
    for event in events:
        if isinstance(event, RequestRecord):
            book.add_request(event, None)
        else:
            book.add_score(event.id, event.metric, event.value)
    for outcome in book.settle(1e9, 5000.0):
        whole.add(outcome)

    view, expected = again.status("chat"), whole.result()
    assert (view.n_a, view.n_b, view.p_value) == (expected.n_a, expected.n_b, expected.p_value)


def test_the_result_stays_readable_after_stop(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = graded(400)
    bench.tests.look("chat", now_s=5000.0)

    assert bench.tests.stop("chat", ADMIN)[0] == "asked"
    assert bench.tests.stop("chat", ADMIN)[0] == "already"
    assert bench.tests.status("chat").verdict == "b better"


def test_a_test_ends_with_its_rollout(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.over = True
    bench.tests.look("chat", now_s=77.0)

    assert bench.tests.status("chat").ended_at_s == 77.0


def test_one_test_at_a_time(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)

    with pytest.raises(Conflict, match="canaryctl ab stop chat"):
        bench.tests.create("chat", BODY, ADMIN)
    assert len(bench.rollouts.bodies) == 1


def test_a_running_rollout_has_the_canarys_place(bench: Bench) -> None:
    bench.rollouts.is_running = True

    with pytest.raises(RolloutRunning, match="an A/B test needs the canary's place: chat has rollout r-0"):
        bench.tests.create("chat", BODY, ADMIN)


def test_a_service_without_a_test_says_how_to_begin_one(bench: Bench) -> None:
    with pytest.raises(BadInput, match="canaryctl ab create chat"):
        bench.tests.status("chat")


def outcomes(book: Book, through_s: float = 1e9, now_s: float = 1e9) -> list[tuple[bool, float | None]]:
    return [(outcome.is_b, outcome.y) for outcome in book.settle(through_s, now_s)]


def test_outcomes_come_in_the_order_of_assignment_not_of_answers() -> None:
    book = Book("r-1", "latency_ms")
    book.add_request(request(1, at_s=9.0), 1.0)
    book.add_request(request(2, at_s=3.0, arm=1), 2.0)

    assert outcomes(book) == [(True, 2.0), (False, 1.0)]


def test_nothing_settles_before_every_earlier_request_was_told() -> None:
    book = Book("r-1", "latency_ms")
    book.add_request(request(1, at_s=9.0), 1.0)

    assert outcomes(book, through_s=9.0) == []
    assert outcomes(book, through_s=9.1) == [(False, 1.0)]


def test_a_score_is_waited_for_and_then_missing() -> None:
    book = Book("r-1", "quality")
    book.add_request(request(1, at_s=100.0), None)

    assert outcomes(book, now_s=699.0) == []
    assert outcomes(book, now_s=701.0) == [(False, None)]


@pytest.mark.parametrize("name", ["q1", "a1"])
@pytest.mark.parametrize("score_first", [True, False])
def test_a_score_finds_its_request_by_either_id_before_or_after(name: str, score_first: bool) -> None:
    book = Book("r-1", "quality")
    if score_first:
        book.add_score(name, "quality", 0.7)
    book.add_request(request(1), None)
    if not score_first:
        book.add_score(name, "quality", 0.7)

    assert outcomes(book) == [(False, 0.7)]


def test_a_unit_counts_once() -> None:
    book = Book("r-1", "latency_ms")
    for n in range(1, 6):
        book.add_request(request(n, unit="ada", assigned_by="sticky"), float(n))

    assert outcomes(book) == [(False, 1.0)]


@pytest.mark.parametrize(
    "left_out",
    [{"assigned_by": "force"}, {"assigned_by": "pin"}, {"rollout": "r-0"}, {"w": 0.0}, {"w": 1.0}],
)
def test_what_no_coin_decided_is_left_out(left_out: dict[str, Any]) -> None:
    book = Book("r-1", "latency_ms")
    book.add_request(request(1, **left_out), 1.0)

    assert outcomes(book) == []


def test_a_lost_span_is_dropped_for_both_arms() -> None:
    book = Book("r-1", "latency_ms")
    for n in range(1, 7):
        book.add_request(request(n, arm=n % 2), float(n))
    book.drop_span(2.0, 5.0)

    assert outcomes(book) == [(True, 1.0), (True, 5.0), (False, 6.0)]


def test_a_fixed_test_is_silent_until_both_sides_are_full() -> None:
    spec = parse_ab(BODY | {"mode": "fixed", "sample_size": 50})
    rows = [Outcome(n, n % 2 == 1, 0.5, 0.9 if n % 2 else 0.1, float(n)) for n in range(140)]

    early, late = Judge(spec, rows[:99]).result(), Judge(spec, rows).result()
    assert (early.verdict, early.p_value) == (AbVerdict.TOO_FEW, 1.0)
    assert (late.verdict, late.n_a, late.n_b) == (AbVerdict.B_BETTER, 50, 50)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"metric": "speed"}, "metric 'speed' is unknown"),
        ({"split": "100%"}, "leaves one side empty"),
        ({"mode": "fixed"}, "sample_size belongs to the mode fixed"),
        ({"mode": "fixed", "sample_size": 29}, "ab.sample_size"),
        ({"alpha": 0.7}, "ab.alpha"),
        ({"spilt": "50%"}, "ab.spilt"),
    ],
)
def test_a_bad_question_is_refused_by_name(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        parse_ab(BODY | bad)
