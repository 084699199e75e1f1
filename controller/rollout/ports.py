"""Ports of the rollout core to the data plane, the store and people. `wiring/` connects their adapters.

What cannot be read is None, never a guess. Every command is idempotent, carries the lease's
fencing token (an older one raises `StaleToken`) and returns at once: the Ray clients give up after 250 ms.
Nothing here waits for a load or a drain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from controller.rollout.actions import Action, ExamineJudge, RunProbe, SetSplit
from controller.rollout.judge_plan import JudgeFound
from controller.rollout.observation import (
    EvidenceStatus,
    ManualCommand,
    ProbeStatus,
    SplitStatus,
    VersionStatus,
)
from controller.rollout.state import RolloutState


class Clock(Protocol):
    """Wall time, which may be set, and boot time, which only rises; it includes time suspended."""

    def now_s(self) -> float: ...
    def boot_s(self) -> float: ...


class Fleet(Protocol):
    """Engines, each named by service and version; a version that is not listed is gone."""

    def ensure(self, service: str, version: str, replicas: int, *, token: int) -> None: ...
    def observe(self, service: str) -> tuple[VersionStatus, ...] | None: ...
    def drain(self, service: str, version: str, *, token: int) -> None: ...
    def cancel(self, service: str, version: str, *, token: int) -> None: ...
    def stop(self, service: str, version: str, *, token: int) -> None: ...


class Traffic(Protocol):
    """Route tables. Setting the same split again makes no new revision and returns its current status."""

    def set_split(self, service: str, rollout: str, split: SetSplit, *, token: int) -> SplitStatus | None: ...
    def observe(self, service: str) -> SplitStatus | None: ...
    def heartbeat(self, service: str, *, token: int) -> None: ...


class Evidence(Protocol):
    """One evaluator per rollout: ingests new records, settles them, reports."""

    def observe(
        self, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
    ) -> EvidenceStatus | None: ...
    def snapshot(self, rollout: str) -> bytes | None:
        """All of it, from which a restarted controller goes on; None: there is none here."""

    def conclusion(self, rollout: str) -> bytes | None:
        """What people are shown of it once the rollout has ended; None: there is none here."""


class Probes(Protocol):
    def start_or_check(self, rollout: RolloutState, probe: RunProbe) -> ProbeStatus: ...


class Judges(Protocol):
    def start_or_check(self, rollout: str, examination: ExamineJudge) -> JudgeFound | None:
        """The result; None: it runs. It returns at once."""


class Notifier(Protocol):
    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        """True: delivered, now or before under the same key."""


@dataclass(frozen=True, slots=True)
class Stored:
    state: RolloutState
    version: int  # number of commits; a commit names the version that it replaces
    pending: tuple[Action, ...]  # all actions that were desired at the last commit


class Store(Protocol):
    def load(self, rollout: str) -> Stored | None: ...
    def running(self) -> Sequence[str]: ...
    def commit(
        self,
        state: RolloutState,
        pending: Sequence[Action],
        *,
        expected_version: int,
        evidence: bytes | None,
        token: int | None = None,
    ) -> int:
        """The new version. One transaction.

        token: the lease's. Raises `StaleToken` when it is no longer; `StaleWrite` when another was committed
        meanwhile; `UnreadCommand` for a state that ends the rollout without having read every command.
        """

    def commands(self, rollout: str, *, after_seq: int) -> tuple[ManualCommand, ...]: ...
