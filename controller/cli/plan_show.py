"""A plan, printed, with the exit code of its deploy."""

from __future__ import annotations

import typer

from controller.cli.output import Output, emit, note
from controller.cli.render_plan import decision, plan_detail
from controller.views.models import PlanView


def show_plan(view: PlanView, output: Output) -> None:
    """Print the plan. Raises Exit with the code that a deploy would have, where it is refused."""
    emit(view, output, lambda is_wide: plan_detail(view, is_wide=is_wide), decision=decision(view))
    if not view.refusals:
        return
    for refusal in view.refusals if output.is_text else ():
        note(f"deploy refuses it: {refusal.text}")
    raise typer.Exit(view.refusals[0].exit_code)
