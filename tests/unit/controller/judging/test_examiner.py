"""Examinations in the background: the result, silence with its reason, and never a wait or an error."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from controller.judging.examiner import AT_ONCE, LIMIT_S, SPARE_S, Examiner, Said, ask_openai
from controller.rollout.actions import ExamineJudge
from controller.rollout.judge_plan import JudgeFound, JudgePlan
from serving.judging.examined import Examined
from serving.judging.questions import revision
from tests.fakes.judge_endpoint import Says, judge_endpoint, spoken, truthful

PLAN = JudgePlan("http://127.0.0.1:9", "judge", 2000, "quality", 60)


def truthful_of_all(body: dict[str, Any]) -> tuple[int, Any]:
    return spoken("no") if "1 plus 1" in body["messages"][1]["content"] else truthful(body)


def result_of(
    examiner: Examiner, rollout: str = "r-1", plan: JudgePlan = PLAN, attempt: int = 1
) -> JudgeFound:
    ends_at_s = time.monotonic() + 60.0
    while time.monotonic() < ends_at_s:
        if (found := examiner.start_or_check(rollout, ExamineJudge(plan, attempt))) is not None:
            return found
        time.sleep(0.005)
    raise AssertionError("no result")


@pytest.mark.slow
def test_a_truthful_judge_is_admitted_with_its_revision_and_figures() -> None:
    with judge_endpoint(truthful_of_all) as url:
        found = result_of(Examiner(), plan=JudgePlan(url, "judge", 2000, "quality", 60))

    assert (found.outcome, found.revision, found.found) == ("admitted", revision("judge"), 1.0)
    assert found.text.startswith("found 100 % of the bad answers, called 0 % of the good ones bad")


@pytest.mark.slow
def test_a_judge_that_always_says_no_is_refused_with_reasons() -> None:
    with judge_endpoint(lambda _: spoken("no")) as url:
        found = result_of(Examiner(), plan=JudgePlan(url, "judge", 2000, "quality", 60))

    assert found.outcome == "refused"
    assert "0% of the bad plants found, needed 80%" in found.text


def test_a_judge_that_does_not_answer_or_lacks_its_key_is_silent_and_says_why() -> None:
    no_key = JudgePlan("http://127.0.0.1:9", "judge", 2000, "quality", 60, api_key_env="NO_SUCH_KEY_HERE")
    silent, keyless = result_of(Examiner()), result_of(Examiner(), plan=no_key)

    assert silent.outcome == keyless.outcome == "silent"
    assert silent.text == "it gave no verdict: connection refused"
    assert "NO_SUCH_KEY_HERE is not set" in keyless.text


def every(n: int, says: Says, otherwise: Says) -> Says:
    """The one for each n-th question, the other for the rest."""
    asked = itertools.count()
    return lambda body: says(body) if next(asked) % n == 0 else otherwise(body)


@pytest.mark.slow
def test_a_judge_that_was_away_for_a_while_is_silent_and_not_refused() -> None:
    with judge_endpoint(every(6, lambda _: (400, "{}"), truthful_of_all)) as url:
        found = result_of(Examiner(), plan=JudgePlan(url, "judge", 2000, "quality", 60))

    assert found.outcome == "silent"
    assert "have no verdict, at most 10% may have none" in found.text


@pytest.mark.slow
def test_a_judge_that_was_away_for_a_while_is_refused_for_what_it_said() -> None:
    with judge_endpoint(every(6, lambda _: (400, "{}"), lambda _: spoken("no"))) as url:
        found = result_of(Examiner(), plan=JudgePlan(url, "judge", 2000, "quality", 60))

    assert found.outcome == "refused"


def test_an_examination_that_fails_or_takes_too_long_is_silent() -> None:
    def fails(_: JudgePlan) -> Said:
        raise RuntimeError("what a judge said")

    def hangs(_: JudgePlan) -> Said:
        raise TimeoutError

    failed = result_of(Examiner(fails))
    assert (failed.outcome, failed.text) == ("silent", "its examination failed: RuntimeError")
    assert result_of(Examiner(hangs)).text == "it did not answer all questions within 5 min"


def test_nobody_waits_for_an_examination_and_each_attempt_is_made_once() -> None:
    free, asked = threading.Event(), []

    def waits(plan: JudgePlan) -> Said:
        asked.append(plan.model)
        free.wait(20.0)
        return Said(Examined((), ()), "slow")

    examiner = Examiner(waits)
    began_s = time.monotonic()
    for n in range(AT_ONCE + 2):
        for _ in range(3):
            assert examiner.start_or_check(f"r-{n}", ExamineJudge(PLAN, 1)) is None
    took_s = time.monotonic() - began_s
    free.set()
    last = result_of(examiner, f"r-{AT_ONCE + 1}")

    assert took_s < 2.0
    assert last.text == "it gave no verdict: slow"
    assert len(asked) == AT_ONCE + 1  # of one nobody asked again


def test_an_examination_that_hangs_is_silent_at_its_limit_and_gives_its_place_back() -> None:
    """The file of a judge's key was read outside the limit: four dead ones, and no judge was examined."""
    now_s = [0.0]
    begun: list[Callable[[], None]] = []
    file = replace(PLAN, api_key_file="/dead/key")
    examiner = Examiner(start=begun.append, clock=lambda: now_s[0])
    for n in range(AT_ONCE + 1):
        assert examiner.start_or_check(f"r-{n}", ExamineJudge(file, 1)) is None
    before = len(begun)

    now_s[0] = LIMIT_S + SPARE_S
    late = examiner.start_or_check("r-0", ExamineJudge(file, 1))
    examiner.start_or_check("r-other", ExamineJudge(PLAN, 1))

    assert late == JudgeFound(
        "silent", 1, "its examination did not end within 5 min; does the file system of /dead/key answer?"
    )
    assert (before, len(begun)) == (AT_ONCE, AT_ONCE + 1)


def test_an_examination_whose_thread_cannot_be_started_is_begun_later() -> None:
    has_threads = [False]

    def start(work: Callable[[], None]) -> None:
        if not has_threads[0]:
            raise RuntimeError("can't start new thread")
        work()

    examiner = Examiner(lambda plan: Said(Examined((), ()), "busy"), start=start)
    before = [examiner.start_or_check("r-1", ExamineJudge(PLAN, 1)) for _ in range(2 * AT_ONCE)]
    has_threads[0] = True

    assert before == [None] * (2 * AT_ONCE)
    assert result_of(examiner).text == "it gave no verdict: busy"


def test_another_attempt_asks_again() -> None:
    asked: list[str] = []
    examiner = Examiner(lambda plan: asked.append(plan.model) or Said(Examined((), ()), None))  # type: ignore[func-returns-value]
    first, second = result_of(examiner), result_of(examiner, attempt=2)

    assert (first.attempt, second.attempt, asked) == (1, 2, ["judge", "judge"])
    assert ask_openai is not None
