"""Rollouts with a default plan, for tests that are not about the plan."""

from __future__ import annotations

from dataclasses import replace

from controller.rollout.machine import begin
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import LogLine, RolloutState

STABLE = "v-0000000001"
CANARY = "v-0000000002"


def short_plan(*weights_bp: int) -> Plan:
    """Plan with stages of 3 s each and a bake of 3 s."""
    stages = tuple(Stage(bp, 3.0, 20, 600.0, 1) for bp in weights_bp or (1000, 5000))
    return Plan("medium", ("other weights",), stages, holdback_bp=0, bake_s=3.0)


def a_rollout(
    id: str = "r-00000001", *, service: str = "chat", now_s: float = 1_800_000_000.0
) -> RolloutState:
    """A rollout in its first phase."""
    return begin(
        id, service, stable=VersionRef(STABLE), canary=VersionRef(CANARY), plan=short_plan(), now_s=now_s
    )


def with_log_line(state: RolloutState, text: str, at_s: float) -> RolloutState:
    """The rollout with one more line in its log."""
    line = LogLine(state.log_count + 1, at_s, text)
    return replace(state, log=(*state.log, line), log_count=line.seq)
