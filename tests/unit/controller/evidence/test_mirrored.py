"""Mirrored copies in the records log: counted for their phase, and evidence of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.observation import EvidenceStatus, MirrorStatus
from controller.rollout.plan import MirrorPlan
from controller.rollout.state import Phase, RolloutState
from evaluation.report import Verdict
from serving.messages import MirrorRecord
from tests.fakes.feed_maker import START_S, a_record, feeds_on, in_stage, n_of, observe, traffic
from tests.fakes.plane import FakeLog
from tests.fakes.rollouts import a_rollout

COPY = MirrorRecord(
    *(0, "q1", "u1", "r-00000001", START_S, "/v1/chat/completions", "ok", None, 200, 50.0, 40.0),
    *(9, 9, "stop", "stop", True, "one", 1, 1),
)
FAILED = replace(COPY, outcome="failed", cause="status 500", same_text=None, latency_ms=None)


def mirroring() -> RolloutState:
    state = a_rollout(now_s=START_S)
    plan = replace(state.plan, mirror=MirrorPlan(200, 50, 600.0))
    return replace(state, phase=Phase.MIRRORING, plan=plan, exposed=True)


def test_copies_of_the_rollout_are_counted_and_those_that_say_nothing_are_not() -> None:
    log = FakeLog()
    for one in (COPY, COPY, replace(COPY, same_text=False), FAILED, replace(COPY, rollout="r-2")):
        log.append(one)
    log.append(replace(COPY, outcome="withheld", cause="withheld"))
    log.append(a_record(1, w=0.0))
    status = observe(feeds_on(log), mirroring(), START_S)

    assert status == EvidenceStatus(
        0, Verdict.UNDECIDED, mirror=MirrorStatus(pairs=3, failed=1, same_text=2, cause="status 500")
    )


def test_before_the_first_copy_the_counts_are_zero_and_not_unknown() -> None:
    log = FakeLog()

    assert observe(feeds_on(log), mirroring(), START_S).mirror == MirrorStatus()
    log.blind = True
    assert feeds_on(log).observe(mirroring(), None, START_S) is None


def test_counts_survive_a_restart() -> None:
    log = FakeLog()
    for one in (COPY, FAILED):
        log.append(one)
    feeds, state = feeds_on(log), mirroring()
    before = observe(feeds, state, START_S)
    saved = feeds.snapshot(state.id)
    log.append(COPY)
    after = observe(feeds_on(log, saved), state, START_S)

    assert before.mirror == MirrorStatus(1, 1, 1, "status 500")
    assert after.mirror == MirrorStatus(2, 1, 2, "status 500")


@pytest.mark.slow
def test_live_evidence_is_the_same_with_copies_in_the_log_and_without() -> None:
    plain, mixed = FakeLog(), FakeLog()
    traffic(plain, 600)
    for event in plain.events:
        mixed.append(event)
        mixed.append(FAILED)
    mixed.watermark_s = plain.watermark_s
    now_s = START_S + 3600
    alone, beside = (observe(feeds_on(log), in_stage(), now_s) for log in (plain, mixed))

    assert n_of(alone, "error") == n_of(beside, "error")
    assert alone == beside
    assert beside.mirror is None
