"""Examinations of judges in threads of their own, so that no tick waits for one.

Invariants: `AT_ONCE` examinations at a time, each for `LIMIT_S` at most; a judge that cannot be asked is
silent, with the reason, and never an error of the tick, also where the file of its key hangs; only texts that
ship with canaryctl are sent. What is known here is lost with the process: the machine asks again for what it
has not stored, and takes a judge of which it hears nothing at all for silent, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from controller import telemetry
from controller.background import Background, Job
from controller.quantities import duration
from controller.rollout.actions import ExamineJudge
from controller.rollout.judge_plan import JudgeFound, JudgePlan
from evaluation.judging.admission import Admission, PairVerdict, PlantVerdict, admission, is_silent
from serving.credentials import DataSecret, KeyReference, NoKey
from serving.judging.examined import Examined, examine
from serving.judging.judge_openai import JudgeOpenAI
from serving.judging.questions import Fault, about, revision

LIMIT_S = 300.0
SPARE_S = 10.0  # after which an examination that has not ended by itself is late
AT_ONCE = 4
KEPT = 100  # results, of the newest examinations


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said of plants and pairs. trouble: why a question had no verdict; None: not known."""

    examined: Examined
    trouble: str | None


Ask = Callable[[JudgePlan], Said]


def ask_openai(plan: JudgePlan, secret: DataSecret | None = None) -> Said:
    """Examine the judge at its address. secret: of an engine of ours; None: it is an endpoint.

    Raises NoKey, ValueError, TimeoutError.
    """
    reference = KeyReference.from_names(plan.api_key_env, plan.api_key_file)
    key = reference.read() if reference is not None else None
    judge = JudgeOpenAI(plan.url, plan.model, key, secret=secret)

    async def run() -> Said:
        async with asyncio.timeout(LIMIT_S), judge:
            # What keeps it from answering shows here: later it may only say that it is not asked.
            first = await judge.said(about(Fault.WRONG, "What is 1 plus 1?", "It is 2."))
            examined = await examine(judge)
            return Said(examined, first.why or examined.why)

    return asyncio.run(run())


class Examiner:
    """Port `Judges`."""

    def __init__(
        self,
        ask: Ask = ask_openai,
        *,
        start: Callable[[Callable[[], None]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """start, clock: as of `Background`."""
        self._ask = ask
        self._results: dict[tuple[str, int], JudgeFound] = {}  # by rollout and attempt
        self._running: dict[tuple[str, int], Job] = {}
        self._lock = threading.Lock()
        limit_s = LIMIT_S + SPARE_S
        self._work = Background("judge", limit_s=limit_s, at_once=AT_ONCE, start=start, clock=clock)

    def start_or_check(
        self, rollout: str, examination: ExamineJudge, ask: Ask | None = None
    ) -> JudgeFound | None:
        """The result; None: it runs, or waits until another has ended. Returns at once.

        ask: in place of this examiner's own.
        """
        key = rollout, examination.attempt
        with self._lock:
            found, job = self._results.get(key), self._running.get(key)
        if found is not None:
            return found
        if job is not None and job.is_late:
            self._end(key, _late(examination))
            return self._results[key]
        if job is None:
            name = f"{rollout} {examination.attempt}"
            job = self._work.begin(name, partial(self._run, key, examination, ask or self._ask))
            if job is not None:
                with self._lock:
                    self._running[key] = job
        return None

    def _run(self, key: tuple[str, int], examination: ExamineJudge, ask: Ask) -> None:
        self._end(key, _found(ask, examination))

    def _end(self, key: tuple[str, int], found: JudgeFound) -> None:
        """Keep the result, if it is the first of this examination: it may end when it was given up."""
        with self._lock:
            self._running = {one: job for one, job in self._running.items() if not job.has_ended}
            if key in self._results:
                return
            self._results[key] = found
            for old in list(self._results)[:-KEPT]:
                del self._results[old]
        telemetry.event(
            "judge examined", rollout=key[0], attempt=key[1], outcome=found.outcome, revision=found.revision
        )


def _late(examination: ExamineJudge) -> JudgeFound:
    text = f"its examination did not end within {duration(round(LIMIT_S))}"
    if (file := examination.judge.api_key_file) is not None:
        text += f"; does the file system of {file} answer?"
    return JudgeFound("silent", examination.attempt, text)


def _found(ask: Ask, examination: ExamineJudge) -> JudgeFound:
    plan, attempt = examination.judge, examination.attempt
    try:
        said = ask(plan)
    except TimeoutError:
        text = f"it did not answer all questions within {duration(round(LIMIT_S))}"
        return JudgeFound("silent", attempt, text)
    except (NoKey, ValueError) as exc:
        return JudgeFound("silent", attempt, str(exc))
    except Exception as exc:  # noqa: BLE001 - a judge must not be able to end the thread without a result
        telemetry.error("the examination of a judge failed", exc)
        return JudgeFound("silent", attempt, f"its examination failed: {type(exc).__name__}")
    if all(called is None for *_, called in said.examined.plants):
        return JudgeFound("silent", attempt, f"it gave no verdict: {said.trouble or 'no reason given'}")
    return found_of(said.examined, plan, attempt)


def found_of(examined: Examined, plan: JudgePlan, attempt: int) -> JudgeFound:
    """The result of an examination in which the judge said something: it is refused for that alone."""
    verdicts = (
        [PlantVerdict(*one) for one in examined.plants],
        [PairVerdict(*one) for one in examined.pairs],
    )
    result = admission(*verdicts)
    return JudgeFound(
        outcome="admitted" if result.is_admitted else "silent" if is_silent(*verdicts) else "refused",
        attempt=attempt,
        text=figures(result) if result.is_admitted else "; ".join(result.reasons),
        revision=revision(plan.model),
        found=result.found,
        false_alarms=result.false_alarms,
        same=result.same,
        first=result.first,
        missing=result.missing,
    )


def figures(result: Admission) -> str:
    """`found 95 % of the bad answers, called 4 % of the good ones bad`."""

    def share(value: float | None) -> str:
        return "an unknown share" if value is None else f"{100 * value:.0f} %"

    return (
        f"found {share(result.found)} of the bad answers, called {share(result.false_alarms)} of the good "
        f"ones bad, judged {share(result.same)} of the pairs alike in both orders"
    )
