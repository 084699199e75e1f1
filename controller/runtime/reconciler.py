"""Reconciler of rollouts: perform the committed actions, read the data plane, decide, commit.

Invariants: an action is performed only after it was committed (a crash between any two lines repeats it, and
actions are idempotent); what cannot be read is None; one failing port does not block the actions of another;
a stale token or a stale write ends the tick at once, because then another controller acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

from controller import telemetry
from controller.errors import StaleToken, StaleWrite, UnreadCommand
from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    ExamineJudge,
    Notify,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.judge_plan import JudgeFound
from controller.rollout.machine import step
from controller.rollout.observation import DataPlaneStatus, EvidenceStatus, Observation, ProbeStatus
from controller.rollout.ports import Clock, Evidence, Fleet, Judges, Notifier, Probes, Store, Stored, Traffic
from controller.rollout.state import Phase, RolloutState
from controller.rollout.status import is_urgent
from controller.runtime.faults import Faults
from controller.runtime.tick_timer import MAX_TICK_S, TickTimer

# Interval of commits that hold new evidence alone: a crash replays at most this much of the records log, and
# at most this much of the time that a stage or the bake was held counts again. Large evidence and a slow disk
# stretch it to `COMMIT_SPACING` times what such a commit takes, but not beyond `MAX_COMMIT_S`.
COMMIT_S = 5.0
COMMIT_SPACING = 20.0
MAX_COMMIT_S = 60.0
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
    judges: Judges | None = None  # None: no rollout has a judge


@dataclass(frozen=True, slots=True)
class Performed:
    """A rollout as stored, and the results of its pending actions."""

    stored: Stored
    probes: tuple[ProbeStatus, ...]
    delivered: frozenset[str]  # keys of notices
    failed: bool  # some action failed: do not retry it at once
    token: int  # of the lease, which the commit must still hold
    judge: JudgeFound | None = None  # result of the judge's examination; None: it runs, or none was asked for


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
        self._saved_s: dict[str, float] = {}  # boot time of the last commit with evidence
        self._save_took_s: dict[str, float] = {}
        self._faults = Faults()

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
        self._forget_actions(rollout, but={f"{action.kind} of {rollout}" for action in stored.pending})
        probes: list[ProbeStatus] = []
        judge: JudgeFound | None = None
        delivered: set[str] = set()
        works: set[str] = set()
        broken: set[str] = set()
        for action in stored.pending:
            if is_stuck and isinstance(action, SetSplit) and action.canary is not None:
                continue
            what = f"{action.kind} of {rollout}"
            try:
                result = self._act(stored.state, action, token)
            except (StaleToken, StaleWrite):
                raise
            except Exception as exc:  # noqa: BLE001 - one failing adapter must not block a rollback
                broken.add(what)
                self._faults.failed(what, exc)
                continue
            works.add(what)
            if isinstance(result, ProbeStatus):
                probes.append(result)
            elif isinstance(result, JudgeFound):
                judge = result
            elif result is not None:
                delivered.add(result)
        for what in works - broken:  # one of several actions of a kind may fail alone
            self._faults.works(what)
        return Performed(stored, tuple(probes), frozenset(delivered), bool(broken), token, judge)

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
            judge=performed.judge,
            commands=ports.store.commands(before.id, after_seq=before.commands_through),
            delivered=performed.delivered,
            resumed=not is_known and before.phase is not Phase.PLANNING,
            jump_s=time.jump_s,
            away_s=time.away_s,
        )
        state, pending = step(before, seen)
        is_same = replace(state, ticked_at_s=before.ticked_at_s) == before
        changed = not is_same or pending != stored.pending
        is_due = plane.boot_s - self._saved_s.setdefault(state.id, plane.boot_s) >= self._interval_s(state.id)
        if changed or is_due:
            saves = is_due or _is_decision(before, state, evidence)
            began_s = ports.clock.boot_s()
            try:
                ports.store.commit(
                    state,
                    pending,
                    expected_version=stored.version,
                    evidence=self._evidence_to_store(before, state) if saves else None,
                    token=performed.token,
                )
            except UnreadCommand:
                return Ticked(before, evidence, 0.0)  # the next tick reads it, and decides again
            if saves:
                self._saved_s[state.id] = plane.boot_s
                self._save_took_s[state.id] = ports.clock.boot_s() - began_s
            _log_change(before, state)
        self._timers[before.id] = ticked
        if state.is_final and not pending:
            del self._timers[state.id]
            self._saved_s.pop(state.id, None)
            self._save_took_s.pop(state.id, None)
            self._forget_actions(state.id)
        next_in_s = _next_in_s(state, pending, changed, performed.failed)
        return Ticked(state, evidence, next_in_s if is_known or state.is_final else 0.0)

    def _interval_s(self, rollout: str) -> float:
        """Seconds between two commits that hold new evidence alone."""
        longest_s = max(self._commit_s, MAX_COMMIT_S)
        return min(longest_s, max(self._commit_s, COMMIT_SPACING * self._save_took_s.get(rollout, 0.0)))

    def _evidence_to_store(self, before: RolloutState, state: RolloutState) -> bytes | None:
        """What a commit keeps of the evidence; None: what is stored. It may be of some 15 MB, so no rollback
        waits for it, and nothing of an ended rollout is kept but what people are shown."""
        evidence = self._ports.evidence
        # A failed snapshot must not keep a rollback from being committed; it is retried.
        if state.is_final:
            is_new = not before.is_final
            return self._read("the last evidence", lambda: evidence.conclusion(state.id)) if is_new else None
        if state.departure is not None:
            return None
        return self._read("snapshot of the evidence", lambda: evidence.snapshot(state.id))

    def _forget_actions(self, rollout: str, *, but: Set[str] = frozenset()) -> None:
        """Of faults of actions that are given up no end will be seen."""
        of_it = {place for place in self._faults.failing if place.endswith(f" of {rollout}")}
        self._faults.forget(of_it - but)

    def _act(self, state: RolloutState, action: Action, token: int) -> ProbeStatus | JudgeFound | str | None:
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
            case ExamineJudge():
                if ports.judges is None:
                    raise NotImplementedError("this controller examines no judges; connect `Ports.judges`")
                return ports.judges.start_or_check(state.id, action)
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
            self._faults.failed(f"reading {what}", exc)
            return None
        self._faults.works(f"reading {what}")
        return result


def _next_in_s(state: RolloutState, pending: Sequence[Action], changed: bool, failed: bool) -> float:
    if failed:
        return WAITING_S
    if changed and not state.is_final:
        return 0.0
    if is_urgent(state) or any(isinstance(action, SetSplit) for action in pending):
        return URGENT_S
    if any(isinstance(action, EnsureVersion | RunProbe | ExamineJudge) for action in pending):
        return WAITING_S
    return INTERVAL_S


def _is_decision(before: RolloutState, after: RolloutState, evidence: EvidenceStatus | None) -> bool:
    """Whether the evidence belongs into the commit: a restart must not see what was decided on once more."""
    if evidence is not None and evidence.guards:
        return True
    return any(
        getattr(before, name) != getattr(after, name)
        for name in ("phase", "stage", "weight_bp", "acked_at_s", "holds", "cause", "departure")
    )


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
