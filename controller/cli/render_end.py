"""How a rollout ended, or goes back: why, how long its steps took, and what is left to do."""

from __future__ import annotations

from rich.text import Text

from controller.views.models import RolloutView, StepsView

DIRECT_ACTOR = "direct"  # of the command that a direct rollback leaves in the store
CAUSE_WORDS = {"tombstone": "direct rollback"}  # of kinds whose name says nothing to people


def end_lines(view: RolloutView) -> list[Text]:
    """Why it ends, the steps in which a version leaves, and the way back from an undo that failed."""
    lines = []
    if view.cause is not None:
        is_direct = (view.cause.actor or "").rpartition(" via ")[2] == DIRECT_ACTOR
        kind = "direct rollback" if is_direct else CAUSE_WORDS.get(view.cause.kind, view.cause.kind)
        is_ended = is_test_ended(view)
        how = "A/B test ended" if is_ended else f"rolled back by {kind}"
        lines.append(Text(f"{how}: {view.cause.text}", style="default" if is_ended else "red"))
    if view.steps is not None:
        lines.append(steps_line(view.steps))
    if view.undo and view.phase in ("rolled_back", "failed"):
        again = f"canaryctl undo {view.service} --to {view.canary}"
        lines.append(Text(f"{view.serving} serves; to leave it: {again}, or deploy another version"))
    return lines


def is_test_ended(view: RolloutView) -> bool:
    """Whether an A/B test ended as each does, by a person or its duration: B leaves, nothing was wrong."""
    is_by_user = view.cause is not None and view.cause.kind == "user"
    return view.ab_test and view.phase == "rolled_back" and is_by_user


def steps_line(steps: StepsView) -> Text:
    """Durations of the steps in which a version leaves."""
    steps_ms = (
        ("traffic shifted", steps.traffic_shift_ms),
        ("drained", steps.drain_ms),
        ("unloaded", steps.unload_ms),
        ("total", steps.total_ms),
    )
    done = [f"{name} {ms(value)}" for name, value in steps_ms if value is not None]
    line = Text(f"removal of {steps.leaving}: ", style="bold")
    line.append(", ".join(done) if done else steps.step)
    return line


def ms(value: float | None) -> str:
    """A duration given in ms, as `1016 ms` or `12.3 s`."""
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
