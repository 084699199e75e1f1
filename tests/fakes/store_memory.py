"""In-memory `Store`; passes the same contract suite as the SQL store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.auth import Identity
from controller.errors import RolloutRunning, StaleToken, StaleWrite, UnknownService, UnreadCommand
from controller.rollout.actions import Action
from controller.rollout.observation import CommandKind, ManualCommand
from controller.rollout.ports import Stored
from controller.rollout.state import RolloutState


@dataclass(slots=True)
class MemoryStore:
    rows: dict[str, Stored] = field(default_factory=dict)
    evidences: dict[str, bytes] = field(default_factory=dict)
    queued: dict[str, list[ManualCommand]] = field(default_factory=dict)
    commits: int = 0
    lease_token: int | None = None  # None: every token is accepted

    def load(self, rollout: str) -> Stored | None:
        return self.rows.get(rollout)

    def running(self) -> Sequence[str]:
        return tuple(id for id, row in self.rows.items() if row.pending or not row.state.is_final)

    def commit(
        self,
        state: RolloutState,
        pending: Sequence[Action],
        *,
        expected_version: int,
        evidence: bytes | None,
        token: int | None = None,
    ) -> int:
        if token is not None and self.lease_token not in (None, token):
            raise StaleToken(f"token {token} is not the lease's, {self.lease_token} is")
        row = self.rows.get(state.id)
        if row is None or row.version != expected_version:
            raise StaleWrite(f"rollout {state.id} is no longer at version {expected_version}; read it again")
        unread = self.commands(state.id, after_seq=state.commands_through)
        if unread and state.is_final and not row.state.is_final:
            raise UnreadCommand(f"rollout {state.id} got a command meanwhile")
        self.rows[state.id] = Stored(state, expected_version + 1, tuple(pending))
        if evidence is not None:
            self.evidences[state.id] = evidence
        self.commits += 1
        return expected_version + 1

    def commands(self, rollout: str, *, after_seq: int) -> tuple[ManualCommand, ...]:
        return tuple(command for command in self.queued.get(rollout, ()) if command.seq > after_seq)

    def create_rollout(self, state: RolloutState, *, request: str, at_s: float) -> int:
        for row in self.rows.values():
            if row.state.service == state.service and not row.state.is_final:
                raise RolloutRunning(f"{state.service} has rollout {row.state.id} running, one at a time")
        self.rows[state.id] = Stored(state, 0, ())
        return 0

    def append_command(
        self, rollout: str, kind: CommandKind, identity: Identity, *, reason: str, at_s: float
    ) -> int | None:
        if rollout not in self.rows:
            raise UnknownService(f"rollout {rollout} does not exist")
        if self.rows[rollout].state.is_final:
            return None
        seq = sum(len(commands) for commands in self.queued.values()) + 1
        command = ManualCommand(seq, kind, identity.name, identity.role.value, reason, at_s)
        self.queued.setdefault(rollout, []).append(command)
        return seq

    def evidence(self, rollout: str) -> bytes | None:
        return self.evidences.get(rollout)
