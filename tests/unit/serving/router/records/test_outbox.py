"""The outbox of a router: confirmation of assignments, batches, watermark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.judge_messages import JudgeRecord
from serving.messages import ScoreRecord
from serving.router.records.outbox import BATCH_LIMIT, OUTBOX_LIMIT, VERDICTS_LIMIT, Outbox
from serving.router.records.votes import WAITING_LIMIT
from tests.unit.serving.table.test_records_log import record

CANARY = ("r-1", "v-2")


def test_an_assignment_waits_for_a_poll_sent_after_it() -> None:
    outbox = Outbox("r")
    outbox.add(record(), assigned_s=10.0, canary=CANARY)
    outbox.confirm(9.9, CANARY)
    early = outbox.next_batch(now_s=101.0)
    outbox.acknowledge()
    outbox.confirm(10.1, CANARY)

    assert early.records == ()
    assert [one.assigned_by for one in outbox.next_batch(now_s=101.0).records] == ["request"]


@pytest.mark.parametrize("arm", [0, 1])
def test_an_assignment_whose_canary_is_withdrawn_before_confirmation_is_fenced(arm: int) -> None:
    outbox = Outbox("r")
    outbox.add(replace(record(), arm=arm), assigned_s=10.0, canary=CANARY)
    outbox.confirm(10.1, None)

    assert [one.assigned_by for one in outbox.next_batch(now_s=101.0).records] == ["fenced"]


def test_a_confirmed_assignment_counts_when_the_request_ends_after_the_withdrawal() -> None:
    outbox = Outbox("r")
    outbox.opened("req-1", 100.0)
    outbox.confirm(10.1, CANARY)
    outbox.confirm(11.0, None)
    outbox.add(record(), assigned_s=10.0, canary=CANARY)

    assert [one.assigned_by for one in outbox.next_batch(now_s=101.0).records] == ["request"]


def test_the_low_watermark_stays_below_every_open_and_unconfirmed_request() -> None:
    outbox = Outbox("r")
    outbox.opened("req-1", 100.0)
    outbox.opened("req-2", 101.0)
    first = outbox.next_batch(now_s=105.0).low_watermark_s
    outbox.acknowledge()
    outbox.add(record("req-1", 100.0), assigned_s=10.0, canary=CANARY)
    second = outbox.next_batch(now_s=105.0).low_watermark_s
    outbox.acknowledge()
    outbox.confirm(11.0, CANARY)
    third = outbox.next_batch(now_s=105.0).low_watermark_s

    assert (first, second, third) == (100.0, 100.0, 101.0)


def test_an_assignment_that_expires_unconfirmed_is_fenced_and_releases_the_watermark() -> None:
    outbox = Outbox("r")
    outbox.add(record("req-1", 100.0), assigned_s=10.0, canary=CANARY)
    outbox.add(record("req-2", 101.0), assigned_s=11.0, canary=CANARY)
    outbox.expire(10.0)
    first = outbox.next_batch(now_s=170.0)
    outbox.acknowledge()
    outbox.confirm(11.5, CANARY)

    assert [(one.request_id, one.assigned_by) for one in first.records] == [("req-1", "fenced")]
    assert first.low_watermark_s == 101.0
    assert [one.assigned_by for one in outbox.next_batch(now_s=170.0).records] == ["request"]


def test_a_batch_is_repeated_until_it_is_acknowledged() -> None:
    outbox = Outbox("r")
    outbox.add(record(), assigned_s=1.0, canary=None)
    first = outbox.next_batch(now_s=101.0)
    outbox.add(record("req-2"), assigned_s=1.0, canary=None)
    again = outbox.next_batch(now_s=102.0)
    outbox.acknowledge()

    assert again is first
    assert [one.request_id for one in outbox.next_batch(now_s=103.0).records] == ["req-2"]


@pytest.mark.slow
def test_a_full_outbox_drops_its_oldest_records_and_counts_them() -> None:
    outbox = Outbox("r")
    for index in range(OUTBOX_LIMIT + 3):
        outbox.add(record(str(index)), assigned_s=1.0, canary=None)
    batch = outbox.next_batch(now_s=101.0)

    assert batch.dropped == 3
    assert batch.records[0].request_id == "3"


def test_verdicts_go_with_the_next_batch_once_and_the_oldest_are_lost_and_counted() -> None:
    outbox = Outbox("r")
    verdict = JudgeRecord(0, "r-1", "a1", 1.0, "q", None, True, None, 9, "r")
    outbox.add_verdict(verdict)
    first = outbox.next_batch(now_s=1.0)
    outbox.add_verdict(replace(verdict, request_id="later"))
    again = outbox.next_batch(now_s=1.0)
    outbox.acknowledge()

    assert (first.verdicts, again) == ((verdict,), first)
    assert [one.request_id for one in outbox.next_batch(now_s=1.0).verdicts] == ["later"]
    for number in range(VERDICTS_LIMIT + 3):
        outbox.add_verdict(replace(verdict, request_id=f"q{number}"))
    outbox.acknowledge()
    last = outbox.next_batch(now_s=1.0).verdicts
    assert (len(last), last[0].request_id, outbox.lost_verdicts) == (VERDICTS_LIMIT, "q3", 3)


def test_the_last_batch_takes_all_records_and_votes() -> None:
    outbox = Outbox("r")
    for _ in range(BATCH_LIMIT + 1):
        outbox.add(record(), assigned_s=1.0, canary=None)
    outbox.votes.waiting.extend([ScoreRecord(0, "req-0", "thumbs", 1.0, 0.0)] * WAITING_LIMIT)
    usual = outbox.next_batch(now_s=101.0)
    outbox.acknowledge()
    last = outbox.next_batch(now_s=102.0, last=True)

    assert (len(usual.records), len(usual.scores)) == (BATCH_LIMIT, BATCH_LIMIT)
    assert (len(last.records), len(last.scores)) == (1, WAITING_LIMIT - BATCH_LIMIT)
