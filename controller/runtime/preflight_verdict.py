"""Verdict on a canary's smoke and golden cases before it gets a user: refused, passed, or not judged.

Rules:
1. A golden set refuses a canary that loses significantly more cases that stable gets right than it wins: an
   exact one-sided sign test at `GOLDEN_ALPHA`, once a rollout. An equal version is refused so in at most 1 %.
2. What was not judged is no pass; a reason to refuse that was seen counts all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.judging.paired import fewest_lost, lost_p_value
from serving.judging.golden_run import Golden, Tally
from serving.judging.smoke import KindResult, Result, Smoke, by_kind

GOLDEN_ALPHA = 0.01

Word = Literal["passed", "refused", "not judged"]


@dataclass(frozen=True, slots=True)
class PreflightVerdict:
    """The verdict. whys: why it is refused or not judged; empty: it passed."""

    word: Word
    whys: tuple[str, ...]


def preflight_verdict(smoke: Smoke | None, golden: Golden | None) -> PreflightVerdict:
    """Of what was asked; None: it was not."""
    reasons = list(smoke.reasons) if smoke is not None else []
    unjudged = [one.not_judged for one in (smoke, golden) if one is not None and one.not_judged is not None]
    if golden is not None and golden.not_judged is None and is_refused(golden.total):
        reasons.append(golden_text(golden.total))
    if reasons:
        return PreflightVerdict("refused", tuple(reasons))
    return PreflightVerdict("not judged", tuple(unjudged)) if unjudged else PreflightVerdict("passed", ())


def is_refused(tally: Tally) -> bool:
    """True: the canary loses significantly more pairs than it wins."""
    return tally.stable_right is not None and lost_p_value(tally.lost, tally.won) <= GOLDEN_ALPHA


def golden_text(tally: Tally) -> str:
    """Right and lost cases on one line, with the test's p-value where stable was asked."""
    text = f"golden: {tally.right} of {tally.cases} right"
    if tally.missing:
        text += f", {tally.missing} without an answer"
    if tally.stable_right is None:
        return f"{text}; compared with nothing"
    text += f", stable {tally.stable_right}; lost {tally.lost}, won {tally.won}"
    return f"{text}, p = {lost_p_value(tally.lost, tally.won):.2g} (refused at {GOLDEN_ALPHA:g} or less)"


def golden_caveat(tally: Tally) -> str | None:
    """Said of a set that is too small to refuse anything; None: it is not."""
    needed = fewest_lost(GOLDEN_ALPHA)
    if tally.stable_right is None or tally.cases >= needed:
        return None
    return f"{tally.cases} golden cases can refuse no canary: it takes {needed} lost and none won; add cases"


def smoke_text(results: Sequence[KindResult]) -> str:
    """All kinds on one line: 'chat, stop passed; tools not checked (tools-auto: status 400)'."""
    parts = []
    for result in Result:
        of_it = [one for one in results if one.result is result]
        if not of_it:
            continue
        if result is Result.PASSED:
            parts.append(f"{', '.join(one.kind for one in of_it)} passed")
        else:
            parts += [f"{one.kind} {result} ({one.whys[0] if one.whys else ''})" for one in of_it]
    return "; ".join(parts)


def verdict_text(verdict: PreflightVerdict, smoke: Smoke | None, golden: Golden | None) -> str:
    """What a rollout's log holds of it: one line without a text of a prompt or an answer."""
    if verdict.word == "not judged":
        return f"NOT JUDGED: {'; '.join(verdict.whys)}"
    if verdict.word == "refused":
        return f"refused: {'; '.join(verdict.whys)}"
    parts = [f"smoke: {smoke_text(by_kind(smoke.canary))}"] if smoke is not None else []
    if smoke is not None and smoke.differences:
        parts.append(f"{len(smoke.differences)} cases differ from stable")
    parts += [golden_text(golden.total)] if golden is not None else []
    return "; ".join(parts)
