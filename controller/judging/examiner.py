"""Examinations of judges in threads of their own, so that no tick waits for one.

Invariants: one examination of a rollout at a time, `AT_ONCE` of all, each for `LIMIT_S` at most; a judge that
cannot be asked is silent, with the reason, and never an error of the tick; only texts that ship with
canaryctl are sent. What is known here is lost with the process: the machine asks again for what it has not
stored.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from controller import telemetry
from controller.quantities import duration
from controller.rollout.actions import ExamineJudge
from controller.rollout.judge_plan import JudgeFound, JudgePlan
from evaluation.judging.admission import Admission, PairVerdict, PlantVerdict, admission, is_silent
from serving.credentials import KeyReference, NoKey
from serving.judging.examined import Examined, examine
from serving.judging.judge_openai import JudgeOpenAI
from serving.judging.questions import Fault, about, revision

LIMIT_S = 300.0
AT_ONCE = 4
KEPT = 100  # results, of the newest examinations


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said of plants and pairs. trouble: why a question had no verdict; None: not known."""

    examined: Examined
    trouble: str | None


Ask = Callable[[JudgePlan], Said]


def ask_openai(plan: JudgePlan) -> Said:
    """Examine the judge at its endpoint. Raises NoKey, ValueError, TimeoutError."""
    reference = KeyReference.from_names(plan.api_key_env, plan.api_key_file)
    judge = JudgeOpenAI(plan.url, plan.model, reference.read() if reference is not None else None)

    async def run() -> Said:
        async with asyncio.timeout(LIMIT_S), judge:
            # What keeps it from answering shows here: later it may only say that it is not asked.
            await judge.ask(about(Fault.WRONG, "What is 1 plus 1?", "It is 2."))
            trouble = judge.trouble
            return Said(await examine(judge), trouble or judge.trouble)

    return asyncio.run(run())


class Examiner:
    """Port `Judges`."""

    def __init__(self, ask: Ask = ask_openai) -> None:
        self._ask = ask
        self._results: dict[tuple[str, int], JudgeFound | None] = {}  # by rollout and attempt; None: it runs
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(AT_ONCE)

    def start_or_check(self, rollout: str, examination: ExamineJudge) -> JudgeFound | None:
        """The result; None: it runs, or waits until another has ended. Returns at once."""
        key = rollout, examination.attempt
        with self._lock:
            if key in self._results:
                return self._results[key]
            if not self._places.acquire(blocking=False):
                return None
            self._results[key] = None
            ended = [one for one, result in self._results.items() if result is not None]
            for old in ended[: max(0, len(ended) - KEPT)]:
                del self._results[old]
        threading.Thread(
            target=self._run, args=(key, examination), name=f"judge of {rollout}", daemon=True
        ).start()
        return None

    def _run(self, key: tuple[str, int], examination: ExamineJudge) -> None:
        try:
            found = _found(self._ask, examination)
        finally:
            self._places.release()
        with self._lock:
            self._results[key] = found
        telemetry.event(
            "judge examined", rollout=key[0], attempt=key[1], outcome=found.outcome, revision=found.revision
        )


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
