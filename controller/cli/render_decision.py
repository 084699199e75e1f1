"""How a service and its rollout stand, each in one line: what a long output ends with."""

from __future__ import annotations

from controller.cli.render import phase_text
from controller.spec.label import title
from controller.views.models import RolloutView, ServiceView


def service_decision(view: ServiceView) -> str:
    """What serves and how its rollout stands; empty: there is no rollout."""
    if view.rollout is None:
        return ""
    serves = f"{view.service} serving {title(view.stable, view.stable_name)}"
    return f"{serves}; {rollout_decision(view.rollout)}"


def rollout_decision(view: RolloutView) -> str:
    """How a rollout stands: its phase, and why it ended or what it waits for."""
    waits = f"waiting for {'; '.join(view.waiting_for)}" if view.waiting_for else ""
    return ": ".join(filter(None, [f"{view.rollout} {phase_text(view).plain}", view.reason or waits]))
