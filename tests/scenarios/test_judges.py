"""A rollout with a judge through service loop, reconciler and real store: examined, asked, refused, drifted.

On SQLite alone: what the two databases do alike is asked elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.evidence.feed import EvidenceFeeds
from controller.evidence.reader import RecordsReader
from controller.evidence.records import GateConfig
from controller.rollout.judge_plan import JudgeEngine, JudgeFound
from controller.rollout.machine import begin
from controller.rollout.observation import DataPlaneStatus, EvidenceStatus, VersionPhase
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import HoldKind, Phase, RolloutState
from controller.runtime.newest_database import NewestDatabase
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import ServiceLoop, ServiceWorkers
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.views.rollout import rollout_view
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.report import Verdict
from tests.database_rig import sqlite_url
from tests.fakes.feed_maker import a_record
from tests.fakes.judged import JUDGE, a_verdict, admitted, an_anchor, refused, silent
from tests.fakes.plane import (
    FakeClock,
    FakeFleet,
    FakeIngress,
    FakeJudges,
    FakeLog,
    FakeMarks,
    FakeNotifier,
    FakeProbes,
    FakeTraffic,
)

ROLLOUT = "r-1"
W = 0.5
STAGES = (Stage(5000, 1.0, 100, 40.0, 1),)
PLAN = Plan(
    "medium",
    (),
    STAGES,
    holdback_bp=500,
    bake_s=3.0,
    smoke_s=20.0,
    unreadable_s=20.0,
    steady_s=0.5,
    judge=JUDGE,
)
SAMPLED = {"stable": 1.0, "canary": 1.0}
POLICY = gate_policy_of(
    {
        "base": "default",
        "gates": {
            **dict.fromkeys(("rejected", "latency_p99", "latency_shape", "ttft_shape", "hallucination")),
            "error": {"alpha_share": 0.5},
            "quality": {"alpha_share": 0.5, "deadline_s": 30.0, "sampling": SAMPLED, "required": True},
        },
    }
)
CONFIG = GateConfig(POLICY, (StagePlan(W, 100, {"quality": 0.2, "error": 5.0}),), "quality")
STEP_S = 0.1  # between two requests


class Rig:
    """The service `chat` on `v-1` under one controller; `restart` makes another on the same database."""

    plan, config = PLAN, CONFIG

    def __init__(self, url: str, judges: dict[int, JudgeFound]) -> None:
        self.clock = FakeClock()
        self.store = SqlStore(url, clock=self.clock.boot_s)
        row = VersionRow("chat", "v-1", '{"model": "/m"}', "{}", 1.0)
        self.store.put_service(ServiceRow("chat", "{}", "v-1", "secret", 1.0), row)
        self.store.put_version(VersionRow("chat", "v-2", '{"model": "/m"}', "{}", 1.0))
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.log, self.notifier, self.judges = FakeLog(), FakeNotifier(), FakeJudges(judges)
        lease = self.store.acquire_lease("one", ttl_s=1e6)
        assert lease is not None
        self.token, self.rng, self.count = lease.token, random.Random(5), 0
        self.restart()
        self.tick_until(lambda: "chat" in self.traffic.tables and bool(self.fleet.engines))
        self.settle()
        now_s = self.clock.now_s()
        refs = VersionRef("v-1"), VersionRef("v-2")
        state = begin(ROLLOUT, "chat", stable=refs[0], canary=refs[1], plan=self.plan, now_s=now_s)
        self.store.create_rollout(state, request="{}", at_s=now_s)

    def restart(self) -> None:
        self.loop = ServiceLoop("chat", self.store, self.clock, self._workers, lambda row: 1)

    def _workers(self, _: str) -> ServiceWorkers:
        feeds = EvidenceFeeds(
            RecordsReader("chat", self.log), self.store.evidence, lambda rollout: self.config
        )
        ports = Ports(
            *(self.store, self.fleet, self.traffic, feeds, FakeProbes(), self.notifier, self.clock),
            self.judges,
        )
        keeper = Keeper(self.fleet, self.traffic, FakeIngress(self.traffic), self.store, self.clock)
        marks = FakeMarks(self.traffic)
        newest = NewestDatabase("chat", self.store.database, marks, marks.names)
        return ServiceWorkers(Reconciler(ports), keeper, lambda now_s: None, newest.require)

    @property
    def state(self) -> RolloutState:
        stored = self.store.load(ROLLOUT)
        assert stored is not None
        return stored.state

    @property
    def evidence(self) -> EvidenceStatus:
        assert self.loop.last.evidence is not None
        return self.loop.last.evidence

    @property
    def lines(self) -> str:
        return "\n".join(line.text for line in self.state.log)

    def tick_until(self, holds: Callable[[], bool]) -> None:
        for _ in range(400):
            if holds():
                return
            self.clock.advance(max(self.loop.tick(self.token), 0.25))
        raise AssertionError(self.state.reason)

    def settle(self, seconds: float = 5.0) -> None:
        self.log.watermark_s = self.clock.now_s()
        ends_s = self.clock.boot_s() + seconds
        while self.clock.boot_s() < ends_s:
            self.clock.advance(max(self.loop.tick(self.token), 0.5))

    def to_stage(self) -> None:
        self.tick_until(lambda: self.state.phase is Phase.STAGE and self.state.acked_at_s is not None)

    def traffic_of(
        self,
        count: int,
        *,
        bad: tuple[float, float] = (0.03, 0.03),
        error: float = 0.0,
        missing: float = 0.0,
        **verdict: str,
    ) -> None:
        """Requests one after the other, each sampled and, but for a share, judged. bad: of stable's answers
        and of the canary's. error: share of the canary's requests."""
        now_s = self.clock.now_s()
        for n in range(self.count, self.count + count):
            at_s, arm = now_s + STEP_S * (n - self.count), int(self.rng.random() < W)
            failed = arm == 1 and self.rng.random() < error
            record = a_record(n, arm=arm, w=W, rollout=ROLLOUT, at_s=at_s, judged=True, error=failed)
            self.log.append(record)
            is_missing = failed or self.rng.random() < missing
            said = None if is_missing else self.rng.random() < bad[arm]
            cause = "timeout" if is_missing else None
            more = {"rollout": ROLLOUT, **verdict}
            self.log.append(a_verdict(f"q{n}", said, at_s=at_s + 1.0, cause=cause, **more))  # type: ignore[arg-type]
        self.count += count
        self.clock.advance(STEP_S * count)
        self.clock.advance(40.0)  # beyond the deadline of a verdict
        self.settle(12.0)


@pytest.fixture
def rig_of(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*results: JudgeFound) -> Rig:
        made.append(
            Rig(sqlite_url(tmp_path / "canaryctl.db"), {result.attempt: result for result in results})
        )
        return made[0]

    yield make
    for rig in made:
        rig.store.close()


def quality(rig: Rig, side: str = "rollback") -> tuple[Verdict, str]:
    gate = next(one for one in rig.evidence.gates if one.gate == "quality" and one.side == side)
    return gate.verdict, gate.reason


@pytest.mark.slow
def test_no_stage_begins_before_the_judge_was_examined(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of()
    rig.tick_until(lambda: rig.state.phase is Phase.SMOKE)
    rig.settle(45.0)  # longer than the smoke test may take
    view = rollout_view(rig.state)
    assert (rig.state.phase, rig.traffic.tables["chat"].canary) == (Phase.SMOKE, None)
    assert "the examination of judge judge" in view.waiting_for
    assert view.judge is not None
    assert view.judge.state == "being examined"

    rig.judges.results[1] = admitted()
    rig.to_stage()

    assert rig.traffic.tables["chat"].judge == admitted().revision
    assert "judge judge (revision abc123def456) admitted: found 95 % of the bad answers" in rig.lines


@pytest.mark.slow
def test_an_admitted_judge_lets_a_good_canary_through_and_is_asked_at_every_weight(
    rig_of: Callable[..., Rig],
) -> None:
    rig = rig_of(admitted())
    rig.to_stage()
    rig.restart()  # the result is stored: no examination again
    rig.traffic_of(1500)

    assert set(rig.judges.asked) == {1}
    assert rig.state.passed[0].how == "proven"
    rig.tick_until(lambda: rig.state.phase is Phase.SUCCEEDED)
    told = list(zip(rig.traffic.weights, rig.traffic.judges, strict=True))
    revision = admitted().revision
    assert told == [(0, ""), (5000, revision), (9500, revision), (0, "")]


@pytest.mark.slow
def test_verdicts_roll_a_bad_canary_back(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(admitted())
    rig.to_stage()
    rig.traffic_of(600, bad=(0.03, 0.4))
    rig.tick_until(lambda: rig.state.phase is Phase.ROLLED_BACK)

    assert rig.state.decisive is not None
    assert rig.state.decisive.gate == "quality"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("result", "words"),
    [
        (refused(), "the judge was refused: 40% of the bad plants found, needed 80%"),
        (silent(), "the judge is silent: it gave no verdict: no answer within 30 s"),
    ],
)
def test_a_judge_that_may_not_vote_holds_the_rollout_and_says_why(
    rig_of: Callable[..., Rig], result: JudgeFound, words: str
) -> None:
    rig = rig_of(result)
    rig.to_stage()
    rig.traffic_of(1500, bad=(0.03, 0.4))  # verdicts of a judge that nobody admitted
    rig.settle(60.0)

    assert rig.traffic.tables["chat"].judge == ""
    assert quality(rig) == (Verdict.INVALID, quality(rig, "promotion")[1])
    assert words in quality(rig)[1]
    assert rig.state.phase is Phase.STAGE
    assert [(hold.kind, words in hold.reason) for hold in rig.state.holds] == [(HoldKind.NOT_PROVEN, True)]
    assert any(f"judge judge{' (revision abc123def456)' if result == refused() else ''} " in text
               for text in rig.notifier.sent.values())  # fmt: skip
    view = rollout_view(rig.state, rig.evidence)
    assert view.judge is not None
    assert result.text in view.judge.text


@pytest.mark.slow
def test_other_gates_roll_back_without_an_admitted_judge(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(refused())
    rig.to_stage()
    rig.traffic_of(1000, error=0.3)
    rig.tick_until(lambda: rig.state.phase is Phase.ROLLED_BACK)

    assert rig.state.cause is not None
    assert "error" in rig.state.cause.text


@pytest.mark.slow
def test_a_silent_judge_is_examined_again_and_then_asked(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.rollout.judge.AGAIN_S", 30.0)
    rig = rig_of(silent(), admitted(2))
    rig.to_stage()
    rig.settle(20.0)
    assert set(rig.judges.asked) == {1}

    rig.settle(20.0)

    assert set(rig.judges.asked) == {1, 2}
    assert rig.state.judge.is_admitted
    assert rig.traffic.tables["chat"].judge == admitted().revision
    assert rig.state.phase is Phase.STAGE


@pytest.mark.slow
def test_a_judge_that_drifts_voids_its_gate_for_good_and_is_told_of_once(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(admitted())
    rig.to_stage()
    for called_bad in [True] * 150 + [False] * 150:  # of bad answers: it finds all, then none
        rig.log.append(an_anchor(True, called_bad, at_s=rig.clock.now_s(), rollout=ROLLOUT))
    rig.traffic_of(800, bad=(0.03, 0.5))
    rig.restart()
    rig.traffic_of(800)
    rig.settle(20.0)

    assert rig.state.judge.drift is not None
    assert quality(rig)[0] is Verdict.INVALID
    assert "the judge drifted: bad answers that it passes went from" in quality(rig)[1]
    assert (rig.state.phase, rig.evidence.rollback, rig.evidence.verdict) == (
        Phase.STAGE,
        None,
        Verdict.INVALID,
    )
    assert rig.lines.count("quality is not judged any more") == 1
    assert [key for key in rig.notifier.sent if key.endswith("judge-drift")] == ["r-1/judge-drift"]
    assert rig.traffic.tables["chat"].judge == ""


@pytest.mark.slow
def test_verdicts_of_another_revision_or_rollout_are_not_read(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(admitted())
    rig.to_stage()
    rig.traffic_of(500, bad=(0.03, 0.9), revision="another00000")
    assert rig.evidence.judge is not None
    assert rig.evidence.judge.verdicts == (0, 0)
    assert rig.evidence.judge.causes == (("lost", 500),)

    assert (rig.state.phase, rig.evidence.rollback) == (Phase.STAGE, None)


@pytest.mark.slow
def test_too_many_missing_verdicts_hold_until_they_come_again(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(admitted())
    rig.to_stage()
    rig.traffic_of(600, missing=0.25)
    verdict, words = quality(rig)
    assert (verdict, rig.evidence.verdict, rig.state.phase) == (Verdict.INVALID, Verdict.INVALID, Phase.STAGE)
    assert "sampled answers of stable have no verdict, at most 10% may be (max_missing)" in words

    rig.traffic_of(2400)

    assert rig.state.passed[0].how == "proven"


SERVED = replace(PLAN, judge=replace(JUDGE, url="", engine=JudgeEngine("v-judge", "{}", 1)))
ENGINE = ("chat_judge", "v-judge")


def judge_text(rig: Rig) -> str:
    view = rollout_view(rig.state, judge=rig.loop.last.judge).judge
    assert view is not None
    return view.text


@pytest.mark.slow
def test_a_judge_served_here_is_unloaded_when_it_is_refused_and_the_rollout_holds(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rig, "plan", SERVED)
    rig = rig_of()
    rig.tick_until(lambda: rig.state.phase is Phase.SMOKE)
    rig.settle()
    assert (ENGINE in rig.fleet.engines, rig.state.phase) == (True, Phase.SMOKE)
    assert "being examined (" in judge_text(rig)
    assert "its engine is ready (1 MiB)" in judge_text(rig)

    rig.judges.results[1] = refused()
    rig.to_stage()
    rig.settle()

    assert ENGINE not in rig.fleet.engines
    assert "refused" in judge_text(rig)
    assert "engine" not in judge_text(rig)
    assert (quality(rig)[0], rig.state.phase) == (Verdict.INVALID, Phase.STAGE)
    assert set(rig.traffic.judges) == {""}


@pytest.mark.slow
def test_a_judge_served_here_that_dies_or_cannot_be_loaded_is_loaded_again_and_harms_nobody(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rig, "plan", SERVED)
    rig = rig_of(admitted())
    rig.to_stage()
    del rig.fleet.engines[ENGINE]
    rig.fleet.broken["v-judge"] = "no memory for version v-judge"
    rig.settle()
    assert "its engine is failed: no memory for version v-judge" in judge_text(rig)
    assert rig.state.phase is Phase.STAGE

    rig.fleet.broken.clear()
    rig.settle(40.0)
    assert rig.fleet.engines[ENGINE].phase is VersionPhase.READY
    rig.traffic_of(1500)
    rig.tick_until(lambda: rig.state.phase is Phase.SUCCEEDED)
    rig.settle()

    assert ENGINE not in rig.fleet.engines
    assert rig.loop.last.judge is None


@pytest.mark.slow
def test_a_service_is_not_gone_before_the_engine_of_its_judge_is(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rig, "plan", SERVED)
    rig = rig_of(admitted())
    rig.fleet.ensure(*ENGINE, 1, token=rig.token)  # as of a controller that was killed
    rig.fleet.unload_s = 30.0
    rig.restart()
    keeper = rig.loop._make_workers("chat").keeper
    plane = DataPlaneStatus(rig.clock.now_s(), rig.clock.boot_s(), None, ())
    row = rig.store.service("chat")

    assert keeper._remove(row, plane, rig.token) is not None
    assert rig.fleet.engines[ENGINE].phase is VersionPhase.STOPPING
    assert rig.store.service("chat").name == "chat"
