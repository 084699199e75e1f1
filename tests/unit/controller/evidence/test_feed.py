"""Evidence feed: order, joins, seeds, stages, lost spans, and restarts that change nothing."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from typing import get_args

import pytest

from controller.evidence import feed as feed_module
from controller.evidence import reader as readers
from controller.evidence.feed import EvidenceFeeds, Feed
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig, draw_of, gate_config
from controller.evidence.score_join import ScoreJoin
from controller.evidence.snapshot import stored_status
from controller.rollout.observation import EvidenceStatus, VersionPhase, VersionStatus
from controller.rollout.state import Phase, RolloutState
from evaluation.evaluator import Evaluator
from evaluation.policy.policy import GatePolicy
from evaluation.records import kind_is_drawn
from evaluation.report import Verdict
from serving.messages import AssignedBy, Event, LostSpan, Outcome, RecordPage, RequestRecord
from tests.fakes.feed_maker import (
    CONFIG,
    ROLLOUT,
    START_S,
    a_record,
    a_score,
    feeds_on,
    in_stage,
    n_of,
    observe,
    traffic,
)
from tests.fakes.plane import FakeLog
from tests.fakes.rollouts import a_rollout

# --- draws


@pytest.mark.parametrize("value", get_args(AssignedBy))
def test_only_drawn_requests_count_as_drawn_in_the_evaluation(value: AssignedBy) -> None:
    assert kind_is_drawn(draw_of(a_record(1, assigned_by=value)).assigned_by) is (
        value in ("request", "sticky", "conversation", "heavy")
    )


@pytest.mark.parametrize(
    ("record", "fell_back"),
    [
        (a_record(1, arm=1), False),
        (a_record(1, arm=1, outcome="fallback", served_arm=0, error=True), True),
        (a_record(1, arm=1, outcome="fenced", served_arm=0), True),
        (a_record(1, arm=1, outcome="cut", served_arm=0, error=True), True),
        (a_record(1, arm=1, outcome="cut", error=True), False),
        (a_record(1, arm=1, outcome="failed", served_arm=None, error=True), True),
        (a_record(1, arm=1, outcome="cancelled", served_arm=None, error=None), None),
        (a_record(1, arm=1, outcome="cancelled", served_arm=0, error=True), True),
        (a_record(1, arm=0), None),
        (a_record(1, arm=1, outcome="fallback", served_arm=0, rejected=True), None),
    ],
    ids=[
        "served",
        "fallback",
        "fenced",
        "stable was cut",
        "cut",
        "failed",
        "cancelled",
        "cancelled at stable",
        "stable's own",
        "rejected",
    ],
)
def test_a_canary_request_served_by_stable_is_flagged_as_fallen_back(
    record: RequestRecord, fell_back: bool | None
) -> None:
    assert draw_of(record).flags.get("fell_back") is fell_back


@pytest.mark.slow
def test_a_canary_whose_requests_stable_serves_is_rolled_back_by_its_served_rate() -> None:
    log = FakeLog()
    for n in range(600):
        record = a_record(n, arm=n % 2, w=0.5)
        log.append(replace(record, outcome="fenced", served_arm=0) if n % 4 == 1 else record)
    log.watermark_s = START_S + 100

    evidence = observe(feeds_on(log), in_stage(), START_S + 100)

    assert evidence.rollback is not None
    assert evidence.rollback.gate == "served_rate"


def test_a_request_reported_while_open_is_censored() -> None:
    flags = [draw_of(a_record(1, outcome=value)).flags.get("censored") for value in ("open", "answered")]

    assert flags == [True, None]


@pytest.mark.parametrize("reason", ["length", "max_tokens", "max_output_tokens"])
def test_a_truncated_answer_is_flagged_and_is_no_error(reason: str) -> None:
    draw = draw_of(a_record(1, finish_reason=reason))

    assert (draw.flags["truncated"], draw.error) == (True, False)


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("rejected", [True, False, None])
def test_a_first_attempts_4xx_of_either_arm_is_flagged_as_rejected_and_is_no_error(
    arm: int, rejected: bool | None
) -> None:
    draw = draw_of(a_record(1, arm=arm, rejected=rejected))

    assert (draw.flags.get("rejected"), draw.error) == (rejected, False)


def test_a_fallback_stays_the_assigned_arms_failure() -> None:
    draw = draw_of(a_record(1, arm=1, outcome="fallback", served_arm=0, error=True, cause="refused"))

    assert (draw.arm, draw.error) == (1, True)


def test_the_time_until_a_client_left_is_known() -> None:
    record = a_record(1, outcome="cancelled", served_arm=None, error=None, latency_ms=None)
    left, answered = (replace(r, at_s=100.0, done_at_s=107.5) for r in (record, a_record(2)))

    assert (draw_of(left).left_ms, draw_of(left).latency_ms) == (7500.0, None)
    assert draw_of(answered).left_ms is None


def test_a_cancelled_request_is_no_error_and_has_its_own_flag() -> None:
    draw = draw_of(a_record(1, arm=1, outcome="cancelled", served_arm=None, error=None, latency_ms=None))

    assert (draw.error, draw.flags["cancelled"], draw.flags.get("fell_back")) == (None, True, None)


@pytest.mark.parametrize(
    ("outcome", "cause", "status"),
    [
        ("fallback", "refused", 200),
        ("fallback", "status 429", 200),
        ("fallback", "timeout", 200),
        ("fallback", "withheld", 200),
        ("failed", "status 503", 503),
        ("cut", "cut", 200),
        ("answered", "empty", 200),
    ],
)
def test_nothing_after_the_draw_removes_a_unit(outcome: Outcome, cause: str, status: int) -> None:
    log = FakeLog()
    for n in range(60):
        record = a_record(n, arm=n % 2, w=0.5)
        if n % 6 == 1:
            record = replace(record, outcome=outcome, cause=cause, status=status, error=True, served_arm=0)
            record = replace(record, latency_ms=50.0 if status == 200 else None)
        log.append(record)
    log.watermark_s = START_S + 1000

    evidence = observe(feeds_on(log), in_stage(), START_S + 1000)
    error = next(gate for gate in evidence.gates if gate.gate == "error" and gate.side == "rollback")

    assert (error.n_stable, error.n_canary) == (30, 30)
    assert error.canary == pytest.approx(10 / 30)


# --- joins


@pytest.mark.parametrize("by", ["q7", "a7"], ids=["request id", "answer id"])
@pytest.mark.parametrize("first", [True, False], ids=["score first", "request first"])
def test_a_score_finds_its_request_by_either_id_before_or_after_it(by: str, first: bool) -> None:
    log = FakeLog()
    events: list[Event] = [a_score(by, 1.0), a_record(7, arm=1)]
    for event in events if first else reversed(events):
        log.append(event)
    log.watermark_s = START_S + 10_000

    evidence = observe(feeds_on(log), in_stage(), START_S + 10_000)

    assert n_of(evidence, "quality") == (0, 1)


@pytest.mark.slow
def test_a_score_without_a_request_changes_nothing() -> None:
    log = FakeLog()
    traffic(log, 50)
    before = observe(feeds_on(log), in_stage(), START_S + 1000)
    log.append(a_score("unknown", 0.0))

    assert observe(feeds_on(log), in_stage(), START_S + 1000) == before


# --- what counts


def test_no_evidence_before_the_first_stage_is_acknowledged() -> None:
    log = FakeLog()
    log.append(a_record(1, rollout="", w=0.0))

    assert feeds_on(log).observe(a_rollout(), None, START_S + 5) is None


def test_an_unreadable_log_gives_no_status() -> None:
    assert feeds_on(FakeLog(blind=True)).observe(in_stage(), None, START_S) is None


def test_requests_of_another_rollout_are_no_evidence() -> None:
    log = FakeLog()
    for n in range(20):
        log.append(a_record(n, arm=1, rollout="r-00000000"))
    log.watermark_s = START_S + 1000

    evidence = observe(feeds_on(log), in_stage(), START_S + 1000)

    assert n_of(evidence, "error") == (0, 0)


def test_stables_own_traffic_seeds_the_latency_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    log, seeds = FakeLog(), []
    for n in range(30):
        log.append(a_record(n, rollout="", w=0.0, latency_ms=100.0 + n))
    log.append(a_record(31, rollout="", w=0.0, error=True, latency_ms=1.0))
    log.append(a_record(32, arm=1))
    start = Evaluator.start

    def recording(policy: GatePolicy, **more: object) -> Evaluator:
        seeds.append(dict(more["seed_latency_ms"]))  # type: ignore[call-overload]
        return start(policy, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "start", recording)
    observe(feeds_on(log), in_stage(), START_S + 100)

    assert [seed["latency_ms"] for seed in seeds] == [[100.0 + n for n in range(30)]]


def test_a_span_with_lost_records_is_dropped_for_both_arms() -> None:
    log = FakeLog(lost=(LostSpan("one", START_S, START_S + 1.0),))
    for n in range(20):
        log.append(a_record(n, arm=n % 2, w=0.5))
    log.watermark_s = START_S + 1000

    evidence = observe(feeds_on(log), in_stage(), START_S + 1000)

    assert n_of(evidence, "error") == (5, 5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("restart", [False, True], ids=["no restart", "restarts"])
def test_requests_of_a_lost_span_do_not_count_whether_reported_before_or_after_it(restart: bool) -> None:
    log = FakeLog(watermark_s=START_S)
    feeds = feeds_on(log)
    for first in (0, 10, 20):  # the span is reported with the second page and covers part of each
        for n in range(first, 30, 30 if first == 20 else 3):
            log.append(a_record(100 * first + n, arm=n % 2, w=0.5, at_s=START_S + 0.1 * n))
        log.lost = (LostSpan("one", START_S, START_S + 2.5),) if first == 10 else ()
        observe(feeds, in_stage(), START_S + 5)
        if restart:
            feeds = feeds_on(log, feeds.snapshot(ROLLOUT))
    log.watermark_s = START_S + 1000

    reported = [event.at_s for event in log.events if isinstance(event, RequestRecord)]
    counted = n_of(observe(feeds, in_stage(), START_S + 1000), "error")
    assert sum(counted) == sum(at_s >= START_S + 2.5 for at_s in reported) < len(reported)


@pytest.mark.slow
def test_evidence_of_a_stage_counts_from_its_acknowledgement() -> None:
    log = FakeLog()
    traffic(log, 200)
    feeds = feeds_on(log)
    observe(feeds, in_stage(0), START_S + 1000)
    traffic(log, 60, first=20_000)

    evidence = observe(feeds, in_stage(1, acked_at_s=START_S + 1999.0), START_S + 5000)

    assert (evidence.stage, evidence.canary_requests < 60) == (1, True)
    assert n_of(evidence, "error")[1] > 60


def test_the_error_guard_fires_when_half_of_the_canarys_requests_fail() -> None:
    log = FakeLog()
    for n in range(60):
        log.append(a_record(n, arm=n % 2, w=0.5, error=bool(n % 2)))
    log.watermark_s = START_S + 6.0

    evidence = observe(feeds_on(log), in_stage(), START_S + 6.0)

    assert [(guard.name, guard.both_arms) for guard in evidence.guards] == [("errors", False)]


def test_one_user_whose_requests_all_fail_does_not_trip_the_guard() -> None:
    """Each request of theirs counted as one, and a single client ended the rollout."""
    log = FakeLog()
    for n in range(120):
        mine = n % 2 == 1
        log.append(a_record(n, arm=n % 2, w=0.5, error=mine, unit="u-1" if mine else f"v-{n}"))
    log.watermark_s = START_S + 12.0

    assert observe(feeds_on(log), in_stage(), START_S + 12.0).guards == ()


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("stable_fails", [False, True])
def test_a_guard_that_trips_between_two_looks_is_seen_until_one_was_committed(stable_fails: bool) -> None:
    """A burst of failures, over before the controller looks: looks each second would have seen it."""
    log = FakeLog()
    feeds = feeds_on(log)
    for n in range(400):
        fails = 100 <= n < 160 and (stable_fails or n % 2 == 1)
        log.append(a_record(n, arm=n % 2, w=0.5, error=fails))
    log.watermark_s = START_S + 40.0

    seen = observe(feeds, in_stage(), START_S + 40.0)
    again = observe(feeds, in_stage(), START_S + 41.0)
    after = observe(feeds, replace(in_stage(), ticked_at_s=START_S + 41.0), START_S + 42.0)

    assert [guard.both_arms for guard in seen.guards] == [stable_fails]
    assert again.guards == seen.guards
    assert after.guards == ()


class Interrupted(FakeLog):
    """A log of which one page cannot be read."""

    failing: int | None = None  # that read, counted down

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        if self.failing is not None:
            self.failing -= 1
            if self.failing < 0:
                self.failing = None
                return None
        return super().read(service, after_seq=after_seq, limit=limit)


def a_trip_and_recovery(log: FakeLog, count: int) -> None:
    """Half of the canary's requests from the 400th to the 444th fail."""
    rng = random.Random(7)
    for n in range(count):
        arm = int(rng.random() < 0.5)
        fails = bool(arm and 400 <= n < 444)
        log.append(a_record(n, arm=arm, w=0.5, error=fails, served_arm=0 if fails else arm))
    log.watermark_s = START_S + 0.1 * count


@pytest.mark.slow
@pytest.mark.parametrize("restart", [False, True])
def test_a_guard_that_trips_in_a_page_is_seen_though_the_next_page_fails(restart: bool) -> None:
    log = Interrupted()
    feeds = feeds_on(log)
    a_trip_and_recovery(log, 6000)
    log.failing = 1

    assert feeds.observe(in_stage(), None, START_S + 601.0) is None

    state = replace(in_stage(), ticked_at_s=START_S + 601.0)  # that look was committed, with its snapshot
    if restart:
        feeds = feeds_on(log, feeds.snapshot(ROLLOUT))

    assert len(observe(feeds, state, START_S + 602.0).guards) == 1


@pytest.mark.slow
def test_a_guard_that_was_seen_and_committed_is_not_seen_again_after_a_restart() -> None:
    log = FakeLog()
    feeds = feeds_on(log)
    a_trip_and_recovery(log, 2000)

    assert len(observe(feeds, in_stage(), START_S + 201.0).guards) == 1

    restarted = feeds_on(log, feeds.snapshot(ROLLOUT))

    assert observe(restarted, in_stage(), START_S + 202.0).guards == ()


@pytest.mark.slow
def test_a_guard_that_trips_while_another_rollout_is_observed_is_seen() -> None:
    """One read delivers to all: an A/B test and a rollout."""
    log = FakeLog()
    feeds = feeds_on(log)
    feeds.observe(in_stage(), None, START_S)
    a_trip_and_recovery(log, 2000)
    feeds.observe(replace(in_stage(), id="r-00000002"), None, START_S + 201.0)

    assert len(observe(feeds, in_stage(), START_S + 202.0).guards) == 1


# --- load


def latency_proof(evidence: EvidenceStatus) -> tuple[Verdict, str]:
    gate = next(gate for gate in evidence.gates if gate.gate == "latency_shape" and gate.side == "promotion")
    return gate.verdict, gate.reason


def observed_with(
    log: FakeLog, stable: int, canary: int, state: RolloutState, saved: bytes | None = None
) -> tuple[EvidenceStatus, EvidenceFeeds]:
    ready = VersionPhase.READY
    fleet = (
        VersionStatus(state.stable.id, ready, stable, 0),
        VersionStatus(state.canary.id, ready, canary, 0),
    )
    feeds = feeds_on(log, saved)
    return observe(feeds, state, START_S + 1000, fleet), feeds


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 2000], ids=["by weight", "counted"])
def test_latency_is_not_proven_while_the_arms_carry_different_load(count: int) -> None:
    log = FakeLog()
    traffic(log, count)
    even, _ = observed_with(log, 2, 2, in_stage(1))
    uneven, _ = observed_with(log, 2, 4, in_stage(1))

    assert latency_proof(even)[0] is not Verdict.INVALID
    assert latency_proof(uneven) == (Verdict.INVALID, "not comparable: canary load 0.5x stable's")
    assert uneven.verdict is not Verdict.PASS


def half_served_by_stable() -> FakeLog:
    """Stable serves half of the canary's requests, so three times as many as the canary."""
    log = FakeLog()
    for n in range(2000):
        log.append(a_record(n, arm=n % 2, w=0.5, served_arm=0 if n % 4 == 1 else n % 2))
    log.watermark_s = START_S + 1000
    return log


@pytest.mark.slow
def test_a_canary_request_served_by_stable_counts_as_stables_load() -> None:
    evidence, _ = observed_with(half_served_by_stable(), 1, 1, in_stage(1))

    assert latency_proof(evidence)[1] == "not comparable: canary load 0.3x stable's"


@pytest.mark.slow
def test_latency_of_an_external_endpoint_is_compared_without_its_replicas() -> None:
    log = FakeLog()
    traffic(log, 2000)
    state = in_stage(1)

    evidence, _ = observed_with(log, 2, 4, replace(state, canary=replace(state.canary, external=True)))

    assert latency_proof(evidence)[0] is not Verdict.INVALID


@pytest.mark.slow
def test_the_load_count_survives_a_restart() -> None:
    log = half_served_by_stable()
    evidence, feeds = observed_with(log, 1, 1, in_stage(1))

    restarted, _ = observed_with(log, 1, 1, in_stage(1), feeds.snapshot(ROLLOUT))

    assert latency_proof(restarted) == latency_proof(evidence)


# --- restarts


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("crash_at", [1, 40, 77, 160, 399])
def test_a_restart_at_any_event_ends_with_the_same_evidence(crash_at: int) -> None:
    log = FakeLog()
    traffic(log, 200, canary_accuracy=0.85)
    undisturbed = feeds_on(log)
    observe(undisturbed, in_stage(), START_S + 100)

    early = FakeLog(log.events[:crash_at], watermark_s=0.0)
    before = feeds_on(early)
    observe(before, in_stage(), START_S + 100)
    saved = before.snapshot(ROLLOUT)
    restarted = feeds_on(log, saved)
    observe(restarted, in_stage(), START_S + 100)

    assert restarted.snapshot(ROLLOUT) == undisturbed.snapshot(ROLLOUT)


def test_a_score_after_the_restart_finds_a_request_from_before_it() -> None:
    log = FakeLog()
    log.append(a_record(1, arm=1))
    before = feeds_on(log)
    observe(before, in_stage(), START_S + 1)
    log.append(a_score("a1", 1.0))
    log.watermark_s = START_S + 10_000

    evidence = observe(feeds_on(log, before.snapshot(ROLLOUT)), in_stage(), START_S + 10_000)

    assert n_of(evidence, "quality") == (0, 1)


@pytest.mark.slow
def test_a_restart_continues_after_the_last_event_and_counts_no_draw_twice() -> None:
    log = FakeLog()
    traffic(log, 100)
    before = feeds_on(log)
    first = observe(before, in_stage(), START_S + 100)

    restarted = observe(feeds_on(log, before.snapshot(ROLLOUT)), in_stage(), START_S + 100)

    assert restarted == first


@pytest.mark.slow
def test_a_snapshot_of_another_policy_starts_again_from_the_log() -> None:
    log = FakeLog()
    traffic(log, 100)
    before = feeds_on(log)
    observe(before, in_stage(), START_S + 100)
    strict = GateConfig(GatePolicy.strict(), CONFIG.stages)

    after = feeds_on(log, before.snapshot(ROLLOUT), config=strict)
    fresh = feeds_on(log, config=strict)

    assert observe(after, in_stage(), START_S + 100) == observe(fresh, in_stage(), START_S + 100)


@pytest.mark.slow
def test_the_stored_snapshot_holds_the_status() -> None:
    log = FakeLog()
    traffic(log, 100)
    feeds = feeds_on(log)
    expected = observe(feeds, in_stage(), START_S + 100)

    assert stored_status(feeds.snapshot(ROLLOUT)) == expected


def test_an_invalid_record_is_counted_as_refused_and_left_out() -> None:
    log = FakeLog()
    log.append(a_record(1, arm=1, assigned_by="unknown"))
    feed = Feed(ROLLOUT, CONFIG)
    page = log.read("chat", after_seq=0, limit=10)
    assert page is not None

    feed.on_page(
        JoinedPage(ScoreJoin().join(page.events), (), page.low_watermark_s, is_end=True), START_S + 1
    )

    assert feed.refused == 1


def test_policy_and_stages_are_pinned_when_a_rollout_starts() -> None:
    request = {"gate": CONFIG.policy.to_mapping(), "stages": [asdict(stage) for stage in CONFIG.stages]}

    pinned = gate_config(json.dumps(request))

    assert (pinned.policy.digest(), pinned.stages) == (CONFIG.policy.digest(), CONFIG.stages)


# --- an undo: no stages, the error guard alone


def undo_status(*, stable_fails: bool, canary_fails: bool) -> EvidenceStatus:
    """Status after 30 requests of the version that is replaced, then 30 of the one that returns."""
    log = FakeLog()
    for n in range(30):
        log.append(a_record(n, w=0.0, rollout="", error=stable_fails))
    for n in range(30, 60):
        log.append(a_record(n, arm=1, w=1.0, error=canary_fails))
    feeds = feeds_on(log, config=GateConfig(CONFIG.policy, ()))
    return observe(feeds, replace(in_stage(), phase=Phase.BAKING), START_S + 10.0)


@pytest.mark.parametrize(
    ("stable_fails", "canary_fails", "both_arms"),
    [(False, False, []), (True, False, []), (False, True, [False]), (True, True, [True])],
)
def test_an_undo_is_guarded_by_comparison_with_the_version_it_replaces(
    stable_fails: bool, canary_fails: bool, both_arms: list[bool]
) -> None:
    status = undo_status(stable_fails=stable_fails, canary_fails=canary_fails)

    assert (status.verdict, status.gates) == (Verdict.UNDECIDED, ())
    assert [guard.both_arms for guard in status.guards] == both_arms


def test_an_undos_feed_goes_on_after_a_restart() -> None:
    log, config = FakeLog(), GateConfig(CONFIG.policy, ())
    for n in range(15):
        log.append(a_record(n, arm=1, w=1.0, error=True))
    feeds, state = feeds_on(log, config=config), replace(in_stage(), phase=Phase.BAKING)
    observe(feeds, state, START_S + 2.0)
    saved = feeds.snapshot(ROLLOUT)
    for n in range(15, 20):
        log.append(a_record(n, arm=1, w=1.0, error=True))

    restarted = feeds_on(log, saved, config)

    assert len(observe(restarted, state, START_S + 3.0).guards) == 1


@pytest.mark.slow
def test_the_window_of_recent_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_IDS", 100)
    log = FakeLog()
    traffic(log, 300)
    feeds = feeds_on(log)
    observe(feeds, in_stage(), START_S + 30.0)

    assert len(feeds._feeds[ROLLOUT]._window) == 100


@pytest.mark.slow
def test_a_restored_feed_reads_its_recent_requests_over_several_ticks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rollback of the service waits for four pages, and not for all that the log holds."""
    log = FakeLog(watermark_s=START_S)
    traffic(log, 300)
    feeds, state = feeds_on(log), in_stage()
    observe(feeds, state, log.watermark_s)
    saved = feeds.snapshot(ROLLOUT)
    traffic(log, 50, first=300)
    whole = observe(feeds, state, log.watermark_s)
    monkeypatch.setattr(readers, "PAGE_EVENTS", 20)
    restored = feeds_on(log, saved)

    looks, reads = [], []
    for _ in range(20):
        log.reads.clear()
        looks.append(restored.observe(state, None, log.watermark_s))
        reads.append(len(log.reads))
        restored.poll_idle(log.watermark_s)

    assert max(reads) <= 2 * readers.PAGES_A_TICK
    assert looks[0] is None
    assert looks[-1] == whole


@pytest.mark.slow
def test_a_log_that_cannot_be_read_while_a_feed_is_restored_keeps_what_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = FakeLog(watermark_s=START_S)
    traffic(log, 300)
    feeds, state = feeds_on(log), in_stage()
    whole = observe(feeds, state, log.watermark_s)
    monkeypatch.setattr(readers, "PAGE_EVENTS", 20)
    restored = feeds_on(log, feeds.snapshot(ROLLOUT))

    for tick in range(40):
        log.blind = tick % 2 == 1
        status = restored.observe(state, None, log.watermark_s)
        if log.blind:
            assert status is None
    log.blind = False

    assert observe(restored, state, log.watermark_s) == whole


def test_a_snapshot_with_a_field_of_another_release_is_read_anew_from_the_log() -> None:
    """A TypeError came at every tick, so that there was no evidence and no guard until a person acted."""
    log = FakeLog()
    feeds = feeds_on(log)
    traffic(log, 200)
    observe(feeds, in_stage(), START_S + 100)
    saved = json.loads(feeds.snapshot(ROLLOUT) or b"{}")
    saved["feed"]["lost"] = [7]  # no pair: a TypeError

    again = observe(feeds_on(log, json.dumps(saved).encode()), in_stage(), START_S + 200)

    assert again.canary_total == observe(feeds, in_stage(), START_S + 200).canary_total > 0
