"""Writing the state: log lines, holds, notices. Each function gives the state with one thing more or less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from controller.rollout.actions import Action, Notify
from controller.rollout.observation import Alarm, Observation
from controller.rollout.state import LOG_KEPT, Hold, HoldKind, LogLine, Notice, RolloutState

NOTICE_KEPT_S = 600.0  # a notifier that is dead for longer loses the notice; the log keeps it


def log(state: RolloutState, now_s: float, text: str, actor: str = "controller") -> RolloutState:
    line = LogLine(state.log_count + 1, now_s, text, actor)
    return replace(state, log=(*state.log, line)[-LOG_KEPT:], log_count=line.seq)


def hold(
    state: RolloutState,
    kind: HoldKind,
    why: str,
    now_s: float,
    actor: str = "controller",
    *,
    page: bool = False,
) -> RolloutState:
    if any(hold.kind is kind for hold in state.holds):
        return state
    state = replace(state, holds=(*state.holds, Hold(kind, actor, why, now_s)))
    if page:
        text = f"{state.service}: held ({kind.value}): {why}"
        state = notice(log(state, now_s, text), f"hold-{state.log_count}", "page", text, now_s)
    return state


def release(state: RolloutState, kind: HoldKind) -> RolloutState:
    return replace(state, holds=tuple(hold for hold in state.holds if hold.kind is not kind))


def notice(
    state: RolloutState, name: str, severity: Literal["info", "page"], text: str, now_s: float
) -> RolloutState:
    return replace(state, outbox=(*state.outbox, Notice(f"{state.id}/{name}", severity, text, now_s)))


def publish_alarms(state: RolloutState, alarms: Iterable[Alarm], now_s: float) -> RolloutState:
    """Write down and notify each alarm of a segment once. It decides nothing."""
    for alarm in alarms:
        if alarm.key not in state.alarmed:
            text = f"{state.service}: alarm, not deciding: {alarm.text}"
            state = replace(state, alarmed=(*state.alarmed, alarm.key))
            state = notice(log(state, now_s, text), f"alarm-{alarm.key}", "info", text, now_s)
    return state


def drop_delivered(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    left = tuple(
        notice
        for notice in state.outbox
        if notice.key not in seen.delivered and now_s - notice.since_s < NOTICE_KEPT_S
    )
    return state if left == state.outbox else replace(state, outbox=left)


def notices(state: RolloutState) -> tuple[Action, ...]:
    return tuple(Notify(notice.key, notice.severity, notice.text) for notice in state.outbox)


def last_time_s(state: RolloutState) -> float:
    return state.log[-1].at_s if state.log else state.entered_at_s
