"""Examination of a judge that canaryctl serves: once its engine is ready, at the address that it has then.

Rules:
1. While the engine loads, the examination waits. One that cannot be loaded, or has not within `LOAD_LIMIT_S`,
   is a silent judge, with the engine's own reason: it pages, holds, and is looked for again.
2. From then on everything is as of a judge at an endpoint (`Examiner`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from controller.judging.examiner import Ask, Examiner, ask_openai
from controller.quantities import duration
from controller.rollout.actions import ExamineJudge
from controller.rollout.judge_plan import LOAD_LIMIT_S, JudgeFound
from controller.rollout.ports import Judges
from serving.fleet.judge_engine import JudgeEngineStatus

EngineOf = Callable[[str], JudgeEngineStatus]


class ServedJudges(Judges):
    """Port `Judges` of one service."""

    def __init__(
        self, examiner: Examiner, engine_of: EngineOf, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """engine_of: the state of the engine of this version; raises Unreachable."""
        self._examiner, self._engine_of, self._clock = examiner, engine_of, clock
        self._since_s: dict[tuple[str, int], float] = {}  # since when the engine loads for an examination
        self._begun: dict[tuple[str, int], tuple[ExamineJudge, Ask]] = {}  # that have an address

    def start_or_check(self, rollout: str, examination: ExamineJudge) -> JudgeFound | None:
        """The result; None: it runs, or its engine loads. It returns at once. Raises Unreachable."""
        engine, key = examination.judge.engine, (rollout, examination.attempt)
        if engine is None:
            return self._examiner.start_or_check(rollout, examination)
        if key not in self._begun:
            seen = self._engine_of(engine.version)
            if not seen.url:
                return self._unloaded(key, examination, seen)
            at_engine = replace(examination, judge=replace(examination.judge, url=seen.url))
            self._begun[key] = at_engine, partial(ask_openai, secret=seen.secret)
        found = self._examiner.start_or_check(rollout, *self._begun[key])
        if found is not None:
            self._forget(key)
        return found

    def _forget(self, key: tuple[str, int]) -> None:
        self._begun.pop(key, None)
        self._since_s.pop(key, None)

    def _unloaded(
        self, key: tuple[str, int], examination: ExamineJudge, seen: JudgeEngineStatus
    ) -> JudgeFound | None:
        """The result while its engine cannot be asked; None: it is waited for."""
        if seen.phase is None:  # nobody has begun to load it
            return None
        if seen.phase == "failed":
            text = f"its engine cannot be loaded: {seen.error or 'no reason given'}"
            return JudgeFound("silent", examination.attempt, text)
        since_s = self._since_s.setdefault(key, self._clock())
        if self._clock() - since_s < LOAD_LIMIT_S:
            return None
        error = f": {seen.error}" if seen.error is not None else ""
        self._forget(key)
        text = f"its engine has not loaded within {duration(round(LOAD_LIMIT_S))}{error}"
        return JudgeFound("silent", examination.attempt, text)
