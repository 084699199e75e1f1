"""A canary that lost a replica in the middle of a stage is not blamed for what its neighbours carry."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from controller.evidence.live_load import LiveLoad
from controller.rollout.observation import EvidenceStatus, VersionPhase, VersionStatus
from controller.rollout.state import RolloutState
from evaluation.report import Verdict
from tests.fakes.feed_maker import ROLLOUT, START_S, a_record, feeds_on, in_stage, look, n_of
from tests.fakes.plane import FakeLog

LOST_S, SEEN_S, BACK_S, END_S = 60, 64, 130, 200  # seconds of the stage; a lost replica is seen after 4


class Fleet:
    """How many replicas of each arm are ready, as the controller sees it; None: it cannot be read."""

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


def lived(
    seen: tuple[int, int] | None,
    *,
    before: tuple[int, int] | None = (2, 2),
    restart_s: int = 0,
    seed: int = 5,
) -> EvidenceStatus:
    """A stage at 50 %, ten requests a second; the canary is half as fast from 60 s to 130 s.

    seen: the replicas that the controller sees from 64 s to 130 s; before: and else.
    """
    dice, log, state = random.Random(5), FakeLog(), in_stage(1)
    fleet = Fleet(state)
    feeds = feeds_on(log)
    for second in range(1, END_S + 1):
        for n in range(10 * second - 10, 10 * second):
            arm, is_slow = n % 2, LOST_S <= n / 10 < BACK_S
            latency_ms = dice.lognormvariate(4.0, 0.4) * (2.0 if arm and is_slow else 1.0)
            log.append(a_record(n, arm=arm, w=0.5, latency_ms=latency_ms))
        log.watermark_s = START_S + second
        fleet.ready = seen if SEEN_S <= second < BACK_S else before
        if second == restart_s:
            saved = feeds.snapshot(ROLLOUT)
            feeds = feeds_on(log, saved)
        look(feeds, state, START_S + second, fleet())
    fleet.ready = before
    return look(feeds, state, START_S + END_S + 100, fleet())


def is_blamed(sight: EvidenceStatus) -> bool:
    return sight.rollback is not None and sight.rollback.metric == "latency_ms"


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("seen", "blamed"),
    [((2, 1), False), ((2, 0), False), ((2, 2), True), ((1, 2), True), (None, True)],
    ids=["canary lost one", "canary lost both", "none was lost", "stable lost one", "unknown"],
)
def test_slower_under_more_load_is_not_harm_and_under_less_it_is(
    seen: tuple[int, int] | None, blamed: bool
) -> None:
    assert is_blamed(lived(seen, before=(2, 2) if seen else None)) is blamed


@pytest.mark.calibration
@pytest.mark.parametrize("restart_s", [0, 62, 64, 100, 129, 131])
def test_what_was_assigned_before_the_loss_was_seen_is_left_out_too(restart_s: int) -> None:
    sight = lived((2, 1), restart_s=restart_s)
    settled_s = SEEN_S - 1 - 5  # at the last look that found the loads alike

    left = END_S - (BACK_S - settled_s)
    assert n_of(sight, "latency_ms") == (5 * left, 5 * left)
    assert n_of(sight, "error") == (5 * END_S, 5 * END_S)


def test_an_overload_is_said_while_it_lasts() -> None:
    log, state = FakeLog(), in_stage(1)
    for n in range(100):
        log.append(a_record(n, arm=n % 2, w=0.5))
    log.watermark_s = START_S + 100
    fleet = Fleet(state)
    feeds = feeds_on(log)
    told = []
    for second, ready in ((101, (2, 2)), (102, (2, 1)), (103, (2, 2))):
        fleet.ready = ready
        sight = look(feeds, state, START_S + second, fleet())
        told.append([g.reason for g in sight.gates if g.gate == "latency_shape" and g.side == "promotion"])

    assert told[1] == ["not comparable: canary load 2.0x stable's"]
    assert told[0] == told[2] != told[1]


def test_the_load_of_a_stage_is_that_of_the_units_that_count() -> None:
    sight = lived((2, 1))
    shape = [g for g in sight.gates if g.gate == "latency_shape" and g.side == "promotion"]

    assert [gate.verdict for gate in shape] == [Verdict.PASS]


def test_a_weight_of_all_or_nothing_compares_no_loads() -> None:
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


def test_another_weight_is_counted_anew() -> None:
    log, state = FakeLog(), in_stage(1)
    for n in range(2000):  # stable serves three in four, whatever was drawn
        log.append(a_record(n, arm=n % 2, w=0.5, served_arm=0 if n % 4 == 1 else n % 2))
    log.watermark_s = START_S + 1000
    fleet = Fleet(state)
    fleet.ready = (1, 1)
    feeds = feeds_on(log)
    reasons = []
    for now in (state, replace(state, weight_bp=5500, acked_at_s=START_S + 1000)):
        sight = look(feeds, now, START_S + 2000, fleet())
        reasons += [g.reason for g in sight.gates if g.gate == "latency_shape" and g.side == "promotion"]

    assert [reason.startswith("not comparable: canary load 0.3x") for reason in reasons] == [True, False]
