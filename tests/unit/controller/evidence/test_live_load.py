"""Live load: a canary that loses a replica in mid-stage is not rolled back for the load of the others."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from controller.evidence.live_load import LiveLoad
from controller.rollout.observation import EvidenceStatus, VersionPhase, VersionStatus
from controller.rollout.state import RolloutState
from evaluation.report import Verdict
from tests.fakes.feed_maker import ROLLOUT, START_S, a_record, feeds_on, in_stage, n_of, observe
from tests.fakes.plane import FakeLog

LOST_S, NOTICED_S, BACK_S, END_S = 60, 64, 130, 200  # seconds of the stage; a loss is noticed after 4


class Fleet:
    """Ready replicas of each arm, as the controller observes them; None: the fleet cannot be read."""

    def __init__(self, state: RolloutState) -> None:
        self._state = state
        self.ready: tuple[int, int] | None = (2, 2)

    def __call__(self) -> tuple[VersionStatus, ...] | None:
        if self.ready is None:
            return None
        names = (self._state.stable.id, self._state.canary.id)
        return tuple(
            VersionStatus(name, VersionPhase.READY, ready, 0)
            for name, ready in zip(names, self.ready, strict=True)
        )


def run_stage(
    ready: tuple[int, int] | None,
    *,
    otherwise: tuple[int, int] | None = (2, 2),
    restart_s: int = 0,
) -> EvidenceStatus:
    """A stage at 50 %, ten requests a second; the canary is half as fast from 60 s to 130 s.

    ready: replicas as the controller observes them from 64 s to 130 s; otherwise: at other times.
    """
    rng, log, state = random.Random(5), FakeLog(), in_stage(1)
    fleet = Fleet(state)
    feeds = feeds_on(log)
    for second in range(1, END_S + 1):
        for n in range(10 * second - 10, 10 * second):
            arm, is_slow = n % 2, LOST_S <= n / 10 < BACK_S
            latency_ms = rng.lognormvariate(4.0, 0.4) * (2.0 if arm and is_slow else 1.0)
            log.append(a_record(n, arm=arm, w=0.5, latency_ms=latency_ms))
        log.watermark_s = START_S + second
        fleet.ready = ready if NOTICED_S <= second < BACK_S else otherwise
        if second == restart_s:
            saved = feeds.snapshot(ROLLOUT)
            feeds = feeds_on(log, saved)
        observe(feeds, state, START_S + second, fleet())
    fleet.ready = otherwise
    return observe(feeds, state, START_S + END_S + 100, fleet())


def is_rolled_back(evidence: EvidenceStatus) -> bool:
    return evidence.rollback is not None and evidence.rollback.metric == "latency_ms"


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("ready", "is_harm"),
    [((2, 1), False), ((2, 0), False), ((2, 2), True), ((1, 2), True), (None, True)],
    ids=["canary lost one", "canary lost both", "no loss noticed", "stable lost one", "unknown"],
)
def test_higher_latency_is_harm_only_without_higher_load(
    ready: tuple[int, int] | None, is_harm: bool
) -> None:
    assert is_rolled_back(run_stage(ready, otherwise=(2, 2) if ready else None)) is is_harm


@pytest.mark.calibration
@pytest.mark.parametrize("restart_s", [0, 62, 64, 100, 129, 131])
def test_requests_assigned_before_the_loss_was_noticed_are_left_out_too(restart_s: int) -> None:
    evidence = run_stage((2, 1), restart_s=restart_s)
    settled_s = NOTICED_S - 1 - 5  # at the last reading that found the load balanced

    left = END_S - (BACK_S - settled_s)
    assert n_of(evidence, "latency_ms") == (5 * left, 5 * left)
    assert n_of(evidence, "error") == (5 * END_S, 5 * END_S)


def test_an_overload_is_reported_while_it_lasts() -> None:
    log, state = FakeLog(), in_stage(1)
    for n in range(100):
        log.append(a_record(n, arm=n % 2, w=0.5))
    log.watermark_s = START_S + 100
    fleet = Fleet(state)
    feeds = feeds_on(log)
    reasons = []
    for second, ready in ((101, (2, 2)), (102, (2, 1)), (103, (2, 2))):
        fleet.ready = ready
        evidence = observe(feeds, state, START_S + second, fleet())
        shape = [g for g in evidence.gates if g.gate == "latency_shape" and g.side == "promotion"]
        reasons.append([gate.reason for gate in shape])

    assert reasons[1] == ["not comparable: canary load 2.0x stable's"]
    assert reasons[0] == reasons[2] != reasons[1]


@pytest.mark.calibration
def test_the_load_of_a_stage_is_that_of_the_units_that_count() -> None:
    evidence = run_stage((2, 1))
    shape = [g for g in evidence.gates if g.gate == "latency_shape" and g.side == "promotion"]

    assert [gate.verdict for gate in shape] == [Verdict.PASS]


def test_weights_of_0_and_100_percent_compare_no_loads() -> None:
    for weight_bp in (0, 10_000):
        load = LiveLoad(1.25)
        load.set_weight(weight_bp, START_S)
        load.note_ready(2, 1, START_S)

        assert not load._is_over()


def test_a_single_replica_delays_no_evidence() -> None:
    through = []
    for canary in (1, 2):
        load = LiveLoad(1.25)
        load.note_ready(2, canary, START_S)
        through.append(load.settle_through_s(START_S, START_S) - START_S)

    assert through == [0.0, -5.0]


@pytest.mark.slow
def test_a_new_weight_starts_the_load_count_anew() -> None:
    log, state = FakeLog(), in_stage(1)
    for n in range(2000):  # stable serves three in four, whichever arm was drawn
        log.append(a_record(n, arm=n % 2, w=0.5, served_arm=0 if n % 4 == 1 else n % 2))
    log.watermark_s = START_S + 1000
    fleet = Fleet(state)
    fleet.ready = (1, 1)
    feeds = feeds_on(log)
    reasons = []
    for now in (state, replace(state, weight_bp=5500, acked_at_s=START_S + 1000)):
        evidence = observe(feeds, now, START_S + 2000, fleet())
        reasons += [g.reason for g in evidence.gates if g.gate == "latency_shape" and g.side == "promotion"]

    assert [reason.startswith("not comparable: canary load 0.3x") for reason in reasons] == [True, False]
