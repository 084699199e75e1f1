"""Records reader: one read per tick, catch-up by position, joins that survive re-reading."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from controller import telemetry
from controller.evidence import reader as readers
from controller.evidence import score_join
from controller.evidence.feed import EvidenceFeeds
from controller.evidence.live_load import LiveLoad
from controller.evidence.reader import PAGE_EVENTS, READ_S, JoinedPage, RecordsLog, RecordsReader
from controller.evidence.score_join import JOIN_WINDOW_S, IdBudget, Joined, ScoreJoin
from controller.evidence.traffic_meter import TrafficMeter
from serving.messages import LostSpan, RecordBatch, RecordPage
from serving.table.records_log import RecordLog
from tests.fakes.feed_maker import CONFIG, START_S, a_record, a_score, in_stage, traffic
from tests.fakes.plane import FakeLog


class Recorder:
    """A subscriber that keeps what it received: requests and scores by the ids of both."""

    join_s = JOIN_WINDOW_S
    join_ids = 1000

    def __init__(self, seq: int = 0) -> None:
        self.seq = seq
        self.received: list[str] = []
        self.lost: list[LostSpan] = []
        self.ends = 0

    def on_page(self, page: JoinedPage, now_s: float) -> None:
        for event in page.events:
            id = event.request.request_id
            self.received += [id] if event.is_new else []
            self.received += [f"{id}={score.value}" for score in event.scores]
        self.lost += page.lost
        self.ends += page.is_end


def reader_of(log: RecordsLog, *subscribers: Recorder) -> RecordsReader:
    reader = RecordsReader("chat", log)
    for i, subscriber in enumerate(subscribers):
        reader.subscribe(str(i), subscriber)
    return reader


def a_log(*events: int | str) -> FakeLog:
    """A log of requests (their number) and scores ("id=value")."""
    log = FakeLog()
    for event in events:
        if isinstance(event, int):
            log.append(a_record(event))
        else:
            id, _, value = event.partition("=")
            log.append(a_score(id, float(value)))
    return log


def test_three_subscribers_are_served_by_one_read_per_tick() -> None:
    log = a_log(1, "a1=0.5", 2)
    recorders = [Recorder() for _ in range(3)]
    reader = reader_of(log, *recorders)

    for tick in range(3):
        reader.poll(START_S + tick)

    assert log.reads == [0, 3, 3]
    assert [one.received for one in recorders] == [["q1", "q1=0.5", "q2"]] * 3


def test_a_rollouts_tick_and_the_measurement_after_it_read_once() -> None:
    log, meter = FakeLog(), TrafficMeter()
    traffic(log, 20)
    reader = RecordsReader("chat", log)
    reader.subscribe("meter", meter)
    feeds = EvidenceFeeds(reader, lambda rollout: None, lambda rollout: CONFIG)

    feeds.observe(in_stage(), None, START_S + 10)
    feeds.poll_idle(START_S + 10.1)

    assert (log.reads, meter.seq) == ([0], 40)


def test_without_a_rollout_the_measurement_reads_and_drops_the_ended_feed() -> None:
    log, meter = FakeLog(), TrafficMeter()
    reader = RecordsReader("chat", log)
    reader.subscribe("meter", meter)
    feeds = EvidenceFeeds(reader, lambda rollout: None, lambda rollout: CONFIG)
    feeds.observe(in_stage(), None, START_S + 10)
    feeds.poll_idle(START_S + 10.1)
    traffic(log, 20)

    feeds.poll_idle(START_S + 11.0)

    assert meter.seq == 40
    assert feeds.snapshot(in_stage().id) is None


@pytest.mark.parametrize("seq", [0, 1, 3, 4])
def test_a_subscriber_that_is_behind_catches_up_and_the_others_receive_nothing_twice(seq: int) -> None:
    log = a_log(1, 2, 3, 4)
    ahead = Recorder()
    reader = reader_of(log, ahead)
    reader.poll(START_S)
    behind = Recorder(seq)
    reader.subscribe("behind", behind)
    log.append(a_record(5))

    reader.poll(START_S + 1)

    assert ahead.received == ["q1", "q2", "q3", "q4", "q5"]
    assert behind.received == ahead.received[seq:]
    assert (ahead.ends, behind.ends) == (2, 1)
    assert ahead.seq == behind.seq == 5


def test_subscribers_share_each_read_as_soon_as_they_are_level() -> None:
    log = a_log(1, 2, 3, 4)
    reader = reader_of(log, Recorder(0), Recorder(1), Recorder(3))
    for tick in range(3):
        reader.poll(START_S + tick)

    assert log.reads == [0, 1, 3, 4, 4]


def test_a_subscriber_far_behind_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PAGE_EVENTS", 2)
    log = a_log(*range(1, 41))
    ahead, behind = Recorder(38), Recorder()
    reader = reader_of(log, ahead, behind)

    reader.poll(START_S)

    assert (ahead.received, behind.seq) == (["q39", "q40"], 2 * readers.PAGES_A_TICK)


def test_lost_records_concern_only_the_subscriber_whose_page_reports_them() -> None:
    log = a_log(1, 2)
    ahead = Recorder()
    reader = reader_of(log, ahead)
    reader.poll(START_S)
    span = LostSpan("one", START_S, START_S + 1)
    behind = Recorder()
    reader.subscribe("behind", behind)
    log.lost = (span,)
    reader._advance(0, START_S)

    assert (ahead.lost, behind.lost) == ([], [span])


@pytest.mark.parametrize(
    "events",
    [(1, "a1=0.5", "q1=0.75"), ("a1=0.5", "q1=0.75", 1), ("q1=0.5", 1, "a1=0.75")],
    ids=["request first", "scores first", "between"],
)
def test_reading_again_delivers_each_score_once_in_log_order(events: tuple[int | str, ...]) -> None:
    log = a_log(*events)
    first, again, third = Recorder(), Recorder(), Recorder()
    reader = reader_of(log, first)
    for late in (again, third):
        reader.poll(START_S)
        reader.subscribe(str(id(late)), late)
    reader.poll(START_S)

    assert first.received == again.received == third.received == ["q1", "q1=0.5", "q1=0.75"]


def test_a_score_held_for_one_subscriber_is_delivered_to_all_with_its_request() -> None:
    log = a_log("a1=0.5")
    before, later = Recorder(), Recorder(1)
    reader = reader_of(log, before)
    reader.poll(START_S)
    reader.subscribe("later", later)
    log.append(a_record(1))

    reader.poll(START_S + 1)

    assert before.received == later.received == ["q1", "q1=0.5"]


def test_an_unreadable_log_leaves_every_subscriber_as_it_was() -> None:
    log = a_log(1, 2)
    recorder = Recorder(1)
    reader = reader_of(log, recorder)
    log.blind = True

    assert not reader.poll(START_S)
    assert (recorder.seq, recorder.received, recorder.ends) == (1, [], 0)
    assert reader.replay(0, Recorder(2), lambda events: None) is None


def test_a_replay_reads_exactly_the_requested_events() -> None:
    log = a_log(1, "a1=0.5", 2, 3)
    got: list[Joined] = []

    assert RecordsReader("chat", log).replay(1, Recorder(3), got.extend) == 3
    assert [event.request.request_id for event in got if event.is_new] == ["q2"]


class Ring:
    """The real log of one service, which holds its newest `limit` events."""

    def __init__(self, limit: int) -> None:
        self.log = RecordLog(limit=limit)
        self.count = self.batches = self.reads = 0

    def add(self, requests: int) -> None:
        """Append requests of 0.1 s each."""
        records = tuple(a_record(n) for n in range(self.count, self.count + requests))
        self.count += requests
        self.batches += 1
        batch = RecordBatch("r", self.batches, records, records[-1].at_s)
        assert self.log.append_batch(batch, now_s=0.0, wall_s=START_S)

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage:
        self.reads += 1
        return self.log.read(after_seq, limit, now_s=0.0, wall_s=START_S)


def test_after_a_restart_it_is_known_which_requests_the_log_no_longer_had() -> None:
    ring, recorder = Ring(limit=100), Recorder()
    before = RecordsReader("chat", ring)
    before.subscribe("it", recorder)
    for _ in range(3):
        ring.add(100)
        before.poll(START_S + 30.0)
    assert (before.has_request("q0"), before.forgotten_after_s) == (True, None)

    after = RecordsReader("chat", ring)
    after.subscribe("it", Recorder())
    after.poll(START_S + 30.0)
    assert (after.has_request("q199"), after.has_request("q200")) == (False, True)
    assert after.forgotten_after_s == pytest.approx(10.0, abs=0.1)

    ring.add(50)
    after.poll(START_S + 35.0)
    assert after.forgotten_after_s == pytest.approx(15.0, abs=0.1)

    after.poll(START_S + 19.0 + JOIN_WINDOW_S)
    assert after.forgotten_after_s is not None
    after.poll(START_S + 21.0 + JOIN_WINDOW_S)  # no score of those that are missing can come any more
    assert after.forgotten_after_s is None


@pytest.mark.slow
def test_a_log_that_began_anew_with_lower_numbers_is_read_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The actor was restarted after the clock was set back: no gate saw another request, in silence."""
    told: list[str] = []
    monkeypatch.setattr(telemetry, "warning", lambda text, **_: told.append(text))
    ring, recorder = Ring(limit=10_000), Recorder()
    ring.log = RecordLog(first_seq=50_000)
    reader = reader_of(ring, recorder)
    ring.add(3)
    reader.poll(START_S)
    restored = Recorder(recorder.seq)

    ring.log = RecordLog(first_seq=20_000)
    ring.add(6_000)
    polled = [reader.poll(START_S + second) for second in range(2)]
    replayed: list[Joined] = []
    after = reader_of(ring)
    reached = after.replay(restored.seq - 1, restored, replayed.extend)
    after.subscribe("it", restored)
    after.poll(START_S)

    assert (polled, len(recorder.received), recorder.seq) == ([True, True], 6_003, 25_999)
    assert (len(set(recorder.received)), [span.router for span in recorder.lost]) == (6_003, [""])
    assert (reached, replayed, len(restored.received)) == (50_002, [], 6_000)
    assert [text.startswith("the records log began anew with lower numbers") for text in told] == [True] * 2


def test_requests_that_fell_out_of_the_log_before_they_were_read_are_known_as_missing() -> None:
    ring, recorder = Ring(limit=100), Recorder()
    reader = RecordsReader("chat", ring)
    reader.subscribe("it", recorder)
    ring.add(10)
    reader.poll(START_S + 1.0)
    ring.add(290)
    reader.poll(START_S + 30.0)

    assert reader.forgotten_after_s == pytest.approx(10.0, abs=0.2)


def test_a_replay_reads_a_few_pages_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PAGE_EVENTS", 10)
    ring, subscriber = Ring(limit=1000), Recorder(95)
    ring.add(100)
    reader, got, position, reads = RecordsReader("chat", ring), list[Joined](), 0, list[int]()
    while position < 95:
        ring.reads = 0
        reached = reader.replay(position, subscriber, got.extend)
        assert reached is not None
        position = reached
        reads.append(ring.reads)
        reader.poll(START_S + 10.0 + 2 * JOIN_WINDOW_S)

    assert reads == [4, 4, 2]
    assert [event.request.seq for event in got] == list(range(1, 96))


def test_requests_of_a_replay_under_way_are_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PAGE_EVENTS", 10)
    ring, patient, other = Ring(limit=1000), Recorder(95), Recorder()
    ring.add(100)
    patient.join_s, other.join_ids = 7200.0, 0
    reader = RecordsReader("chat", ring)
    reader.subscribe("other", other)
    reader.replay(0, patient, lambda events: None)
    reader.poll(START_S + 3600.0)

    assert reader.has_request("q0")


def test_the_ids_of_all_services_share_one_bound() -> None:
    budget = IdBudget(200)
    joins = [ScoreJoin(budget) for _ in range(4)]
    joins[0].join(a_record(n) for n in range(300))
    joins[0].forget(before_s=0.0, max_ids=1000)
    assert len(joins[0]) == 200  # the others hold nothing

    for join in joins[1:]:
        join.join(a_record(n) for n in range(300))
    for join in [*joins, *joins]:
        join.forget(before_s=0.0, max_ids=1000)

    assert [len(join) for join in joins] == [50] * 4
    assert all(join.forgotten_after_s is not None for join in joins)


def test_a_quiet_service_keeps_its_ids_beside_a_busy_one_and_one_that_ended_needs_none() -> None:
    budget = IdBudget(200)
    quiet, busy, ended = ScoreJoin(budget), ScoreJoin(budget), ScoreJoin(budget)
    quiet.join(a_record(n) for n in range(5))
    for join in (busy, ended):
        join.join(a_record(n) for n in range(300))
        join.forget(before_s=0.0, max_ids=1000)
    del join, ended
    gc.collect()  # a join refers to itself
    busy.join(a_record(n) for n in range(300))
    for join in (quiet, busy):
        join.forget(before_s=0.0, max_ids=1000)

    assert (len(quiet), len(busy)) == (10, 190)  # a request has two ids


def test_the_resume_position_lies_before_the_oldest_held_score() -> None:
    log = a_log(1, "a2=0.5", 3)
    recorder = Recorder()
    reader = reader_of(log, recorder)
    reader.poll(START_S)

    assert reader.resume_seq(recorder.seq) == 1
    log.append(a_record(2))
    reader.poll(START_S)
    assert reader.resume_seq(recorder.seq) == 4


def test_scores_are_held_as_long_as_the_most_patient_subscriber_needs() -> None:
    log = a_log("a1=0.5")
    patient = Recorder()
    patient.join_s = 7200.0
    reader = reader_of(log, Recorder(), patient)

    reader.poll(START_S + 7199)
    assert reader.resume_seq(1) == 0
    reader.poll(START_S + 7201)
    assert reader.resume_seq(1) == 1


@pytest.mark.slow
def test_the_join_is_bounded() -> None:
    join = ScoreJoin()
    join.join(a_score(f"unknown{n}", 0.0) for n in range(20_100))
    join.join(a_record(n) for n in range(100))
    join.forget(before_s=0.0, max_ids=10)

    assert len(join._held) == 20_000

    join.forget(before_s=a_record(100).at_s, max_ids=10)

    assert len(join._requests) == 10


def test_a_score_whose_request_only_a_later_subscriber_reads_is_delivered_once() -> None:
    log = a_log(1, "a1=0.5")
    head, behind = Recorder(seq=1), Recorder()
    reader = reader_of(log, head)
    assert reader.poll(START_S)  # the score is read, its request is not known to this reader

    reader.subscribe("behind", behind)
    assert reader.poll(START_S)

    assert behind.received == ["q1", "q1=0.5"]


class Failing(Recorder):
    """A subscriber that fails on the request with this number, after it has counted it."""

    fails_on = "q2"

    def on_page(self, page: JoinedPage, now_s: float) -> None:
        super().on_page(page, now_s)
        if self.fails_on in self.received:
            raise ZeroDivisionError("a bug")


def test_a_subscriber_that_fails_is_dropped_and_sees_no_page_twice() -> None:
    log = a_log(1, 2, 3)
    failing, other = Failing(), Recorder()
    reader = reader_of(log, failing, other)
    reader.poll(START_S)
    log.append(a_record(4))
    reader.poll(START_S)

    assert (reader.has("0"), reader.has("1")) == (False, True)
    assert failing.received == ["q1", "q2", "q3"]
    assert other.received == ["q1", "q2", "q3", "q4"]


def test_a_feed_that_failed_counts_no_error_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is counted before the evaluator, so a page that fails between the two was counted half."""
    log = FakeLog()
    for n in range(12):
        log.append(a_record(n, arm=1, w=0.1, error=True))
    feeds = EvidenceFeeds(RecordsReader("chat", log), lambda rollout: None, lambda rollout: CONFIG)
    monkeypatch.setattr(LiveLoad, "report_to", lambda *_: 1 / 0)

    first = feeds.observe(in_stage(), None, START_S)
    monkeypatch.undo()
    second = feeds.observe(in_stage(), None, START_S)

    assert first is None
    assert second is not None
    assert second.guards == ()  # 12 failures are fewer than the guard's 20, twice 12 are not


def test_ids_are_kept_for_as_long_as_scores_may_come_within_the_bound() -> None:
    """Not a number of requests but their age decides: at 250 requests/s scores 500 s late find theirs."""
    join = ScoreJoin()
    join.join(a_record(n) for n in range(100))
    at_s = a_record(0).at_s
    join.forget(before_s=at_s - 1.0, max_ids=10)

    assert (join.has("q0"), join.forgotten_after_s) == (True, None)

    join.forget(before_s=at_s + 5.0, max_ids=10)

    assert len(join._requests) < 200
    assert not join.has("q0")
    assert join.forgotten_after_s is None


def test_beyond_the_bound_young_requests_are_forgotten_and_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_join, "MAX_IDS", 20)
    join = ScoreJoin()
    join.join(a_record(n) for n in range(100))
    newest, oldest_kept = a_record(99).at_s, a_record(90).at_s
    join.forget(before_s=0.0, max_ids=10)

    assert len(join._requests) == 20
    assert join.forgotten_after_s == pytest.approx(newest - oldest_kept, abs=0.2)


def test_the_oldest_ids_are_dropped_in_whatever_order_they_were_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A subscriber that reads the log from its start comes to old requests after young ones."""
    monkeypatch.setattr(score_join, "MAX_IDS", 200)
    join = ScoreJoin()
    young = [a_record(n, seq=n + 1) for n in range(5000, 5090)]
    old = [a_record(n, seq=n + 1) for n in range(90)]
    for records in (young, old):
        join.join(records)
        join.forget(before_s=a_record(4000).at_s, max_ids=50)

    assert all(join.has(record.request_id) for record in young)
    assert not any(join.has(record.request_id) for record in old)
    assert join.forgotten_after_s is None

    join.join([a_record(n, seq=n + 1) for n in range(5090, 5190)])
    join.join(old)
    join.forget(before_s=0.0, max_ids=50)

    assert len(join._requests) == 200
    assert join.has("q5189")
    assert join.forgotten_after_s == pytest.approx(10.0, abs=0.2)


def test_a_request_that_is_read_again_takes_no_more_room() -> None:
    join = ScoreJoin()
    for _ in range(10):
        join.join(a_record(n, seq=n + 1) for n in range(20))

    assert len(join._ages) == 40


@pytest.mark.slow
def test_held_scores_are_dropped_by_age_too() -> None:
    join = ScoreJoin()
    join.join(replace(a_score(f"young{n}", 0.5, at_s=START_S + 500), seq=5000 + n) for n in range(19_990))
    join.join(replace(a_score(f"old{n}", 0.5, at_s=START_S + n), seq=n) for n in range(20))

    assert len(join._held) == 20_000
    assert "young0" in join._held
    assert "old0" not in join._held

    join.forget(before_s=START_S + 100, max_ids=10)

    assert len(join._held) == 19_990


def test_a_metric_that_has_a_score_is_known_by_either_id() -> None:
    join = ScoreJoin()
    join.join([a_record(0, seq=1), replace(a_score("a0", 0.5), seq=2), replace(a_score("early", 0.5), seq=3)])
    join.join([a_record(1, request_id="early", seq=4)])

    assert join.has_score("q0", "quality")
    assert join.has_score("a0", "quality")
    assert join.has_score("early", "quality")
    assert not join.has_score("q0", "thumbs")
    assert not join.has_score("unknown", "quality")

    join.forget(before_s=float("inf"), max_ids=0)

    assert not join.has_score("q0", "quality")
    assert join._scored == {}


def test_a_tick_reads_for_a_second_and_goes_on_at_the_next() -> None:
    """With many gates 20,000 requests took minutes, for which a rollback waited."""
    log, now_s = a_log(*range(1, 3 * PAGE_EVENTS)), [0.0]

    class Slow(Recorder):
        def on_page(self, page: JoinedPage, now_s_: float) -> None:
            now_s[0] += READ_S
            super().on_page(page, now_s_)

    slow = Slow()
    reader = RecordsReader("chat", log, elapsed_s=lambda: now_s[0])
    reader.subscribe("slow", slow)
    read = []
    for tick in range(3):
        assert reader.poll(START_S + tick)
        read.append(len(slow.received))

    assert read == [PAGE_EVENTS, 2 * PAGE_EVENTS, 3 * PAGE_EVENTS - 1]
