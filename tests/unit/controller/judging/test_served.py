"""A judge served here is examined at its engine once that is ready; until then it waits, with a limit."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from controller.errors import Unreachable
from controller.judging.examiner import Examiner
from controller.judging.served import ServedJudges
from controller.rollout.actions import ExamineJudge
from controller.rollout.judge_plan import LOAD_LIMIT_S, JudgeEngine, JudgeFound, JudgePlan
from serving.credentials import DataSecret
from serving.fleet.judge_engine import JudgeEngineStatus
from serving.judging.questions import revision
from tests.fakes.judge_endpoint import judge_endpoint, spoken

MODEL = "judge-7b-3f0c2b8e91"
PLAN = JudgePlan("", MODEL, 2000, "quality", 60, engine=JudgeEngine("v-judge", "{}", 1))
EXAMINATION = ExamineJudge(PLAN, 1)
SECRET = DataSecret.of("root")
AWAY = JudgeEngineStatus(None, "", SECRET, None)
LOADING = replace(AWAY, phase="loading")


class Rig:
    def __init__(self, engine: JudgeEngineStatus | None) -> None:
        self.engine, self.now_s = engine, 0.0
        self.judges = ServedJudges(Examiner(), self._engine_of, clock=lambda: self.now_s)

    def _engine_of(self, version: str) -> JudgeEngineStatus:
        assert version == "v-judge"
        if self.engine is None:
            raise Unreachable("the fleet does not answer")
        return self.engine

    def check(self) -> JudgeFound | None:
        return self.judges.start_or_check("r-1", EXAMINATION)

    def result(self) -> JudgeFound:
        ends_at_s = time.monotonic() + 60.0
        while (found := self.check()) is None:
            assert time.monotonic() < ends_at_s
            time.sleep(0.005)
        return found


@pytest.mark.slow
def test_it_is_examined_at_its_engine_by_its_secret_and_its_name_is_its_revision() -> None:
    heads: list[dict[str, str]] = []
    rig = Rig(LOADING)
    assert rig.check() is None
    with judge_endpoint(lambda _: spoken("no"), heads) as url:
        rig.engine = replace(LOADING, phase="ready", url=url)
        found = rig.result()

    assert (found.outcome, found.revision) == ("refused", revision(MODEL))
    assert {one["x-canaryctl-secret"] for one in heads} == {SECRET.text}
    assert len(heads) > 100


def test_an_engine_that_cannot_be_loaded_is_a_silent_judge_with_its_reason() -> None:
    found = Rig(replace(AWAY, phase="failed", error="no memory for version v-judge")).check()

    assert found == JudgeFound("silent", 1, "its engine cannot be loaded: no memory for version v-judge")


def test_one_that_loads_for_too_long_is_silent_and_one_that_nobody_loads_is_waited_for() -> None:
    rig = Rig(AWAY)
    assert rig.check() is None
    rig.now_s = 10 * LOAD_LIMIT_S
    assert rig.check() is None
    rig.engine = replace(LOADING, error="the first one died")
    assert rig.check() is None
    rig.now_s += LOAD_LIMIT_S

    found = rig.check()
    assert found is not None
    assert (found.outcome, found.text) == (
        "silent",
        "its engine has not loaded within 15 min: the first one died",
    )


def test_a_fleet_that_cannot_be_read_is_no_result() -> None:
    with pytest.raises(Unreachable):
        Rig(None).check()


def test_a_judge_at_an_endpoint_is_examined_there() -> None:
    endpoint = ExamineJudge(replace(PLAN, url="http://127.0.0.1:9", engine=None), 1)
    rig = Rig(None)
    ends_at_s = time.monotonic() + 60.0
    while (found := rig.judges.start_or_check("r-1", endpoint)) is None:
        assert time.monotonic() < ends_at_s
        time.sleep(0.005)

    assert (found.outcome, found.text) == ("silent", "it gave no verdict: connection refused")
