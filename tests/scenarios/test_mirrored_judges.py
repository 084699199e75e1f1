"""A rollout with mirrored pairs and a judge, through service loop, reconciler and real store.

The routers are a function of the published route table: who answers a user, which requests are copied, and
whether their pairs are judged. On SQLite alone, as `test_judges.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.evidence.records import GateConfig
from controller.rollout.judge_plan import JudgeFound
from controller.rollout.observation import MirrorStatus
from controller.rollout.plan import MirrorPlan
from controller.rollout.state import CauseKind, HoldKind, Phase
from controller.views.rollout import rollout_view
from evaluation.judging.mirrored import WAIT_S
from evaluation.policy.policy import GatePolicy
from serving.messages import MirrorRecord
from tests.database_rig import sqlite_url
from tests.fakes.feed_maker import a_record
from tests.fakes.judged import REVISION, a_verdict, admitted, an_anchor, refused
from tests.scenarios.test_judges import CONFIG, PLAN, POLICY, ROLLOUT, STEP_S, Rig

FOUND, FALSE = 0.8, 0.05  # of a judge: of the wrong answers, and of the right ones
COPIED = 0.5
WRONG = (0.03, 0.14)
TWIN = (0.03, 0.03)


def with_pairs(policy: GatePolicy) -> GatePolicy:
    gates = (replace(gate, mirrored=gate.metric == "quality") for gate in policy.gates)
    return replace(policy, gates=tuple(gates))


class MirrorRig(Rig):
    """Half of stable's requests are copied until 600 pairs are judged, or for 40 s that ticks saw."""

    plan = replace(PLAN, mirror=MirrorPlan(5000, 600, 40.0))
    config = GateConfig(with_pairs(POLICY), CONFIG.stages, CONFIG.judged_metric)

    def __init__(self, url: str, judges: dict[int, JudgeFound]) -> None:
        self.users = [0, 0]  # who were answered by stable, by the canary
        super().__init__(url, judges)

    @property
    def mirror(self) -> MirrorStatus:
        assert self.evidence.mirror is not None
        return self.evidence.mirror

    def to_mirroring(self) -> None:
        self.tick_until(lambda: self.state.phase is Phase.MIRRORING and self.state.acked_at_s is not None)

    def users_of(
        self, count: int, *, bad: tuple[float, float] = TWIN, cause: str | None = None, step_s: float = STEP_S
    ) -> None:
        """Requests of users one after the other. bad: shares of both versions' wrong answers. cause: why the
        judge has no verdicts; None: it has."""
        now_s, table = self.clock.now_s(), self.traffic.tables["chat"]
        w = table.weight_bp / 10_000
        for n in range(self.count, self.count + count):
            at_s, arm = now_s + step_s * (n - self.count), int(self.rng.random() < w)
            self.users[arm] += 1
            self.log.append(a_record(n, arm=arm, w=w, rollout=ROLLOUT, at_s=at_s))
            if table.mirror_bp and self.rng.random() < COPIED:
                self._copied(n, at_s, bad, cause, is_judged=bool(table.judge))
        self.count += count
        self.clock.advance(step_s * count)
        self.settle(3.0)

    def _copied(
        self, n: int, at_s: float, bad: tuple[float, float], cause: str | None, *, is_judged: bool
    ) -> None:
        of_copy = 0, f"q{n}", f"u{n}", ROLLOUT, at_s, "/v1/chat/completions", "ok", None, 200, 50.0, 40.0
        self.log.append(MirrorRecord(*of_copy, 9, 9, "stop", "stop", False, "one", 1, 1))  # type: ignore[arg-type]
        if not is_judged:
            return
        wrong = [self.rng.random() < share for share in bad]
        pair = [None if cause else self.rng.random() < (FOUND if one else FALSE) for one in wrong]
        verdict = a_verdict(f"q{n}", None, at_s=at_s + 2.0, cause=cause, rollout=ROLLOUT)
        self.log.append(replace(verdict, pair=(pair[0], pair[1]), unit=f"u{n}", assigned_at_s=at_s))

    def wait(self) -> None:
        """Until every pair so far may be bet on."""
        self.clock.advance(WAIT_S)
        self.settle(3.0)


@pytest.fixture
def rig_of(tmp_path: Path) -> Iterator[Callable[..., MirrorRig]]:
    made: list[MirrorRig] = []

    def make(*results: JudgeFound) -> MirrorRig:
        url = sqlite_url(tmp_path / "canaryctl.db")
        made.append(MirrorRig(url, {result.attempt: result for result in results}))
        return made[0]

    yield make
    for rig in made:
        rig.store.close()


@pytest.mark.slow
def test_a_worse_canary_is_rolled_back_before_any_user_has_an_answer_of_it(
    rig_of: Callable[..., MirrorRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MirrorRig, "plan", replace(PLAN, mirror=MirrorPlan(5000, 4000, 3000.0)))
    rig = rig_of(admitted())
    rig.to_mirroring()
    assert (rig.traffic.tables["chat"].judge, rig.traffic.tables["chat"].weight_bp) == (REVISION, 0)
    for _ in range(9):
        rig.users_of(800, bad=WRONG)
        if rig.state.phase is not Phase.MIRRORING:
            break
        rig.restart()  # what was judged is stored
    rig.tick_until(lambda: rig.state.phase is Phase.ROLLED_BACK)

    cause, gate = rig.state.cause, rig.state.decisive
    assert cause is not None
    assert gate is not None
    assert (cause.kind, gate.gate, rig.state.decided_canary) == (CauseKind.GATE, "quality", 0)
    assert "quality more than 0.025 below stable shown by mirrored pairs; canary 0.8" in cause.text
    assert 200 < gate.n_canary < 4000
    assert rig.users[1] == 0
    assert set(rig.traffic.weights) == {0}


@pytest.mark.slow
def test_an_equal_twin_goes_on_to_stage_1_with_its_pairs_in_the_log(rig_of: Callable[..., MirrorRig]) -> None:
    rig = rig_of(admitted())
    rig.to_mirroring()
    rig.users_of(600)
    view = rollout_view(rig.state, rig.evidence)
    (waits,) = view.waiting_for
    assert waits.startswith("600 judged pairs of answers (")
    assert waits.endswith("users answered by v-2: 0")
    assert (rig.state.phase, rig.users[1]) == (Phase.MIRRORING, 0)
    rig.users_of(1000)
    rig.wait()
    rig.to_stage()

    assert "; judged 6" in rig.lines or "; judged 7" in rig.lines or "; judged 8" in rig.lines
    assert (rig.users[1], rig.state.weight_bp) == (0, 5000)
    rig.users_of(100)
    assert rig.users[1] > 0
    assert rig.evidence.rollback is None


@pytest.mark.slow
def test_a_dead_judge_holds_it_there_with_the_reason_until_there_are_verdicts(
    rig_of: Callable[..., MirrorRig],
) -> None:
    rig = rig_of(admitted())
    rig.to_mirroring()
    rig.users_of(1500, cause="no judge")
    assert not rig.state.holds
    rig.settle(45.0)

    words = "sampled answers of stable have no verdict, at most 10% may be (max_missing)"
    assert rig.state.phase is Phase.MIRRORING
    assert rig.mirror.judged == 0
    assert [(one.kind, words in one.reason) for one in rig.state.holds] == [(HoldKind.NOT_PROVEN, True)]
    assert words in rollout_view(rig.state, rig.evidence).waiting_for[0]
    assert any(words in text for text in rig.notifier.sent.values())
    assert rig.users[1] == 0

    for _ in range(2):
        rig.users_of(1500)
    rig.wait()
    rig.to_stage()
    assert rig.state.holds == ()


@pytest.mark.slow
def test_a_refused_judge_holds_it_before_any_user_and_in_the_end_is_not_proven(
    rig_of: Callable[..., MirrorRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MirrorRig, "plan", replace(MirrorRig.plan, hold_limit_s=30.0))
    rig = rig_of(refused())
    rig.to_mirroring()
    assert rig.traffic.tables["chat"].judge == ""
    rig.users_of(1500, bad=(0.03, 0.9))
    rig.settle(45.0)

    assert rig.state.phase is Phase.MIRRORING
    (held,) = rig.state.holds
    assert "the judge was refused: 40% of the bad plants found, needed 80%" in held.reason
    rig.settle(35.0)
    rig.tick_until(lambda: rig.state.phase is Phase.ROLLED_BACK)
    assert rig.state.cause is not None
    assert rig.state.cause.kind is CauseKind.NOT_PROVEN
    assert rig.users[1] == 0


@pytest.mark.slow
def test_a_judge_that_drifts_voids_its_pairs_and_is_asked_no_more(rig_of: Callable[..., MirrorRig]) -> None:
    rig = rig_of(admitted())
    rig.to_mirroring()
    for called_bad in [True] * 150 + [False] * 150:  # of bad answers: it finds all, then none
        rig.log.append(an_anchor(True, called_bad, at_s=rig.clock.now_s(), rollout=ROLLOUT))
    rig.users_of(600, bad=(0.03, 0.9))
    rig.restart()
    rig.wait()
    rig.settle(45.0)

    assert (rig.state.phase, rig.evidence.rollback, rig.users[1]) == (Phase.MIRRORING, None, 0)
    assert rig.traffic.tables["chat"].judge == ""
    assert rig.traffic.tables["chat"].mirror_bp == 5000
    (held,) = rig.state.holds
    assert "the judge drifted: bad answers that it passes went from" in held.reason
    assert [key for key in rig.notifier.sent if key.endswith("judge-drift")] == ["r-1/judge-drift"]


@pytest.mark.slow
def test_little_traffic_is_no_hindrance_at_the_deadline(rig_of: Callable[..., MirrorRig]) -> None:
    rig = rig_of(admitted())
    rig.to_mirroring()
    rig.users_of(60, step_s=8.0)
    assert rig.state.phase is Phase.MIRRORING
    rig.wait()
    rig.settle(45.0)
    rig.to_stage()

    assert 0 < rig.users[0] == 60
    assert "of 600 pairs" in rig.lines
