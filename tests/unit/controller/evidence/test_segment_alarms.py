"""Harm to one kind of request is named, told once, kept over a restart, and decides nothing."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from controller.cli.render import rollout_parts
from controller.evidence.feed import EvidenceFeeds, GateConfig
from controller.evidence.segment_alarms import SegmentFeed, segments_of
from controller.rollout.machine import step
from controller.rollout.observation import Alarm, EvidenceStatus, Observation
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import Phase
from controller.views.rollout import rollout_view
from evaluation.policy.gates import Sampling, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.fakes.feed_maker import (
    CONFIG,
    ROLLOUT,
    START_S,
    Snapshots,
    a_record,
    a_score,
    feeds_on,
    in_stage,
    look,
)
from tests.fakes.plane import FakeLog

LONG = "requests of 256 KiB and more"
ALARM = Alarm("quality", LONG, f"quality more than 0.025 below stable in {LONG}", 412, START_S)


def harmful_to_long_ones(count: int = 2400, *, right: float = 0.2) -> FakeLog:
    """One request in twenty is long, and the canary is right on those in `right` of cases."""
    dice, log = random.Random(7), FakeLog()
    for n in range(count):
        arm, is_long = int(dice.random() < 0.5), n % 20 == 0
        log.append(a_record(n, arm=arm, w=0.5, body_bytes=400_000 if is_long else 3_000))
        share = right if arm and is_long else 0.97
        log.append(a_score(f"a{n}", float(dice.random() < share), at_s=START_S + 0.1 * n + 0.06))
    log.watermark_s = START_S + 0.1 * count
    return log


def named(sight: EvidenceStatus) -> list[tuple[str, str]]:
    return [(alarm.gate, alarm.segment) for alarm in sight.alarms]


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (0, "requests of 0-1 KiB"),
        (1023, "requests of 0-1 KiB"),
        (1024, "requests of 1-4 KiB"),
        (262_143, "requests of 64-256 KiB"),
        (262_144, LONG),
    ],
)
def test_a_request_is_of_its_endpoint_and_of_its_length(size: int, segment: str) -> None:
    assert segments_of(a_record(1, body_bytes=size)) == ("endpoint /v1/chat/completions", segment)


def test_a_record_of_an_older_router_is_of_its_endpoint_alone() -> None:
    assert segments_of(a_record(1, body_bytes=None)) == ("endpoint /v1/chat/completions",)


def test_harm_that_the_mean_hides_is_named_and_decides_nothing() -> None:
    sight = look(feeds_on(harmful_to_long_ones()), in_stage(), START_S + 1000)

    assert named(sight) == [("quality", LONG)]
    assert (sight.rollback, sight.verdict is Verdict.FAIL) == (None, False)


def test_a_harmless_canary_raises_no_alarm() -> None:
    sight = look(feeds_on(harmful_to_long_ones(right=0.97)), in_stage(), START_S + 1000)

    assert sight.alarms == ()


def test_a_unit_counts_once_in_the_segment_of_its_first_request() -> None:
    log = FakeLog()
    for n in range(2000):  # one user in forty is on the canary, fails, and asks again and again
        user = n % 40
        log.append(
            a_record(n, arm=int(user == 0), w=0.025, assigned_by="sticky", unit=f"u{user}", error=user == 0)
        )
    log.watermark_s = START_S + 1000

    assert look(feeds_on(log), in_stage(), START_S + 1000).alarms == ()


def test_what_was_assigned_in_an_overload_rings_no_alarm_of_latency() -> None:
    rung = []
    for is_over in (False, True):
        dice, log = random.Random(1), FakeLog()
        for n in range(600):
            slower = 3.0 if n % 2 and n > 200 else 1.0
            log.append(a_record(n, arm=n % 2, w=0.5, latency_ms=slower * dice.lognormvariate(4.0, 0.4)))
        feeds = feeds_on(log)
        look(feeds, in_stage(), START_S + 10)
        feed = feeds._feeds[ROLLOUT]
        assert feed._evaluator is not None
        feed._evaluator.set_current_load(2.0 if is_over else 1.0, since_s=START_S + 20, at_s=START_S + 70)
        log.watermark_s = START_S + 100
        rung.append({alarm.gate for alarm in look(feeds, in_stage(), START_S + 100).alarms})

    assert rung == [{"latency_shape"}, set()]


@pytest.mark.parametrize("told", [True, False], ids=["sampling told", "sampling not told"])
def test_arms_judged_at_different_rates_are_bet_at_their_own_coin(told: bool) -> None:
    gates = [gate for gate in GatePolicy.default().gates if gate.metric == "hallucinated"]
    rates = Sampling(0.1, 1.0) if told else Sampling()
    policy = replace(GatePolicy.default(), gates=tuple(replace(gate, sampling=rates) for gate in gates))
    dice, log = random.Random(2), FakeLog()
    for n in range(6000):  # the canary's answers are all judged, one in ten of stable's
        arm = int(dice.random() < 0.2)
        log.append(a_record(n, arm=arm, w=0.2))
        if arm or dice.random() < 0.1:
            at_s = START_S + 0.1 * n + 0.06
            log.append(a_score(f"a{n}", float(dice.random() < 0.05), metric="hallucinated", at_s=at_s))
    log.watermark_s = START_S + 10_000
    config = GateConfig(policy, (StagePlan(0.2, 50),))
    feeds = EvidenceFeeds(log, Snapshots(), lambda rollout: config)

    assert bool(look(feeds, in_stage(), START_S + 10_000).alarms) is not told


def test_nothing_is_raised_while_the_split_does_not_fit_its_weight() -> None:
    feeds = feeds_on(harmful_to_long_ones())
    look(feeds, in_stage(), START_S + 1000)
    segments = feeds._feeds[ROLLOUT]._segments
    segments._raised.clear()

    assert segments.raised(frozen=True) == ()
    assert [alarm.segment for alarm in segments.raised(frozen=False)] == [LONG]


def test_random_endpoints_share_one_segment_beyond_the_limit() -> None:
    log = FakeLog()
    for n in range(700):
        log.append(a_record(n, arm=n % 2, w=0.5, path=f"/{n}"))
    log.watermark_s = START_S + 1000
    feeds = feeds_on(log)
    look(feeds, in_stage(), START_S + 1000)
    alarms = feeds._feeds[ROLLOUT]._segments._gates["error"][1]

    assert (len(alarms.segments), alarms.segments[-1]) == (257, "(others)")


# --- after a restart


def without(saved: bytes | None, *names: str) -> bytes:
    """What an older canaryctl would have written: a snapshot that lacks these."""
    envelope = json.loads(saved or b"")
    feed: Mapping[str, object] = {k: v for k, v in envelope["feed"].items() if k not in names}
    return json.dumps({**envelope, "feed": feed}).encode()


@pytest.mark.parametrize("crash_at", [600, 2501, 4799])
def test_alarms_go_on_after_a_restart_as_if_there_had_been_none(crash_at: int) -> None:
    log = harmful_to_long_ones()
    whole = feeds_on(log)
    expected = look(whole, in_stage(), START_S + 1000)

    crash_s = START_S + 0.05 * crash_at
    before = feeds_on(FakeLog(log.events[:crash_at], watermark_s=crash_s - 10))
    look(before, in_stage(), crash_s)
    after = feeds_on(log, before.snapshot(ROLLOUT))

    assert look(after, in_stage(), START_S + 1000).alarms == expected.alarms != ()
    assert after.snapshot(ROLLOUT) == whole.snapshot(ROLLOUT)


def test_an_alarm_that_was_raised_is_there_after_a_restart_with_nothing_new() -> None:
    log = harmful_to_long_ones()
    before = feeds_on(log)
    expected = look(before, in_stage(), START_S + 1000)

    assert look(feeds_on(log, before.snapshot(ROLLOUT)), in_stage(), START_S + 1000) == expected


def test_a_snapshot_from_before_the_segments_goes_on_and_they_begin() -> None:
    log = harmful_to_long_ones()
    before = feeds_on(FakeLog(log.events[:1000], watermark_s=START_S + 40))
    look(before, in_stage(), START_S + 50)
    older = without(before.snapshot(ROLLOUT), "segments", "weight_bp", "alike_at_s", "served", "load")

    sight = look(feeds_on(log, older), in_stage(), START_S + 1000)
    whole = look(feeds_on(log), in_stage(), START_S + 1000)

    assert replace(sight, alarms=()) == replace(whole, alarms=())
    assert named(sight) == [("quality", LONG)]


def test_segments_that_cannot_be_read_start_again_and_what_was_raised_stays() -> None:
    log = harmful_to_long_ones()
    before = feeds_on(log)
    expected = look(before, in_stage(), START_S + 1000)
    envelope = json.loads(before.snapshot(ROLLOUT) or b"")
    broken = base64.b64encode(b'{"format": 99}').decode()
    envelope["feed"]["segments"]["gates"] = {"quality": broken, "error": broken}

    sight = look(feeds_on(log, json.dumps(envelope).encode()), in_stage(), START_S + 1000)

    assert sight == expected


def test_requests_that_wait_long_for_the_watermark_keep_their_segments_over_a_restart() -> None:
    log = FakeLog(watermark_s=START_S)
    for n in range(1600):
        is_long = n % 20 < 2
        log.append(a_record(n, arm=n % 2, w=0.5, body_bytes=400_000 if is_long else 3_000,
                            error=bool(is_long and n % 2)))  # fmt: skip
    before = feeds_on(log)
    look(before, in_stage(), START_S + 2000)
    after = feeds_on(log, before.snapshot(ROLLOUT))
    log.watermark_s = START_S + 2000

    assert ("error", LONG) in named(look(after, in_stage(), START_S + 2010))


def test_labels_are_forgotten_once_their_requests_have_settled() -> None:
    log = harmful_to_long_ones(200)
    feeds = feeds_on(log)
    look(feeds, in_stage(), START_S + 10)
    kept = [len(feeds._feeds[ROLLOUT]._segments._labels)]
    log.watermark_s = START_S + 5000
    look(feeds, in_stage(), START_S + 5000)
    kept.append(len(feeds._feeds[ROLLOUT]._segments._labels))

    assert kept == [200, 0]


def test_memory_is_bounded_where_nothing_settles() -> None:
    segments = SegmentFeed(CONFIG.policy)
    for n in range(200_010):
        segments._labels[str(n)] = (n, START_S, ())
    segments.note(a_record(1))

    assert len(segments._labels) == 200_000


# --- told


def test_an_alarm_is_told_once_and_moves_nothing() -> None:
    state = replace(in_stage(), launched=True)
    seen = Observation(
        now_s=START_S + 5,
        split=None,
        versions=None,
        evidence=EvidenceStatus(0, Verdict.UNDECIDED, alarms=(ALARM,)),
    )
    told, actions = step(state, seen)
    again, _ = step(state_from_json(state_to_json(told)), replace(seen, now_s=START_S + 6))

    lines = [line.text for line in again.log if "alarm" in line.text]
    assert lines == [f"chat: alarm, not deciding: {ALARM.text}"]
    assert [(notice.severity, notice.text) for notice in again.outbox] == [("info", lines[0])]
    assert (again.phase, again.stage, again.weight_bp, again.holds) == (Phase.STAGE, 0, state.weight_bp, ())
    assert [action.kind for action in actions if action.kind == "notify"] == ["notify"]


def test_an_alarm_is_shown_by_status_and_in_the_view() -> None:
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, alarms=(ALARM,), notes=("stable is slower",))
    view = rollout_view(in_stage(), evidence)
    lines = [str(part) for part in rollout_parts(view, wide=False)]

    assert view.model_dump(mode="json")["alarms"] == [
        {
            "gate": "quality",
            "segment": LONG,
            "text": ALARM.text,
            "canary_requests": 412,
            "at_s": START_S,
        }
    ]
    assert f"alarm, not deciding: {ALARM.text}" in lines
    assert "stable is slower" in lines


def test_a_metric_that_no_gate_asks_about_rings_once_and_decides_nothing() -> None:
    dice, log = random.Random(3), FakeLog()
    for n in range(2000):
        arm = int(dice.random() < 0.5)
        log.append(replace(a_record(n, arm=arm, w=0.5), completion_tokens=900 if arm else 100 + n % 7))
    log.watermark_s = START_S + 200.0

    sight = look(feeds_on(log), in_stage(1), START_S + 1000)

    assert named(sight) == [("tokens_alarm", "all requests")]
    assert sight.alarms[0].text == "tokens above 1.1x shown by first requests"
    assert sight.rollback is None
