from __future__ import annotations

from dataclasses import replace

import pytest

from serving.messages import LostSpan, RecordBatch, RequestRecord, ScoreRecord
from serving.router.outbox import OUTBOX_LIMIT, Outbox
from serving.table.records_log import RecordLog

CANARY = ("r-1", "v-2")


def record(request_id: str = "req-1", at_s: float = 100.0) -> RequestRecord:
    return RequestRecord(
        seq=0,
        request_id=request_id,
        answer_id=None,
        unit="u",
        bucket=7,
        arm=0,
        w=0.05,
        assigned_by="request",
        stage=1,
        rollout="r-1",
        at_s=at_s,
        done_at_s=at_s + 1,
        status=200,
        outcome="answered",
        served_arm=0,
        error=False,
        cause=None,
        latency_ms=1000.0,
        ttft_ms=None,
        itl_ms=None,
        prompt_tokens=1,
        completion_tokens=1,
        finish_reason="stop",
        empty=False,
        path="/v1/completions",
        router="r",
        epoch=1,
        revision=2,
    )


def batch(number: int, *records: RequestRecord, mark_s: float = 200.0, dropped: int = 0) -> RecordBatch:
    return RecordBatch("router", number, records, mark_s, dropped)


# ---- the outbox


def test_an_assignment_waits_for_a_poll_sent_after_it() -> None:
    box = Outbox("r")
    box.add(record(), assigned_s=10.0, canary=CANARY)
    box.confirm(9.9, CANARY)
    early = box.next_batch(now_s=101.0)
    box.acknowledge()
    box.confirm(10.1, CANARY)

    assert early.records == ()
    assert [one.assigned_by for one in box.next_batch(now_s=101.0).records] == ["request"]


@pytest.mark.parametrize("arm", [0, 1])
def test_an_assignment_whose_canary_is_withdrawn_before_confirmation_is_fenced(arm: int) -> None:
    box = Outbox("r")
    box.add(replace(record(), arm=arm), assigned_s=10.0, canary=CANARY)
    box.confirm(10.1, None)

    assert [one.assigned_by for one in box.next_batch(now_s=101.0).records] == ["fenced"]


def test_a_confirmed_assignment_counts_when_the_request_ends_after_the_withdrawal() -> None:
    box = Outbox("r")
    box.opened("req-1", 100.0)
    box.confirm(10.1, CANARY)
    box.confirm(11.0, None)
    box.add(record(), assigned_s=10.0, canary=CANARY)

    assert [one.assigned_by for one in box.next_batch(now_s=101.0).records] == ["request"]


def test_the_low_watermark_stays_below_every_open_and_unconfirmed_request() -> None:
    box = Outbox("r")
    box.opened("req-1", 100.0)
    box.opened("req-2", 101.0)
    first = box.next_batch(now_s=105.0).low_watermark_s
    box.acknowledge()
    box.add(record("req-1", 100.0), assigned_s=10.0, canary=CANARY)
    second = box.next_batch(now_s=105.0).low_watermark_s
    box.acknowledge()
    box.confirm(11.0, CANARY)
    third = box.next_batch(now_s=105.0).low_watermark_s

    assert (first, second, third) == (100.0, 100.0, 101.0)


def test_an_assignment_that_expires_unconfirmed_is_fenced_and_releases_the_watermark() -> None:
    box = Outbox("r")
    box.add(record("req-1", 100.0), assigned_s=10.0, canary=CANARY)
    box.add(record("req-2", 101.0), assigned_s=11.0, canary=CANARY)
    box.expire(10.0)
    first = box.next_batch(now_s=170.0)
    box.acknowledge()
    box.confirm(11.5, CANARY)

    assert [(one.request_id, one.assigned_by) for one in first.records] == [("req-1", "fenced")]
    assert first.low_watermark_s == 101.0
    assert [one.assigned_by for one in box.next_batch(now_s=170.0).records] == ["request"]


def test_a_batch_is_repeated_until_it_is_acknowledged() -> None:
    box = Outbox("r")
    box.add(record(), assigned_s=1.0, canary=None)
    first = box.next_batch(now_s=101.0)
    box.add(record("req-2"), assigned_s=1.0, canary=None)
    again = box.next_batch(now_s=102.0)
    box.acknowledge()

    assert again is first
    assert [one.request_id for one in box.next_batch(now_s=103.0).records] == ["req-2"]


def test_a_full_outbox_drops_its_oldest_records_and_counts_them() -> None:
    box = Outbox("r")
    for index in range(OUTBOX_LIMIT + 3):
        box.add(record(str(index)), assigned_s=1.0, canary=None)
    taken = box.next_batch(now_s=101.0)

    assert taken.dropped == 3
    assert taken.records[0].request_id == "3"


# ---- the log


def read(log: RecordLog, after_seq: int = 0, limit: int = 10, now_s: float = 0.0):  # type: ignore[no-untyped-def]
    return log.read(after_seq, limit, now_s=now_s, wall_s=1000.0)


def append(log: RecordLog, one: RecordBatch, now_s: float = 0.0) -> bool:
    return log.append_batch(one, now_s=now_s, wall_s=1000.0)


def test_requests_and_scores_share_one_sequence_without_gaps() -> None:
    log = RecordLog()
    append(log, batch(1, record("a"), record("b")))
    log.append_scores([ScoreRecord(0, "a", "quality", 1.0, 150.0)])
    append(log, batch(2, record("c")))
    events = read(log).events

    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert isinstance(events[2], ScoreRecord)


def test_only_the_last_page_has_the_watermark() -> None:
    log = RecordLog()
    append(log, batch(1, *(record(str(index)) for index in range(5))))
    first = read(log, 0, 3)
    second = read(log, first.next_seq, 3)

    assert [one.seq for one in first.events + second.events] == [1, 2, 3, 4, 5]
    assert (first.low_watermark_s, second.low_watermark_s) == (0.0, 200.0)
    assert read(log, second.next_seq).next_seq == second.next_seq


def test_a_repeated_batch_is_ignored() -> None:
    log = RecordLog()

    assert append(log, batch(1, record()))
    assert not append(log, batch(1, record()))
    assert len(read(log).events) == 1


def test_a_gap_in_the_batch_numbers_is_reported_as_a_lost_span() -> None:
    log = RecordLog()
    append(log, batch(1, mark_s=200.0))
    append(log, batch(3, mark_s=230.0))

    assert read(log).lost == (LostSpan("router", 200.0, 230.0),)


def test_dropped_records_are_reported_as_a_lost_span() -> None:
    log = RecordLog()
    append(log, batch(1, mark_s=200.0))
    append(log, batch(2, mark_s=230.0, dropped=4))

    assert read(log).lost == (LostSpan("router", 200.0, 230.0),)


def test_a_lost_span_is_reported_once_to_each_reader() -> None:
    log = RecordLog()
    append(log, batch(2))
    append(log, batch(4, record()))
    first = read(log)

    assert first.lost
    assert read(log, first.next_seq).lost == ()


def test_the_slowest_router_holds_the_watermark_until_its_timeout() -> None:
    log = RecordLog()
    append(log, RecordBatch("slow", 1, (), 150.0), now_s=0.0)
    append(log, RecordBatch("fast", 1, (), 300.0), now_s=4.0)
    held = read(log, now_s=4.9).low_watermark_s
    page = read(log, now_s=5.1)

    assert held == 150.0
    assert page.low_watermark_s == 300.0
    assert page.lost == (LostSpan("slow", 150.0, 1000.0),)


def test_a_router_that_shut_down_does_not_hold_the_watermark() -> None:
    log = RecordLog()
    append(log, RecordBatch("gone", 1, (), 150.0, last=True))
    append(log, RecordBatch("here", 1, (), 300.0))
    page = read(log, now_s=1.0)

    assert (page.low_watermark_s, page.lost) == (300.0, ())


def test_a_reader_overtaken_by_the_ring_gets_a_lost_span() -> None:
    log = RecordLog(limit=3)
    append(log, batch(1, *(record(str(index), 100.0 + index) for index in range(6))))
    page = read(log, after_seq=1)

    assert [event.seq for event in page.events] == [4, 5, 6]
    assert page.lost == (LostSpan("", 0.0, 103.0),)


def test_a_restarted_log_reports_a_lost_span_to_its_old_readers() -> None:
    log = RecordLog(first_seq=5000)
    page = read(log, after_seq=17)

    assert page.lost == (LostSpan("", 0.0, 1000.0),)
    assert page.next_seq == 4999


def test_a_new_reader_has_lost_nothing() -> None:
    assert read(RecordLog(first_seq=5000)).lost == ()


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit 0 is below 1"):
        read(RecordLog(), limit=0)


def test_the_ring_is_bounded() -> None:
    log = RecordLog(limit=100)
    for number in range(1, 12):
        append(log, batch(number, *[record()] * 10))

    assert len(read(log, limit=1000).events) == 100
