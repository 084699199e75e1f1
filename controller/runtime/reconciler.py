"""Reconciler of rollouts: perform the committed actions, read the data plane, decide, commit.

Invariants: an action is performed only after it was committed (a crash between any two lines repeats it, and
actions are idempotent); what cannot be read is None; one failing port does not block the actions of another;
a stale token or a stale write ends the tick at once, because then another controller acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken, StaleWrite, UnreadCommand
from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    Notify,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.machine import step
from controller.rollout.observation import DataPlaneStatus, EvidenceStatus, Observation, ProbeStatus
from controller.rollout.ports import Clock, Evidence, Fleet, Notifier, Probes, Store, Stored, Traffic
from controller.rollout.state import Phase, RolloutState
from controller.rollout.status import is_urgent
from controller.runtime.tick_timer import MAX_TICK_S, TickTimer

# Interval of commits that hold new evidence alone: a crash replays at most this much of the records log, and
# at most this much of the time that a stage or the bake was held counts again.
COMMIT_S = 5.0
URGENT_S = 0.02  # a weight is being applied, or a version is leaving
WAITING_S = 0.25  # a load or a probe is running
INTERVAL_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a tick uses."""

    store: Store
    fleet: Fleet
    traffic: Traffic
    evidence: Evidence
    probes: Probes
    notifier: Notifier
    clock: Clock


@dataclass(frozen=True, slots=True)
class Performed:
    """A rollout as stored, and the results of its pending actions."""

    stored: Stored
    probes: tuple[ProbeStatus, ...]
    delivered: frozenset[str]  # keys of notices
    failed: bool  # some action failed: do not retry it at once
    token: int  # of the lease, which the commit must still hold


@dataclass(frozen=True, slots=True)
class Ticked:
    """Result of a tick: the committed state, and when the next tick is due."""

    state: RolloutState
    evidence: EvidenceStatus | None  # None: it could not be read
    next_in_s: float


class Reconciler:
    """Ticks rollouts. A tick is `perform`, `read`, `decide`; nothing kept here is missed after a restart."""

    def __init__(self, ports: Ports, *, commit_s: float = COMMIT_S, max_tick_s: float = MAX_TICK_S) -> None:
        """commit_s: interval of commits without a change. max_tick_s: see `TickTimer`."""
        self._ports = ports
        self._commit_s = commit_s
        self._max_tick_s = max_tick_s
        self._timers: dict[str, TickTimer] = {}  # of the rollouts that this controller has ticked
        self._committed_s: dict[str, float] = {}  # boot time
        self._failures: dict[str, str] = {}  # current failures, so that each is logged once

    def perform(self, rollout: str, *, token: int, is_stuck: bool = False) -> Performed | None:
        """Perform the actions that the last commit left pending; None: no such rollout.

        The first tick of a controller performs none: they were decided by another, maybe long ago. It reads
        and decides anew, and the next tick follows at once.

        is_stuck: nothing can be committed, so a split with the canary is not published again: the route table
        withdraws the canary when it hears nothing.

        Raises StaleToken when another controller acts, Unreachable without a store.
        """
        stored = self._ports.store.load(rollout)
        if stored is None:
            return None
        if rollout not in self._timers and not stored.state.is_final:
            return Performed(stored, (), frozenset(), False, token)
        probes: list[ProbeStatus] = []
        delivered: set[str] = set()
        failed = False
        for action in stored.pending:
            if is_stuck and isinstance(action, SetSplit) and action.canary is not None:
                continue
            what = f"{action.kind} of {rollout}"
            try:
                result = self._act(stored.state, action, token)
            except (StaleToken, StaleWrite):
                raise
            except Exception as exc:  # noqa: BLE001 - one failing adapter must not block a rollback
                failed = True
                self._log_failure(what, exc)
                continue
            self._failures.pop(what, None)
            if isinstance(result, ProbeStatus):
                probes.append(result)
            elif result is not None:
                delivered.add(result)
        return Performed(stored, tuple(probes), frozenset(delivered), failed, token)

    def read(self, service: str) -> DataPlaneStatus:
        """Fleet and route table of the service, each read once."""
        ports, clock = self._ports, self._ports.clock
        now_s, boot_s = clock.now_s(), clock.boot_s()
        versions = self._read("versions", lambda: ports.fleet.observe(service))
        split = self._read("split", lambda: ports.traffic.observe(service))
        return DataPlaneStatus(now_s, boot_s, split, versions)

    def decide(self, performed: Performed, plane: DataPlaneStatus) -> Ticked:
        """Step the rollout and commit its next state and actions. `plane` was read after `performed`.

        A command that arrived since it was read keeps the rollout from ending: nothing is committed then.
        Raises StaleWrite and StaleToken when another controller acts, Unreachable without a store.
        """
        ports, stored = self._ports, performed.stored
        before = stored.state
        is_known = before.id in self._timers
        timer = self._timers.get(before.id, TickTimer(max_tick_s=self._max_tick_s))
        evidence = None
        if not before.is_final:  # of an ended one only notices are left: it needs no feed
            evidence = self._read(
                "evidence", lambda: ports.evidence.observe(before, plane.versions, plane.read_at_s)
            )
        time, ticked = timer.tick(plane.read_at_s, plane.boot_s, ticked_at_s=before.ticked_at_s)
        seen = Observation(
            now_s=time.now_s,
            split=plane.split,
            versions=plane.versions,
            evidence=evidence,
            probes=performed.probes,
            commands=ports.store.commands(before.id, after_seq=before.commands_through),
            delivered=performed.delivered,
            resumed=not is_known and before.phase is not Phase.PLANNING,
            jump_s=time.jump_s,
            away_s=time.away_s,
        )
        state, pending = step(before, seen)
        is_same = replace(state, ticked_at_s=before.ticked_at_s) == before
        changed = not is_same or pending != stored.pending
        if changed or plane.boot_s - self._committed_s.setdefault(state.id, plane.boot_s) >= self._commit_s:
            self._committed_s[state.id] = plane.boot_s
            # A failed snapshot must not keep a rollback from being committed; it is retried.
            snapshot = self._read("snapshot of the evidence", lambda: ports.evidence.snapshot(state.id))
            try:
                ports.store.commit(
                    state,
                    pending,
                    expected_version=stored.version,
                    evidence=snapshot,
                    token=performed.token,
                )
            except UnreadCommand:
                return Ticked(before, evidence, 0.0)  # the next tick reads it, and decides again
            _log_change(before, state)
        self._timers[before.id] = ticked
        if state.is_final and not pending:
            del self._timers[state.id]
            self._committed_s.pop(state.id, None)
        next_in_s = _next_in_s(state, pending, changed, performed.failed)
        return Ticked(state, evidence, next_in_s if is_known or state.is_final else 0.0)

    def _act(self, state: RolloutState, action: Action, token: int) -> ProbeStatus | str | None:
        ports, service = self._ports, state.service
        match action:
            case SetSplit():
                ports.traffic.set_split(service, state.id, action, token=token)
            case EnsureVersion(version, replicas):
                ports.fleet.ensure(service, version, replicas, token=token)
            case DrainVersion(version):
                ports.fleet.drain(service, version, token=token)
            case CancelVersion(version):
                ports.fleet.cancel(service, version, token=token)
            case StopVersion(version):
                ports.fleet.stop(service, version, token=token)
            case RunProbe():
                return ports.probes.start_or_check(state, action)
            case Notify(key, severity, text):
                return key if ports.notifier.send(key, severity, text) else None
            case _:
                assert_never(action)
        return None

    def _read(self, what: str, read: Callable[[], T | None]) -> T | None:
        try:
            result = read()
        except (StaleToken, StaleWrite):
            raise
        except Exception as exc:  # noqa: BLE001 - a failed read is None, and the machine has deadlines for it
            self._log_failure(f"reading {what}", exc)
            return None
        self._failures.pop(f"reading {what}", None)
        return result

    def _log_failure(self, what: str, exc: Exception) -> None:
        if self._failures.get(what) == str(exc):
            return
        self._failures[what] = str(exc)
        if isinstance(exc, CanaryctlError):
            telemetry.warning("failed, will be retried", what=what, why=str(exc))
        else:
            telemetry.error("raised an unexpected error", exc, what=what)


def _next_in_s(state: RolloutState, pending: Sequence[Action], changed: bool, failed: bool) -> float:
    if failed:
        return WAITING_S
    if changed and not state.is_final:
        return 0.0
    if is_urgent(state) or any(isinstance(action, SetSplit) for action in pending):
        return URGENT_S
    if any(isinstance(action, EnsureVersion | RunProbe) for action in pending):
        return WAITING_S
    return INTERVAL_S


def _log_change(before: RolloutState, after: RolloutState) -> None:
    if (before.phase, before.stage, before.weight_bp) == (after.phase, after.stage, after.weight_bp):
        return
    telemetry.event(
        "rollout moved",
        rollout=after.id,
        service=after.service,
        phase=after.phase,
        stage=after.stage,
        weight_bp=after.weight_bp,
        why=after.reason,
    )
