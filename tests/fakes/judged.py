"""A judge's plan, results and verdicts, for tests."""

from __future__ import annotations

from controller.rollout.judge_plan import JudgeFound, JudgePlan
from serving.judge_messages import JudgeRecord
from tests.fakes.feed_maker import ROLLOUT, START_S

REVISION = "abc123def456"
JUDGE = JudgePlan("http://127.0.0.1:8000/v1", "judge", 2000, "quality", 60)


def admitted(attempt: int = 1, *, revision: str = REVISION) -> JudgeFound:
    return JudgeFound(
        "admitted", attempt, "found 95 % of the bad answers", revision, 0.95, 0.04, 0.9, 0.5, 0.0
    )


def refused(attempt: int = 1) -> JudgeFound:
    return JudgeFound("refused", attempt, "40% of the bad plants found, needed 80%", REVISION, 0.4, 0.0)


def silent(attempt: int = 1) -> JudgeFound:
    return JudgeFound("silent", attempt, "it gave no verdict: no answer within 30 s")


def a_verdict(
    request_id: str,
    bad: bool | None,
    *,
    at_s: float = START_S,
    cause: str | None = None,
    label: bool | None = None,
    rollout: str = ROLLOUT,
    revision: str = REVISION,
) -> JudgeRecord:
    return JudgeRecord(0, rollout, revision, at_s, request_id, label, bad, cause, 300, "one")


def an_anchor(label: bool, bad: bool | None, *, at_s: float = START_S, **more: str) -> JudgeRecord:
    return a_verdict("", bad, at_s=at_s, label=label, **more)
