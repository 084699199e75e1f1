"""Writes to the state: phases entered, time limits, log lines, holds, notices. It decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Literal

from controller.quantities import duration
from controller.rollout.actions import Action, Notify
from controller.rollout.observation import Alarm, Observation
from controller.rollout.state import (
    MAX_LOG_LINES,
    DepartureStep,
    Hold,
    HoldKind,
    LogLine,
    Notice,
    Phase,
    RolloutState,
)
from evaluation.report import GateReport, Source

EXTERNAL_LOAD_S = 120.0  # an endpoint that is not ours has nothing to load: it answers, or it does not
PAGE_AGAIN_S = 3600.0  # between two pages of one thing that goes on
MAX_NOTICE_AGE_S = 600.0  # a notifier that fails for longer loses the notice; the log keeps it


def enter(
    state: RolloutState, phase: Phase, now_s: float, reason: str, *, keep_ack: bool = False
) -> RolloutState:
    acked_at_s = state.acked_at_s if keep_ack else None
    state = replace(state, phase=phase, entered_at_s=now_s, reason=reason, acked_at_s=acked_at_s)
    state = replace(state, unreadable_since_s=None, unready_since_s=None)
    state = replace(state, lacking_since_s=now_s, missing_since_s=None)
    limit_s = time_limit_s(state)
    state = replace(state, deadline_at_s=None if limit_s is None else now_s + limit_s)
    name = f"stage {state.stage + 1} of {len(state.plan.stages)}" if phase is Phase.STAGE else phase.value
    return log(state, now_s, f"{name}: {reason}")


def end(state: RolloutState, phase: Phase, now_s: float, reason: str) -> RolloutState:
    state = enter(replace(state, holds=()), phase, now_s, reason)
    severity: Literal["info", "page"] = "info" if phase is Phase.SUCCEEDED else "page"
    return notice(state, phase.value, severity, f"{state.service}: {phase.value}: {reason}", now_s)


def time_limit_s(state: RolloutState) -> float | None:
    """Time limit of this phase, or of this step of a departure; None: there is none."""
    plan = state.plan
    if state.departure is not None and state.phase in (Phase.ROLLING_BACK, Phase.UNLOADING):
        return {
            DepartureStep.RESTORE: plan.load_s,
            DepartureStep.SHIFT: plan.unreadable_s,
            DepartureStep.DRAIN: plan.drain_s,
            DepartureStep.CANCEL: plan.cancel_s,
            DepartureStep.UNLOAD: plan.unload_s,
        }[state.departure.step]
    if state.phase is Phase.STAGE:
        return plan.stages[state.stage].deadline_s
    load_s = min(plan.load_s, EXTERNAL_LOAD_S) if state.canary.external else plan.load_s
    return {
        Phase.PREFLIGHT: plan.preflight_s,
        Phase.LOADING: load_s,
        Phase.WARMING: plan.warm_s,
        Phase.SMOKE: plan.smoke_s,
        Phase.MIRRORING: plan.mirror.deadline_s if plan.mirror is not None else None,
        Phase.PROMOTING: plan.promote_s if state.weight_bp == plan.promoted_bp else plan.load_s,
        Phase.BAKING: 2 * plan.bake_s + plan.unreadable_s,
    }.get(state.phase)


def since(since_s: float | None, holds: bool, now_s: float) -> float | None:
    """Since when a condition holds in a row. since_s: as of the tick before; None: it does not hold."""
    if not holds:
        return None
    return now_s if since_s is None else since_s


def log(state: RolloutState, now_s: float, text: str, actor: str = "controller") -> RolloutState:
    line = LogLine(state.log_count + 1, now_s, text, actor)
    return replace(state, log=(*state.log, line)[-MAX_LOG_LINES:], log_count=line.seq)


def in_time_order(state: RolloutState, after_seq: int) -> RolloutState:
    """The state with its log lines after `after_seq` in the order of their times: a command stands where it
    was given, though what followed from the one before it was logged first."""
    before = [line for line in state.log if line.seq <= after_seq]
    fresh = [line for line in state.log if line.seq > after_seq]
    ordered = sorted(fresh, key=lambda line: line.at_s)
    renumbered = [replace(line, seq=old.seq) for line, old in zip(ordered, fresh, strict=True)]
    return state if renumbered == fresh else replace(state, log=(*before, *renumbered))


def hold(
    state: RolloutState,
    kind: HoldKind,
    why: str,
    now_s: float,
    actor: str = "controller",
    *,
    page: bool = False,
    advice: str = "",
) -> RolloutState:
    """advice: what a person may do, for the page."""
    if any(hold.kind is kind for hold in state.holds):
        return state
    state = replace(state, holds=(*state.holds, Hold(kind, actor, why, now_s)))
    if page:
        text = "; ".join(filter(None, (f"{state.service}: held ({kind.value}): {why}", advice)))
        state = notice(log(state, now_s, text), f"hold-{state.log_count}", "page", text, now_s)
    return state


def release(state: RolloutState, kind: HoldKind) -> RolloutState:
    return replace(state, holds=tuple(hold for hold in state.holds if hold.kind is not kind))


def notice(
    state: RolloutState, name: str, severity: Literal["info", "page"], text: str, now_s: float
) -> RolloutState:
    return replace(state, outbox=(*state.outbox, Notice(f"{state.id}/{name}", severity, text, now_s)))


def told(state: RolloutState, key: str) -> RolloutState:
    """The state that remembers that it was told of `key`, in `RolloutState.alarmed`."""
    return replace(state, alarmed=(*state.alarmed, key))


def untold(state: RolloutState, keys: Collection[str]) -> RolloutState:
    """The state that will be told anew of these keys."""
    return replace(state, alarmed=tuple(one for one in state.alarmed if one not in keys))


def told_hourly(state: RolloutState, key: str, spent_s: float) -> RolloutState | None:
    """The state that was told of `key` in this hour of what has gone on for `spent_s`; None: it
    was told already. Whoever calls this MUST call `untold_hourly` when that is over."""
    hourly = f"{key}/{max(0.0, spent_s) // PAGE_AGAIN_S:.0f}"
    return None if hourly in state.alarmed else told(untold_hourly(state, key), hourly)


def untold_hourly(state: RolloutState, key: str) -> RolloutState:
    """The state that will be told anew of `key`, whatever the hour."""
    known = {one for one in state.alarmed if one.startswith(f"{key}/")}
    return untold(state, known) if known else state


def publish_alarms(state: RolloutState, alarms: Iterable[Alarm], now_s: float) -> RolloutState:
    """Log and notify each alarm of a segment once."""
    for alarm in alarms:
        if alarm.key not in state.alarmed:
            text = f"{state.service}: alarm, not deciding: {alarm.text}"
            state = log(told(state, alarm.key), now_s, text)
            state = notice(state, f"alarm-{alarm.key}", "info", text, now_s)
    return state


def publish_sources(state: RolloutState, gates: Iterable[GateReport], now_s: float) -> RolloutState:
    """Log and page once when the metric of a deciding gate does not arrive, and log when it does again."""
    for gate in {gate.gate: gate for gate in gates if not gate.is_alarm}.values():
        key = f"source/{gate.gate}"
        is_published = key in state.alarmed
        if gate.source is Source.ARRIVES and is_published:
            state = log(untold(state, {key}), now_s, f"{gate.gate}: {gate.metric} arrives again")
        elif gate.source is not Source.ARRIVES and not is_published:
            text = f"{state.service}: {source_text(gate, now_s)}; nothing is promoted until it arrives"
            state = told(state, key)
            since = f"{gate.last_value_s:.0f}" if gate.last_value_s is not None else "start"
            state = notice(log(state, now_s, text), f"source-{gate.gate}-{since}", "page", text, now_s)
    return state


def source_text(gate: GateReport, now_s: float) -> str:
    """`quality NOT JUDGED: quality stopped arriving 5 min ago`."""
    if gate.source is Source.STOPPED and gate.last_value_s is not None:
        ago = duration(max(0, round(now_s - gate.last_value_s)))
        return f"{gate.gate} NOT JUDGED: {gate.metric} stopped arriving {ago} ago"
    if gate.source is Source.STOPPED:
        return f"{gate.gate} NOT JUDGED: {gate.metric} stopped arriving"
    return f"{gate.gate} NOT JUDGED: {gate.metric} has not arrived"


def drop_delivered(state: RolloutState, seen: Observation, now_s: float) -> RolloutState:
    outbox = tuple(
        notice
        for notice in state.outbox
        if notice.key not in seen.delivered and now_s - notice.since_s < MAX_NOTICE_AGE_S
    )
    return state if outbox == state.outbox else replace(state, outbox=outbox)


def notices(state: RolloutState) -> tuple[Action, ...]:
    return tuple(Notify(notice.key, notice.severity, notice.text) for notice in state.outbox)
