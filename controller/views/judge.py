"""View of a rollout's judge."""

from __future__ import annotations

from controller.quantities import gib, percent
from controller.rollout.judge import needed_engine
from controller.rollout.judge_plan import JudgeState
from controller.rollout.observation import EvidenceStatus, VersionPhase, VersionStatus
from controller.rollout.state import RolloutState
from controller.views.models import JudgeView


def judge_view(
    state: RolloutState, evidence: EvidenceStatus | None, engine: VersionStatus | None = None
) -> JudgeView | None:
    """The judge with its newest figures; None: the rollout has none. evidence None: it cannot be read.

    engine: its own, as the fleet sees it; None: it has none, or that does not run.
    """
    plan, judge = state.plan.judge, state.judge
    if plan is None or not state.plan.stages:
        return None
    shown = evidence.judge if evidence is not None else None
    word, result = _word(judge), judge.result
    why = judge.drift or (result.text if result is not None else "no rollout begins before that has a result")
    if word == "drifted":
        why = why.removeprefix("the judge drifted: ")
    runs = _engine(state, engine)
    parts = [f"judge {plan.model}, {percent(plan.share_bp)} of answers, for {plan.metric}: {word} ({why})"]
    if runs:
        parts.append(runs)
    if shown is not None and (any(shown.verdicts) or any(shown.missing) or shown.anchors or shown.others):
        parts.append(shown.text)
    view = JudgeView(
        model=plan.model,
        metric=plan.metric,
        share_bp=plan.share_bp,
        state=word,
        text="; ".join(parts),
        engine=runs,
        revision=result.revision if result is not None else "",
        found=result.found if result is not None else None,
        false_alarms=result.false_alarms if result is not None else None,
    )
    if shown is None:
        return view
    names = ("verdicts", "missing", "unanswered", "anchors", "anchors_wrong")
    return view.model_copy(update={name: getattr(shown, name) for name in names})


def _engine(state: RolloutState, engine: VersionStatus | None) -> str:
    """`its engine is loading`; empty: it has none, or needs none."""
    if needed_engine(state) is None:
        return ""
    if engine is None:
        return "its engine is not loaded"
    error = f": {engine.last_error}" if engine.last_error is not None else ""
    memory = engine.memory_bytes
    held = f" ({gib(memory)})" if engine.phase is VersionPhase.READY and memory is not None else ""
    return f"its engine is {engine.phase.value}{held}{error}"


def _word(judge: JudgeState) -> str:
    if judge.drift is not None:
        return "drifted"
    return "being examined" if judge.result is None else judge.result.outcome
