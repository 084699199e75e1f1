"""Mirrored copies in the records log: counted for their phase, and evidence of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.evidence.records import GateConfig
from controller.evidence.snapshot import envelope_of, stored_feed
from controller.rollout.judge_plan import JudgeState
from controller.rollout.observation import EvidenceStatus, MirrorStatus
from controller.rollout.plan import MirrorPlan
from controller.rollout.state import Phase, RolloutState
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from serving.judge_messages import JudgeRecord
from serving.messages import MirrorRecord
from tests.fakes.feed_maker import START_S, a_record, feeds_on, in_stage, n_of, observe, traffic
from tests.fakes.judged import a_verdict, admitted, refused
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


# --- judged pairs


DEFAULT = GatePolicy.default().only("quality")
PAIRS_CONFIG = GateConfig(
    replace(DEFAULT, gates=tuple(replace(gate, mirrored=True) for gate in DEFAULT.gates)),
    (StagePlan(0.1, 50),),
    "quality",
)
EXAMINED = JudgeState(1, admitted())


def judged_pair(
    n: int, pair: tuple[bool | None, bool | None], cause: str | None = None, **more: str
) -> JudgeRecord:
    verdict = a_verdict(f"q{n}", None, at_s=START_S + n + 2.0, cause=cause)
    return replace(verdict, pair=pair, unit=f"u{n}", assigned_at_s=START_S + n, **more)  # type: ignore[arg-type]


def pairs_of(
    *verdicts: JudgeRecord, state: RolloutState | None = None, saved: bytes | None = None
) -> EvidenceStatus:
    log = FakeLog()
    for one in verdicts:
        log.append(one)
    now_s = START_S + 10_000.0
    return observe(feeds_on(log, saved, PAIRS_CONFIG), state or replace(mirroring(), judge=EXAMINED), now_s)


def test_pairs_of_the_rollouts_own_judge_are_judged() -> None:
    good = [judged_pair(n, (False, False)) for n in range(5)]
    others = [
        judged_pair(6, (False, True), revision="another"),
        judged_pair(7, (False, True), rollout="r-other"),
    ]
    missing = judged_pair(8, (False, None), "timeout")
    mirror = pairs_of(*good, *others, missing, judged_pair(9, (True, True))).mirror

    assert mirror == MirrorStatus(judged=6, wrong=(1, 1), missing=(0, 1))


def test_harm_in_pairs_is_a_rollback_while_mirroring_and_after_it() -> None:
    bad = [judged_pair(n, (False, True)) for n in range(40)]
    status = pairs_of(*bad)
    assert status.rollback is not None
    assert (status.rollback.gate, status.rollback.n_canary) == ("quality", 40)
    assert status.verdict is Verdict.UNDECIDED

    later = pairs_of(*bad, state=replace(in_stage(), judge=EXAMINED))  # verdicts that came after the phase
    assert later.rollback is not None
    assert later.mirror is None


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (JudgeState(1, refused()), "the judge was refused"),
        (
            JudgeState(1, admitted(), drift="the judge drifted: x"),
            "the judge drifted: x; its verdicts are void",
        ),
        (JudgeState(), "the judge is being examined"),
    ],
)
def test_pairs_say_nothing_while_the_judge_may_not_vote(judge: JudgeState, words: str) -> None:
    bad = [judged_pair(n, (False, True)) for n in range(40)]
    status = pairs_of(*bad, state=replace(mirroring(), judge=judge))

    assert status.rollback is None
    assert status.mirror is not None
    assert status.mirror.void is not None
    assert words in status.mirror.void


def test_too_many_without_a_verdict_are_no_evidence_either() -> None:
    bad = [judged_pair(n, (False, True)) for n in range(40)]
    status = pairs_of(*bad, *(judged_pair(n, (None, None), "no judge") for n in range(40, 80)))

    assert status.rollback is None
    assert status.mirror is not None
    assert status.mirror.void is not None
    assert "NOT JUDGED: 50% of the last 80 sampled answers of stable" in status.mirror.void


def test_judged_pairs_survive_a_restart_and_an_older_snapshot_has_none() -> None:
    log, state = FakeLog(), replace(mirroring(), judge=EXAMINED)
    for n in range(30):
        log.append(judged_pair(n, (False, bool(n % 3))))
    feeds = feeds_on(log, None, PAIRS_CONFIG)
    before = observe(feeds, state, START_S + 60.0)
    saved = feeds.snapshot(state.id)
    assert saved is not None
    after = observe(feeds_on(log, saved, PAIRS_CONFIG), state, START_S + 10_000.0)
    whole = observe(feeds_on(log, None, PAIRS_CONFIG), state, START_S + 10_000.0)

    assert before.mirror == MirrorStatus()
    assert after == whole
    assert after.mirror is not None
    assert after.mirror.judged == 30

    feed = stored_feed(saved)
    del feed["mirror"]["verdicts"]
    older = observe(feeds_on(log, envelope_of(None, feed), PAIRS_CONFIG), state, START_S + 10_000.0)
    assert older.mirror == MirrorStatus()


def test_pairs_are_no_part_of_the_live_gates() -> None:
    plain, mixed = FakeLog(), FakeLog()
    traffic(plain, 300)
    for n, event in enumerate(plain.events):
        mixed.append(event)
        mixed.append(judged_pair(n, (True, False)))
    mixed.watermark_s = plain.watermark_s
    now_s, state = START_S + 3600, replace(in_stage(), judge=EXAMINED)
    alone, beside = (observe(feeds_on(log, None, PAIRS_CONFIG), state, now_s) for log in (plain, mixed))

    assert alone.gates == beside.gates
