"""A rollout's smoke cases and golden set, asked of the canary beside stable before it gets a user.

Invariants: the requests bypass the router, so they are no evidence; what the log gets is one line without a
text of a prompt or an answer.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from controller.errors import BadInput
from controller.rollout.plan import PreflightPlan
from controller.runtime.golden_file import read_golden
from controller.runtime.preflight_verdict import PreflightVerdict, preflight_verdict, verdict_text
from serving.judging.chat_client import ChatClient
from serving.judging.golden import GoldenSet
from serving.judging.golden_run import ask_golden
from serving.judging.smoke import smoke
from serving.judging.smoke_cases import Kind


async def run_preflight(
    plan: PreflightPlan, canary: ChatClient, stable: ChatClient | None
) -> tuple[PreflightVerdict, str]:
    """The verdict, and what it says on one line. stable None: it has no address now."""
    if stable is None:
        return _unjudged("stable has no address to compare with; see its engine's log")
    golden: GoldenSet | None = None
    if plan.golden is not None:
        try:
            golden = read_golden(plan.golden)
        except BadInput as exc:
            return _unjudged(exc.lines[0])
        if golden.digest != plan.golden_digest:
            return _unjudged(
                f"golden set {plan.golden} has changed since the plan (sha256 {golden.digest[:12]}, planned "
                f"{(plan.golden_digest or 'none')[:12]}); put it back, or roll back and deploy again"
            )
    async with AsyncExitStack() as stack:
        for client in (canary, stable):
            await stack.enter_async_context(client)
        require = [Kind(one) for one in plan.require]
        found = await smoke(canary, stable, require=require) if plan.smoke else None
        verdict = preflight_verdict(found, None)
        if golden is None or verdict.word != "passed":
            return verdict, verdict_text(verdict, found, None)
        answers = await ask_golden(golden.cases, canary, stable)
    verdict = preflight_verdict(found, answers)
    return verdict, verdict_text(verdict, found, answers)


def _unjudged(why: str) -> tuple[PreflightVerdict, str]:
    verdict = PreflightVerdict("not judged", (why,))
    return verdict, verdict_text(verdict, None, None)
