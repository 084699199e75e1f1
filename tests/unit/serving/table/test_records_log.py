"""The records log of a service: order, watermark, lost spans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.judge_messages import JudgeRecord
from serving.messages import LostSpan, RecordBatch, RequestRecord, ScoreRecord
from serving.table.records_log import RecordLog


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


def batch(number: int, *records: RequestRecord, watermark_s: float = 200.0, dropped: int = 0) -> RecordBatch:
    return RecordBatch("router", number, records, watermark_s, dropped)


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
    append(log, batch(1, watermark_s=200.0))
    append(log, batch(3, watermark_s=230.0))

    assert read(log).lost == (LostSpan("router", 200.0, 230.0),)


def test_dropped_records_are_reported_as_a_lost_span() -> None:
    log = RecordLog()
    append(log, batch(1, watermark_s=200.0))
    append(log, batch(2, watermark_s=230.0, dropped=4))

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


def test_a_log_with_lower_numbers_is_read_from_its_start_by_the_readers_of_the_earlier_one() -> None:
    """The actor was restarted after the wall clock was set back."""
    log = RecordLog(first_seq=5000)
    append(log, batch(1, *(record(str(index), 100.0 + index) for index in range(3))))
    page = read(log, after_seq=9000, limit=2)

    assert ([event.seq for event in page.events], page.next_seq) == ([5000, 5001], 5001)
    assert page.lost == (LostSpan("", 0.0, 100.0),)
    assert (read(log, after_seq=5002).events, read(log, after_seq=5002).lost) == ((), ())


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


def test_verdicts_of_a_batch_are_numbered_after_its_requests() -> None:
    log = RecordLog()
    verdict = JudgeRecord(0, "r-1", "a1", 150.0, "a", None, True, None, 9, "router")
    append(log, replace(batch(1, record("a")), verdicts=(verdict,)))
    append(log, replace(batch(1, record("a")), verdicts=(verdict,)))  # sent again

    events = read(log).events
    assert [one.seq for one in events] == [1, 2]
    assert events[1] == replace(verdict, seq=2)
