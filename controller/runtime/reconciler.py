"""One tick of one rollout: load, act on what was committed, look, decide, commit. Nothing else happens here.

Invariants: what is done was committed before (a crash between any two lines repeats, and every action is
idempotent); what cannot be read is None; one port that does not answer keeps no other action from being done;
a stale token or a stale write ends the tick at once, because then another controller acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, assert_never

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken, StaleWrite
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
from controller.rollout.observation import Observation, ProbeStatus
from controller.rollout.ports import Clock, Evidence, Fleet, Notifier, Probes, Store, Stored, Traffic
from controller.rollout.state import Phase, RolloutState
from controller.rollout.status import is_urgent

# Evidence alone (no state change) is committed so often: a crash replays at most so much of the records log.
EVIDENCE_COMMIT_S = 5.0
AT_ONCE_S = 0.0
HURRY_S = 0.02  # a weight is on its way, or a version is leaving
WAITING_S = 0.25  # a load or a probe is on its way
INTERVAL_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that a tick touches."""

    store: Store
    fleet: Fleet
    traffic: Traffic
    evidence: Evidence
    probes: Probes
    notifier: Notifier
    clock: Clock


@dataclass(frozen=True, slots=True)
class Ticked:
    """What a tick left: the state, and when to look again."""

    state: RolloutState
    seen: Observation
    changed: bool
    next_in_s: float


@dataclass(frozen=True, slots=True)
class _Performed:
    """What carrying out the pending actions told."""

    probes: tuple[ProbeStatus, ...]
    delivered: frozenset[str]
    failed: bool  # some action could not be carried out: no hurry to try again


class Reconciler:
    """Drives rollouts tick by tick. Keeps nothing that a restart would miss."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._known: set[str] = set()  # rollouts that this controller has ticked
        self._evidence_committed_at_s: dict[str, float] = {}
        self._complained: dict[str, str] = {}  # what fails now, so that the log hears of it once

    def tick(self, rollout: str, *, token: int) -> Ticked | None:
        """One tick under the lease's fencing token; None: there is no such rollout.

        Raises StaleToken or StaleWrite when another controller acts, Unreachable without a store.
        """
        stored = self._ports.store.load(rollout)
        if stored is None:
            return None
        performed = self._perform(stored, token)
        seen = self._observe(stored.state, performed)
        state, wanted = step(stored.state, seen)
        pending = tuple(wanted)
        changed = state != stored.state or pending != stored.pending
        evidence = self._evidence_due(state, seen.now_s, changed)
        if changed or evidence is not None:
            self._ports.store.commit(state, pending, expected_version=stored.version, evidence=evidence)
            _log_change(stored.state, state)
        self._known.add(rollout)
        return Ticked(state, seen, changed, _next_in_s(state, pending, changed, performed.failed))

    def _perform(self, stored: Stored, token: int) -> _Performed:
        probes: list[ProbeStatus] = []
        delivered: set[str] = set()
        failed = False
        for action in stored.pending:
            what = f"{action.kind} of {stored.state.id}"
            try:
                told = self._act(stored.state, action, token)
            except (StaleToken, StaleWrite):
                raise
            except Exception as exc:  # noqa: BLE001 - one broken adapter must not keep a rollback from happening
                failed = True
                self._complain(what, exc)
                continue
            self._complained.pop(what, None)
            if isinstance(told, ProbeStatus):
                probes.append(told)
            elif told is not None:
                delivered.add(told)
        return _Performed(tuple(probes), frozenset(delivered), failed)

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

    def _observe(self, state: RolloutState, performed: _Performed) -> Observation:
        ports = self._ports
        now_s = ports.clock.now_s()
        versions = self._read("versions", lambda: ports.fleet.observe(state.service))
        return Observation(
            now_s=now_s,
            split=self._read("split", lambda: ports.traffic.observe(state.service)),
            versions=versions,
            evidence=self._read("evidence", lambda: ports.evidence.observe(state, versions, now_s)),
            probes=performed.probes,
            commands=ports.store.commands(state.id, after_seq=state.commands_through),
            delivered=performed.delivered,
            resumed=state.id not in self._known and state.phase is not Phase.PLANNING,
        )

    def _read(self, what: str, read: Callable[[], T | None]) -> T | None:
        try:
            result = read()
        except (StaleToken, StaleWrite):
            raise
        except Exception as exc:  # noqa: BLE001 - what cannot be read is None; the machine knows its deadline
            self._complain(f"reading {what}", exc)
            return None
        self._complained.pop(f"reading {what}", None)
        return result

    def _complain(self, what: str, exc: Exception) -> None:
        if self._complained.get(what) == str(exc):
            return
        self._complained[what] = str(exc)
        if isinstance(exc, CanaryctlError):
            telemetry.warning("does not work now, will be tried again", what=what, why=str(exc))
        else:
            telemetry.alarm("raised an unexpected error", exc, what=what)

    def _evidence_due(self, state: RolloutState, now_s: float, changed: bool) -> bytes | None:
        last_s = self._evidence_committed_at_s.setdefault(state.id, now_s)
        if not changed and now_s - last_s < EVIDENCE_COMMIT_S:
            return None
        self._evidence_committed_at_s[state.id] = now_s
        # What cannot be saved must not keep a rollback from being committed; it is tried again.
        return self._read("snapshot of the evidence", lambda: self._ports.evidence.snapshot(state.id))


def _next_in_s(state: RolloutState, pending: Sequence[Action], changed: bool, failed: bool) -> float:
    if failed:
        return WAITING_S
    if changed and not state.is_final:
        return AT_ONCE_S
    if is_urgent(state) or any(isinstance(action, SetSplit) for action in pending):
        return HURRY_S
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
