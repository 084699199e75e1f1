"""Segment alarms: harm to one kind of request is named, published once, kept, and decides nothing."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest

from controller.cli.render import rollout_parts
from controller.evidence.records import GateConfig
from controller.evidence.segment_alarms import RolloutSegmentAlarms, segments_of
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
    a_record,
    a_score,
    feeds_on,
    in_stage,
    observe,
)
from tests.fakes.plane import FakeLog

LONG = "requests of 256 KiB and more"
ALARM = Alarm("quality", LONG, f"quality more than 0.025 below stable in {LONG}", 412, START_S)


@cache
def log_with_harm_to_long_requests(count: int = 2400, *, accuracy: float = 0.2) -> FakeLog:
    """One request in twenty is long, and the canary answers a share of `accuracy` of them correctly.

    One log for all tests, which read it and append nothing.
    """
    rng, log = random.Random(7), FakeLog()
    for n in range(count):
        arm, is_long = int(rng.random() < 0.5), n % 20 == 0
        log.append(a_record(n, arm=arm, w=0.5, body_bytes=400_000 if is_long else 3_000))
        share = accuracy if arm and is_long else 0.97
        log.append(a_score(f"a{n}", float(rng.random() < share), at_s=START_S + 0.1 * n + 0.06))
    log.watermark_s = START_S + 0.1 * count
    return log


@cache
def read_to_its_end() -> tuple[EvidenceStatus, bytes]:
    """What feeds on the whole log say at its end, and their snapshot: what any restart must lead to."""
    feeds = feeds_on(log_with_harm_to_long_requests())
    evidence, saved = observe(feeds, in_stage(), START_S + 1000), feeds.snapshot(ROLLOUT)
    assert saved is not None
    return evidence, saved


def alarm_names(evidence: EvidenceStatus) -> list[tuple[str, str]]:
    return [(alarm.gate, alarm.segment) for alarm in evidence.alarms]


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
def test_a_request_has_a_segment_of_its_endpoint_and_of_its_length(size: int, segment: str) -> None:
    assert segments_of(a_record(1, body_bytes=size)) == ("endpoint /v1/chat/completions", segment)


def test_a_record_of_an_older_router_has_only_the_endpoint_segment() -> None:
    assert segments_of(a_record(1, body_bytes=None)) == ("endpoint /v1/chat/completions",)


@pytest.mark.slow
def test_harm_hidden_by_the_mean_raises_an_alarm_and_decides_nothing() -> None:
    evidence, _ = read_to_its_end()

    assert alarm_names(evidence) == [("quality", LONG)]
    assert (evidence.rollback, evidence.verdict is Verdict.FAIL) == (None, False)


@pytest.mark.slow
def test_a_harmless_canary_raises_no_alarm() -> None:
    evidence = observe(feeds_on(log_with_harm_to_long_requests(accuracy=0.97)), in_stage(), START_S + 1000)

    assert evidence.alarms == ()


@pytest.mark.slow
def test_a_unit_counts_once_in_the_segment_of_its_first_request() -> None:
    log = FakeLog()
    for n in range(2000):  # one user in forty is on the canary, fails, and sends request after request
        user = n % 40
        log.append(
            a_record(n, arm=int(user == 0), w=0.025, assigned_by="sticky", unit=f"u{user}", error=user == 0)
        )
    log.watermark_s = START_S + 1000

    assert observe(feeds_on(log), in_stage(), START_S + 1000).alarms == ()


@pytest.mark.slow
def test_requests_assigned_during_an_overload_raise_no_latency_alarm() -> None:
    alarms = []
    for is_over in (False, True):
        rng, log = random.Random(1), FakeLog()
        for n in range(600):
            slower = 3.0 if n % 2 and n > 200 else 1.0
            log.append(a_record(n, arm=n % 2, w=0.5, latency_ms=slower * rng.lognormvariate(4.0, 0.4)))
        feeds = feeds_on(log)
        observe(feeds, in_stage(), START_S + 10)
        feed = feeds._feeds[ROLLOUT]
        assert feed._evaluator is not None
        feed._evaluator.set_current_load(2.0 if is_over else 1.0, since_s=START_S + 20, at_s=START_S + 70)
        log.watermark_s = START_S + 100
        alarms.append({alarm.gate for alarm in observe(feeds, in_stage(), START_S + 100).alarms})

    assert alarms == [{"latency_shape"}, set()]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "not declared"])
@pytest.mark.slow
def test_arms_sampled_at_different_rates_raise_no_alarm_when_the_rates_are_declared(declared: bool) -> None:
    gates = [gate for gate in GatePolicy.default().gates if gate.metric == "hallucinated"]
    rates = Sampling(0.1, 1.0) if declared else Sampling()
    policy = replace(GatePolicy.default(), gates=tuple(replace(gate, sampling=rates) for gate in gates))
    rng, log = random.Random(2), FakeLog()
    for n in range(6000):  # the canary's answers are all judged, one in ten of stable's
        arm = int(rng.random() < 0.2)
        log.append(a_record(n, arm=arm, w=0.2))
        if arm or rng.random() < 0.1:
            at_s = START_S + 0.1 * n + 0.06
            log.append(a_score(f"a{n}", float(rng.random() < 0.05), metric="hallucinated", at_s=at_s))
    log.watermark_s = START_S + 10_000
    config = GateConfig(policy, (StagePlan(0.2, 50),))
    feeds = feeds_on(log, config=config)

    assert bool(observe(feeds, in_stage(), START_S + 10_000).alarms) is not declared


@pytest.mark.slow
def test_no_alarm_is_raised_during_a_sample_ratio_mismatch() -> None:
    feeds = feeds_on(log_with_harm_to_long_requests())
    observe(feeds, in_stage(), START_S + 1000)
    segments = feeds._feeds[ROLLOUT]._segments
    segments._raised.clear()

    assert segments.raised(frozen=True) == ()
    assert [alarm.segment for alarm in segments.raised(frozen=False)] == [LONG]


@pytest.mark.slow
def test_endpoints_beyond_the_limit_share_one_segment() -> None:
    log = FakeLog()
    for n in range(700):
        log.append(a_record(n, arm=n % 2, w=0.5, path=f"/{n}"))
    log.watermark_s = START_S + 1000
    feeds = feeds_on(log)
    observe(feeds, in_stage(), START_S + 1000)
    alarms = feeds._feeds[ROLLOUT]._segments._gates["error"][1]

    assert (len(alarms.segments), alarms.segments[-1]) == (257, "(others)")


# --- after a restart


def without(saved: bytes | None, *names: str) -> bytes:
    """What an older canaryctl would have written: a snapshot that lacks these."""
    envelope = json.loads(saved or b"")
    feed: Mapping[str, object] = {k: v for k, v in envelope["feed"].items() if k not in names}
    return json.dumps({**envelope, "feed": feed}).encode()


@pytest.mark.parametrize("crash_at", [600, 2501, 4799])
@pytest.mark.slow
def test_a_restart_does_not_change_the_alarms(crash_at: int) -> None:
    log = log_with_harm_to_long_requests()
    expected, saved = read_to_its_end()

    crash_s = START_S + 0.05 * crash_at
    before = feeds_on(FakeLog(log.events[:crash_at], watermark_s=crash_s - 10))
    observe(before, in_stage(), crash_s)
    after = feeds_on(log, before.snapshot(ROLLOUT))

    assert observe(after, in_stage(), START_S + 1000).alarms == expected.alarms != ()
    assert after.snapshot(ROLLOUT) == saved


@pytest.mark.slow
def test_a_raised_alarm_survives_a_restart_without_new_events() -> None:
    expected, saved = read_to_its_end()
    after = feeds_on(log_with_harm_to_long_requests(), saved)

    assert observe(after, in_stage(), START_S + 1000) == expected


@pytest.mark.slow
def test_a_snapshot_without_segments_restores_and_starts_them_empty() -> None:
    log = log_with_harm_to_long_requests()
    before = feeds_on(FakeLog(log.events[:1000], watermark_s=START_S + 40))
    observe(before, in_stage(), START_S + 50)
    older = without(before.snapshot(ROLLOUT), "segments", "weight_bp", "alike_at_s", "served", "load")

    evidence = observe(feeds_on(log, older), in_stage(), START_S + 1000)
    whole, _ = read_to_its_end()

    assert replace(evidence, alarms=()) == replace(whole, alarms=())
    assert alarm_names(evidence) == [("quality", LONG)]


@pytest.mark.slow
def test_unreadable_segments_start_again_and_raised_alarms_stay() -> None:
    expected, saved = read_to_its_end()
    envelope = json.loads(saved)
    broken = base64.b64encode(b'{"format": 99}').decode()
    envelope["feed"]["segments"]["gates"] = {"quality": broken, "error": broken}

    log = log_with_harm_to_long_requests()
    evidence = observe(feeds_on(log, json.dumps(envelope).encode()), in_stage(), START_S + 1000)

    assert evidence == expected


@pytest.mark.slow
def test_unsettled_requests_keep_their_segments_across_a_restart() -> None:
    log = FakeLog(watermark_s=START_S)
    for n in range(1600):
        is_long = n % 20 < 2
        log.append(a_record(n, arm=n % 2, w=0.5, body_bytes=400_000 if is_long else 3_000,
                            error=bool(is_long and n % 2)))  # fmt: skip
    before = feeds_on(log)
    observe(before, in_stage(), START_S + 2000)
    after = feeds_on(log, before.snapshot(ROLLOUT))
    log.watermark_s = START_S + 2000

    assert ("error", LONG) in alarm_names(observe(after, in_stage(), START_S + 2010))


@pytest.mark.slow
def test_segments_are_forgotten_once_their_requests_have_settled() -> None:
    log = replace(log_with_harm_to_long_requests(200))  # its watermark moves
    feeds = feeds_on(log)
    observe(feeds, in_stage(), START_S + 10)
    counts = [len(feeds._feeds[ROLLOUT]._segments._requests)]
    log.watermark_s = START_S + 5000
    observe(feeds, in_stage(), START_S + 5000)
    counts.append(len(feeds._feeds[ROLLOUT]._segments._requests))

    assert counts == [200, 0]


@pytest.mark.slow
def test_memory_is_bounded_while_nothing_settles() -> None:
    segments = RolloutSegmentAlarms(CONFIG.policy)
    for n in range(200_010):
        segments._requests[str(n)] = (n, START_S, ())
    segments.remember(a_record(1))

    assert len(segments._requests) == 200_000


# --- published


def test_an_alarm_is_published_once_and_moves_nothing() -> None:
    state = replace(in_stage(), launched=True)
    observation = Observation(
        now_s=START_S + 5,
        split=None,
        versions=None,
        evidence=EvidenceStatus(0, Verdict.UNDECIDED, alarms=(ALARM,)),
    )
    first, actions = step(state, observation)
    second, _ = step(state_from_json(state_to_json(first)), replace(observation, now_s=START_S + 6))

    lines = [line.text for line in second.log if "alarm" in line.text]
    assert lines == [f"chat: alarm, not deciding: {ALARM.text}"]
    assert [(notice.severity, notice.text) for notice in second.outbox] == [("info", lines[0])]
    assert (second.phase, second.stage, second.weight_bp, second.holds) == (
        Phase.STAGE,
        0,
        state.weight_bp,
        (),
    )
    assert [action.kind for action in actions if action.kind == "notify"] == ["notify"]


def test_an_alarm_is_shown_by_status_and_in_the_view() -> None:
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, alarms=(ALARM,), notes=("stable is slower",))
    view = rollout_view(in_stage(), evidence)
    lines = [str(part) for part in rollout_parts(view, is_wide=False)]

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


@pytest.mark.slow
def test_a_metric_without_a_gate_raises_one_alarm_and_decides_nothing() -> None:
    rng, log = random.Random(3), FakeLog()
    for n in range(2000):
        arm = int(rng.random() < 0.5)
        log.append(replace(a_record(n, arm=arm, w=0.5), completion_tokens=900 if arm else 100 + n % 7))
    log.watermark_s = START_S + 200.0

    evidence = observe(feeds_on(log), in_stage(1), START_S + 1000)

    assert alarm_names(evidence) == [("tokens_alarm", "all requests")]
    text = evidence.alarms[0].text
    assert text == ("tokens 900 an answer beside 103: 8.74x, limit 1.2x; above 1.1x shown by first requests")
    assert evidence.rollback is None
