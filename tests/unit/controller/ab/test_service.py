"""A/B tests of a running service: what counts, in which order, and what survives a restart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.ab.outcomes import Outcome, OutcomeLedger
from controller.ab.service import AbTests
from controller.ab.spec import LIVE_METRICS, AbEvaluator, AbSpec, parse_ab
from controller.auth import Identity, Role
from controller.errors import BadInput, BadSpec, Conflict, RolloutRunning
from controller.rollout.observation import EvidenceStatus
from controller.rollout.plan import Stage
from controller.rollout.state import Cause, CauseKind, Phase, RolloutState
from controller.spec.service import PolicySpec, parse_policy
from controller.store.ab import AbStore
from controller.views.rollout import waiting_for
from evaluation.ab.comparison import AbVerdict
from evaluation.report import Verdict
from serving.messages import Event, LostSpan, RecordPage, RequestRecord, ScoreRecord
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

ADMIN = Identity("ada", Role.ADMIN)
BODY = {"version": {"model": "/models/b"}}
RECORD = RequestRecord(
    seq=1, request_id="q1", answer_id="a1", unit="u1", bucket=5, arm=0, w=0.5, assigned_by="request", stage=0,
    rollout="r-1", at_s=1.0, done_at_s=2.0, status=200, outcome="answered", served_arm=0, error=False,
    cause=None, latency_ms=900.0, ttft_ms=None, itl_ms=None, prompt_tokens=5, completion_tokens=7,
    finish_reason="stop", empty=False, path="/v1/chat/completions", router="x", epoch=1, revision=1,
)  # fmt: skip


def request(n: int, *, arm: int = 0, at_s: float | None = None, **more: Any) -> RequestRecord:
    at = float(n) if at_s is None else at_s
    named = {"request_id": f"q{n}", "answer_id": f"a{n}", "unit": f"u{n}"}
    rest: dict[str, Any] = {"seq": n, "at_s": at, "arm": arm, **named, **more}
    return replace(RECORD, **rest)


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
    """Begins every rollout it is asked for, as r-1, which stands in its stage at once."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.over, self.reason = False, "asked"
        self.acked_at_s: float | None = 1.0
        self.is_running = False
        self.own = PolicySpec()

    def policy(self, service: str) -> PolicySpec:
        return self.own

    def deploy(self, service: str, body: Mapping[str, Any], identity: Identity) -> Any:
        if self.is_running:
            raise RolloutRunning(f"{service} has rollout r-0")
        self.bodies.append(body)
        return SimpleNamespace(id="r-1")

    def rollback(self, service: str, identity: Identity, *, reason: str) -> tuple[str, str]:
        self.over, self.reason = True, reason
        return "asked", f"{service}: rollback begins"

    def load(self, rollout: str) -> RolloutState:
        state = replace(a_rollout(rollout), phase=Phase.STAGE, acked_at_s=self.acked_at_s)
        cause = Cause(CauseKind.USER, self.reason)
        return replace(state, phase=Phase.ROLLED_BACK, cause=cause) if self.over else state


class Bench:
    """One controller over a database file."""

    def __init__(self, path: Path) -> None:
        self.log, self.rollouts, self.now = Log(), Rollouts(), SimpleNamespace(now_s=lambda: 5000.0)
        self.path = path
        self.tests = self.restarted()

    def restarted(self) -> AbTests:
        store = AbStore(f"sqlite:///{self.path / 'ab.db'}", mounts=self.path / "no-mounts")
        return AbTests(store, self.rollouts, self.log, self.now, rollout_of=self.rollouts.load)


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
    bench.log.events, bench.log.low_watermark_s = events[:301], 151.0
    bench.tests.look("chat", now_s=160.0)
    assert 0 < bench.tests.status("chat").n_a < 150
    again = bench.restarted()
    bench.log.events, bench.log.low_watermark_s = events, 1e9
    again.look("chat", now_s=5000.0)
    whole = AbEvaluator(parse_ab(BODY))
    book = OutcomeLedger("r-1", "quality", 600.0)
    take(book, events)
    whole.add(book.settle(1e9, 5000.0))

    view, expected = again.status("chat"), whole.result()
    assert (view.n_a, view.n_b, view.p_value) == (expected.n_a, expected.n_b, expected.p_value)


def test_the_result_stays_readable_after_stop(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = graded(400)
    bench.tests.look("chat", now_s=5000.0)

    assert bench.tests.stop("chat", ADMIN)[0] == "asked"
    assert bench.tests.stop("chat", ADMIN)[0] == "already"
    assert bench.tests.status("chat").verdict == "b better"


def test_of_two_controllers_the_one_that_comes_after_goes_on(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    events = graded(400)
    standby = bench.restarted()
    assert standby.status("chat").n_a == 0
    bench.log.events, bench.log.low_watermark_s = events[:300], 150.0
    bench.tests.look("chat", now_s=160.0)

    view = standby.status("chat")
    assert view.n_a + view.n_b == 150
    bench.log.events, bench.log.low_watermark_s = events, 1e9
    standby.look("chat", now_s=500.0)
    view = standby.status("chat")
    assert view.n_a + view.n_b == 400


def test_two_controllers_that_both_write_lose_nothing(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events, bench.log.low_watermark_s = graded(100), 1e9
    stale = bench.restarted()
    stale.status("chat")
    written = AbStore.append

    def written_in_between(self: AbStore, *args: Any, **kwargs: Any) -> None:
        AbStore.append = written  # type: ignore[method-assign]
        bench.tests.look("chat", now_s=500.0)
        written(self, *args, **kwargs)

    AbStore.append = written_in_between  # type: ignore[method-assign]
    try:
        stale.look("chat", now_s=500.0)
    finally:
        AbStore.append = written  # type: ignore[method-assign]
    stale.look("chat", now_s=501.0)

    view = stale.status("chat")
    assert view.n_a + view.n_b == 100


def test_a_fault_in_a_test_does_not_reach_the_services_tick(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = graded(40)
    with monkeypatch.context() as broken:
        broken.setattr(bench.log, "read", lambda *_, **__: 1 / 0)
        bench.tests.look("chat", now_s=500.0)
    bench.tests.look("chat", now_s=501.0)

    view = bench.tests.status("chat")
    assert view.n_a + view.n_b == 40


def test_outcomes_that_could_not_be_stored_are_counted_at_the_next_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = graded(40)
    with monkeypatch.context() as broken:
        broken.setattr(AbStore, "append", lambda *_, **__: 1 / 0)
        bench.tests.look("chat", now_s=500.0)
    bench.tests.look("chat", now_s=501.0)

    view = bench.tests.status("chat")
    assert view.n_a + view.n_b == 40


def test_b_is_taken_away_when_its_time_is_over(bench: Bench) -> None:
    bench.tests.create("chat", BODY | {"duration": "10m"}, ADMIN)
    bench.tests.look("chat", now_s=5000.0 + 599.0)
    assert bench.tests.status("chat").phase == "running"
    bench.tests.look("chat", now_s=5000.0 + 600.0)

    view = bench.tests.status("chat")
    assert (view.phase, view.ended_at_s) == ("ended", 5600.0)
    assert view.why == f"A/B test {view.id} is over after 10 min"


def test_a_test_whose_rollout_ended_does_not_stand_in_the_way(bench: Bench) -> None:
    first = bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.over = True
    assert bench.tests.stop("chat", ADMIN)[1] == f"chat: A/B test {first.id} stopped; its rollout has ended"
    bench.rollouts.over = False
    bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.over = True

    assert bench.tests.create("chat", BODY, ADMIN).id != first.id


@pytest.mark.parametrize(("is_acked", "phase"), [(True, "running"), (False, "loading")])
def test_a_test_says_whether_b_is_served(bench: Bench, is_acked: bool, phase: str) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.acked_at_s = 1.0 if is_acked else None

    view = bench.tests.status("chat")
    assert (view.phase, view.version_a, view.version_b) == (phase, STABLE, CANARY)
    assert (view.why is None) == is_acked


def test_a_side_that_loses_units_makes_the_test_invalid_whatever_it_shows() -> None:
    spec, rng = parse_ab(BODY), np.random.default_rng(0)
    sides = [bool(side) for side in rng.random(4000) < 0.4]
    rows = [Outcome(n, side, 0.5, 0.9 if side else 0.1, float(n)) for n, side in enumerate(sides)]

    evaluator = AbEvaluator(spec, rows)
    assert evaluator.result().verdict is AbVerdict.INVALID
    assert (evaluator.note() or "").startswith("B has 40.4% of the units, the split is 50.0%")


def test_a_test_without_one_grade_says_so() -> None:
    rows = [Outcome(n, n % 2 == 1, 0.5, None, float(n)) for n in range(120)]

    evaluator = AbEvaluator(parse_ab(BODY), rows)
    assert (evaluator.result().verdict, evaluator.note()) == (AbVerdict.NOT_SHOWN, "no value in 120 requests")


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


def take(book: OutcomeLedger, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, RequestRecord):
            book.add_request(event)
        else:
            book.add_score(event)


def score(seq: int, of: str, value: float = 0.7, *, at_s: float = 1.0) -> ScoreRecord:
    return ScoreRecord(seq, of, "quality", value, at_s)


def timed(n: int, latency_ms: float, **more: Any) -> RequestRecord:
    return request(n, latency_ms=latency_ms, **more)


def outcomes(
    book: OutcomeLedger, through_s: float = 1e9, now_s: float = 1e9
) -> list[tuple[bool, float | None]]:
    return [(outcome.is_b, outcome.y) for outcome in book.settle(through_s, now_s)]


def test_outcomes_come_in_the_order_of_assignment_not_of_answers() -> None:
    book = OutcomeLedger("r-1", "latency_ms", 600.0)
    take(book, [timed(1, 1.0, at_s=9.0), timed(2, 2.0, at_s=3.0, arm=1)])

    assert outcomes(book) == [(True, 2.0), (False, 1.0)]


def test_nothing_settles_before_every_earlier_request_was_told() -> None:
    book = OutcomeLedger("r-1", "latency_ms", 600.0)
    take(book, [timed(1, 1.0, at_s=9.0)])

    assert outcomes(book, through_s=9.0) == []
    assert outcomes(book, through_s=9.1) == [(False, 1.0)]


def test_a_score_is_waited_for_and_then_missing() -> None:
    book = OutcomeLedger("r-1", "quality", 30.0)
    take(book, [request(1, at_s=100.0)])

    assert outcomes(book, now_s=129.0) == []
    assert outcomes(book, now_s=131.0) == [(False, None)]


def test_a_graded_request_counts_at_once_but_for_one_before_it_that_waits() -> None:
    book = OutcomeLedger("r-1", "quality", 600.0)
    take(book, [request(n, at_s=float(n), arm=n % 2) for n in (1, 2, 3, 4)])
    take(book, [score(5, "q1"), score(6, "q2"), score(7, "q4")])

    assert outcomes(book, now_s=10.0) == [(True, 0.7), (False, 0.7)]
    assert outcomes(book, now_s=604.0) == [(True, None), (False, 0.7)]


@pytest.mark.parametrize("name", ["q1", "a1"])
@pytest.mark.parametrize("score_first", [True, False])
def test_a_score_finds_its_request_by_either_id_before_or_after(name: str, score_first: bool) -> None:
    book = OutcomeLedger("r-1", "quality", 600.0)
    events: list[Event] = [request(1), score(2, name)]
    take(book, events[::-1] if score_first else events)

    assert outcomes(book) == [(False, 0.7)]


def test_a_restart_reads_again_from_a_score_whose_request_has_not_come() -> None:
    book = OutcomeLedger("r-1", "quality", 600.0)
    take(book, [score(41, "q9")])

    assert book.resume_seq(60) == 40


def test_scores_of_nobody_are_forgotten_in_time() -> None:
    book = OutcomeLedger("r-1", "quality", 600.0)
    take(book, [score(1, "lost", at_s=0.0), score(2, "q2", at_s=901.0)])
    assert book.resume_seq(60) == 1

    take(book, [score(n, f"x{n}", at_s=902.0) for n in range(3, 25_000)])
    assert book.resume_seq(60_000) > 4000


def test_a_unit_counts_once() -> None:
    book = OutcomeLedger("r-1", "latency_ms", 600.0)
    take(book, [timed(n, float(n), unit="ada", assigned_by="sticky") for n in range(1, 6)])

    assert outcomes(book) == [(False, 1.0)]


@pytest.mark.parametrize(
    "left_out",
    [
        {"assigned_by": "no-capacity"},
        {"assigned_by": "fenced"},
        {"rollout": "r-0"},
        {"w": 0.0},
        {"w": 1.0},
    ],
)
def test_what_no_coin_decided_is_left_out(left_out: dict[str, Any]) -> None:
    book = OutcomeLedger("r-1", "latency_ms", 600.0)
    take(book, [timed(1, 1.0, **left_out)])

    assert outcomes(book) == []


def test_a_lost_span_is_dropped_for_both_arms() -> None:
    book = OutcomeLedger("r-1", "latency_ms", 600.0)
    take(book, [timed(n, float(n), arm=n % 2) for n in range(1, 7)])
    book.drop_span(2.0, 5.0)

    assert outcomes(book) == [(True, 1.0), (True, 5.0), (False, 6.0)]


@pytest.mark.parametrize(
    ("metric", "told", "value"),
    [
        ("error", {"error": True}, 1.0),
        ("tokens", {"completion_tokens": 9}, 9.0),
        ("truncated", {"finish_reason": "length"}, 1.0),
        ("cancelled", {"outcome": "cancelled"}, 1.0),
        ("empty", {"empty": True}, 1.0),
        ("ttft_ms", {"ttft_ms": None}, None),
    ],
)
def test_what_a_record_holds_is_read_from_it(metric: str, told: dict[str, Any], value: float | None) -> None:
    book = OutcomeLedger("r-1", metric, 600.0)
    take(book, [request(1, **told)])

    assert outcomes(book) == [(False, value)]


@pytest.mark.parametrize("metric", sorted(LIVE_METRICS))
def test_every_metric_that_can_be_asked_for_is_read_or_handed_in(metric: str) -> None:
    book = OutcomeLedger("r-1", metric, 600.0)
    take(book, [request(1, ttft_ms=1.0, itl_ms=1.0), ScoreRecord(2, "q1", metric, 1.0, 1.0)])

    [(_, value)] = outcomes(book)
    assert value is not None
    AbEvaluator(parse_ab(BODY | {"metric": metric}), [Outcome(1, False, 0.5, value, 1.0)])


def test_half_a_hallucination_is_a_score_and_stops_nothing() -> None:
    evaluator = AbEvaluator(parse_ab(BODY | {"metric": "hallucinated"}), [Outcome(1, True, 0.5, 0.5, 1.0)])

    assert (evaluator.result().n_b, evaluator.missing) == (1, [0, 0])


@pytest.mark.parametrize(("metric", "y"), [("latency_ms", -3.0), ("quality", 1.5), ("error", math.nan)])
def test_what_is_no_outcome_counts_as_missing(metric: str, y: float) -> None:
    evaluator = AbEvaluator(parse_ab(BODY | {"metric": metric}), [Outcome(1, True, 0.5, y, 1.0)])

    assert (evaluator.result().n_b, evaluator.missing) == (0, [0, 1])


def test_a_fixed_test_is_silent_until_both_sides_are_full() -> None:
    spec = parse_ab(BODY | {"mode": "fixed", "sample_size": 50})
    rows = [Outcome(n, n % 2 == 1, 0.5, 0.9 if n % 2 else 0.1, float(n)) for n in range(140)]

    early, late = AbEvaluator(spec, rows[:99]).result(), AbEvaluator(spec, rows).result()
    assert (early.verdict, early.p_value, early.interval) == (AbVerdict.TOO_FEW, 1.0, None)
    assert AbEvaluator(spec, rows[:99]).note() == "judged once, at 50 units a side; it has 50 and 49"
    assert (late.verdict, late.n_a, late.n_b) == (AbVerdict.B_BETTER, 50, 50)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"metric": "speed"}, "ab.metric 'speed' is unknown; use one of"),
        ({"metric": "cost"}, "ab.metric 'cost' is not measured live; use one of"),
        ({"split": "0%"}, "ab: split 0 % leaves one side empty; use 50%"),
        ({"split": "half"}, "ab.split: 'half' is not a percent; write 2.5%"),
        ({"split": "100%"}, "leaves one side empty"),
        ({"mode": "fixed"}, "sample_size belongs to the mode fixed"),
        ({"mode": "fixed", "sample_size": 29}, "ab.sample_size 29 is below 30; raise it"),
        ({"alpha": 0.7}, "ab.alpha 0.7 is not below 0.5; lower it"),
        ({"alpha": math.nan}, "ab.alpha nan "),
        ({"duration": 0}, "ab.duration 0.0 is not above 0; raise it"),
        ({"score_wait": "-1s"}, "ab.score_wait: '-1s' is not a duration"),
        ({"spilt": "50%"}, "ab: unknown key 'spilt'; did you mean split"),
        ({"policy": {"twin": True}}, "policy has twin, which runs A against itself; leave it out"),
        ({"policy": {"alpha": 2}}, "alpha 2"),
    ],
)
def test_a_bad_question_is_refused_by_name(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        parse_ab(BODY | bad)


def test_the_gates_of_a_given_policy_watch_b_and_its_stages_do_not_count() -> None:
    asked = {
        "preset": "strict",
        "gates": {"latency_shape": {"threshold": 2.0}, "latency_p99": None},
        "stages": [{"weight": "5%"}, {"weight": "20%"}],
        "holdback": "10%",
        "promote_if_point_ok": True,
    }
    spec = parse_ab(BODY | {"policy": asked})
    kept = AbSpec.model_validate_json(spec.model_dump_json())

    policy = parse_policy(kept.deploy_body()["policy"])

    gates = {gate.name: gate for gate in policy.gate_policy().gates}
    assert kept == spec
    assert (gates["latency_shape"].threshold, gates["latency_shape"].tolerance) == (2.0, 0.0)
    assert "latency_p99" not in gates
    assert [stage.bp for stage in policy.stages or ()] == [5000]
    assert (policy.holdback, policy.promote_if_point_ok) == (0, False)


def test_without_a_policy_the_services_own_gates_watch_b(bench: Bench) -> None:
    bench.rollouts.own = parse_policy({"gates": {"latency_shape": {"threshold": 2.0}}, "bake": "5m"})
    bench.tests.create("chat", BODY, ADMIN)

    policy = parse_policy(bench.rollouts.bodies[-1]["policy"])
    assert {gate.name: gate.threshold for gate in policy.gate_policy().gates}["latency_shape"] == 2.0
    assert policy.bake == 300.0


def test_a_stage_of_a_test_waits_for_a_person_and_not_for_a_thousand_million_requests() -> None:
    body = parse_ab(BODY).deploy_body()
    [stage] = parse_policy(body["policy"]).stages or ()
    rollout = a_rollout()
    plan = replace(rollout.plan, stages=(Stage(5000, 60.0, stage.min_canary, 60.0, 1),))
    state = replace(rollout, plan=plan, phase=Phase.STAGE, acked_at_s=1.0)
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, canary_requests=24)

    assert waiting_for(state, evidence, 2.0) == (
        "canaryctl ab stop chat: an A/B test is never promoted by itself",
    )
