"""What the core needs of the world, in its own words. `wiring/` alone knows the adapters.

What cannot be read is None, never a guess. Every command is idempotent, returns within 50 ms and carries the
lease's fencing token; an older one raises `StaleToken`. Nothing here waits for a load, a drain or a time-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from controller.rollout.actions import Action, RunProbe, SetSplit
from controller.rollout.observation import (
    EvidenceStatus,
    ManualCommand,
    ProbeStatus,
    SplitStatus,
    VersionStatus,
)
from controller.rollout.state import RolloutState


class Clock(Protocol):
    def now_s(self) -> float: ...


class Fleet(Protocol):
    """Engines. `service` and `version` together name one; a version that is not there counts as gone."""

    def ensure(self, service: str, version: str, replicas: int, *, token: int) -> None: ...
    def observe(self, service: str) -> tuple[VersionStatus, ...] | None: ...
    def drain(self, service: str, version: str, *, token: int) -> None: ...
    def cancel(self, service: str, version: str, *, token: int) -> None: ...
    def stop(self, service: str, version: str, *, token: int) -> None: ...


class Traffic(Protocol):
    """The route table. The same split again makes no new revision; it answers how far it is acknowledged."""

    def set_split(self, service: str, rollout: str, split: SetSplit, *, token: int) -> SplitStatus | None: ...
    def observe(self, service: str) -> SplitStatus | None: ...
    def heartbeat(self, service: str, *, token: int) -> None: ...


class Evidence(Protocol):
    """One evaluator a rollout: reads the new records, settles them, reports."""

    def observe(
        self, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
    ) -> EvidenceStatus | None: ...
    def snapshot(self, rollout: str) -> bytes | None: ...


class Probes(Protocol):
    def start_or_check(self, rollout: RolloutState, probe: RunProbe) -> ProbeStatus: ...


class Notifier(Protocol):
    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        """True: delivered, now or before under the same key."""


@dataclass(frozen=True, slots=True)
class Stored:
    state: RolloutState
    version: int  # counts commits; a commit names the one that it replaces
    pending: tuple[Action, ...]  # the whole set that was wanted at the last commit


class Store(Protocol):
    def load(self, rollout: str) -> Stored | None: ...
    def running(self) -> Sequence[str]: ...
    def commit(
        self, state: RolloutState, pending: Sequence[Action], *, expected_version: int, evidence: bytes | None
    ) -> int:
        """The new version. One transaction. Raises `StaleWrite` when another was stored meanwhile."""

    def commands(self, rollout: str, *, after_seq: int) -> tuple[ManualCommand, ...]: ...
