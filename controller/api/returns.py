"""Commands that return a service to an earlier version: rollback, undo, the end of a rollout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from controller.api.attempts import rejection
from controller.api.bodies import Outcome
from controller.api.keys import KeyProblem, require_key
from controller.api.undo import begin_undo, named_version, way_back, way_back_of
from controller.auth import Identity
from controller.errors import BadInput, Conflict, OlderDatabase
from controller.planning.capacity import Device, require_fit
from controller.rollout.observation import CommandKind
from controller.rollout.plan import ending_command, is_undo_id
from controller.rollout.ports import Clock
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.rollout.state import RolloutState
from controller.rollout.status import ended_effect, rollback_effect
from controller.runtime.newest_database import older_text
from controller.runtime.service_loop import LastTick
from controller.store.past import past_state
from controller.store.row_specs import fingerprint_of, version_spec
from controller.store.rows import RolloutRow, ServedRow, ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.store.statements import already_running, taken_back, unknown_rollout
from serving.credentials import KeyReference

SHOWN_ATTEMPTS = 100  # of a version, for the hint on how to go further back


class Ticks(Protocol):
    """Port: the ticks of the services (adapter: `runtime.runner`)."""

    def wake(self, service: str) -> None: ...
    def last_tick(self, service: str) -> LastTick: ...


class Host(Protocol):
    """Port: the part of `commands.Environment` that is used here."""

    def key_problem(self, reference: KeyReference) -> KeyProblem | None: ...
    def devices(self, *, restoring: str | None = None) -> Sequence[Device]: ...
    def is_newest(self, service: str) -> bool | None: ...


class Returns:
    """The commands. A repeated one, or one of another person at the same time, is answered `already`."""

    def __init__(self, store: SqlStore, host: Host, clock: Clock, ticks: Ticks) -> None:
        self._store = store
        self._host = host
        self._clock = clock
        self._ticks = ticks

    def rollback(self, service: str, identity: Identity, *, reason: str) -> Outcome:
        """Return to the version before: end a running rollout, undo one that succeeded.

        Raises UnknownService, and what `undo` raises.
        """
        self._require_kept(service)
        return _with_lost_reason(self._rollback(service, identity, reason=reason), reason)

    def _rollback(self, service: str, identity: Identity, *, reason: str) -> Outcome:
        newest = self._newest(service)
        try:
            state = self._running(newest)
        except UnreadableState:
            # It takes no more than the rollout's id to end it, by the release that can read it.
            return self._end_unread(service, identity, reason)
        row = self._store.service(service)  # after the rollout, whose step may have changed it
        effect = rollback_effect(state)
        if newest is not None and newest.is_final:
            effect = ended_effect(is_undo=is_undo_id(newest.id), serves=newest.canary == row.stable)
        if effect == "undo" and way_back(self._store.served(service), row.stable) is None:
            effect = "already"  # the rollout is of an earlier service of this name
        if effect == "undo":
            return self._undo(service, identity, to=None, reason=reason)
        if effect == "already" or state is None:
            if state is not None:
                return self._returning(state, way_back_of(state))
            return Outcome("already", f"{service}: already serving {row.stable}{self._hint(row)}")
        # None: it ended since it was read above, so answer for what is true now.
        return self._end(state, identity, reason) or self._rollback(service, identity, reason=reason)

    def _end_unread(self, service: str, identity: Identity, reason: str) -> Outcome:
        """Request the rollback of the newest rollout, whose state cannot be read. Raises UnreadableState
        when it has ended."""
        self._store.service(service)
        newest = next(iter(self._store.rollouts(service, limit=1)))
        command = None
        if newest.ended_at_s is None and not is_undo_id(newest.id):
            command = self._store.append_command(
                newest.id, CommandKind.ROLLBACK, identity, reason=reason, at_s=self._clock.now_s()
            )
        if command is None:
            state_from_json(newest.state)  # raises, with the remedy
        self._ticks.wake(service)
        text = f"{service}: rollback of {newest.id} is stored for a release that can read it"
        return Outcome("asked", text, newest.id)

    def end_rollout(self, rollout: str, identity: Identity, *, reason: str) -> Outcome:
        """Roll back this rollout; `already` when it has ended. Undoes nothing.

        Raises UnknownService, OlderDatabase.
        """
        row = self._store.rollout(rollout)
        if row is None:
            raise unknown_rollout(rollout)
        self._require_kept(row.service)
        state, ended = self._running(row), None
        if state is not None:
            if state.is_canary_leaving:
                return self._returning(state, state.stable.id)
            ended = self._end(state, identity, reason)
        service = self._store.service(row.service)
        return ended or Outcome("already", f"{service.name}: already serving {service.stable}")

    def undo(self, service: str, identity: Identity, *, to: str | None, reason: str) -> Outcome:
        """Serve an earlier version again, without proof. to: its name, its id or the beginning of it; None:
        the one before.

        A running rollout is rolled back instead if that returns to the same version. Raises UnknownService,
        BadInput for a version that has not served, NoRoom, RolloutRunning, Conflict without its API key,
        OlderDatabase.
        """
        self._require_kept(service)
        return _with_lost_reason(self._undo(service, identity, to=to, reason=reason), reason)

    def _undo(self, service: str, identity: Identity, *, to: str | None, reason: str) -> Outcome:
        running = self._running(self._newest(service))
        row, served = self._active_service(service), self._store.served(service)
        if running is not None:
            ended = self._undo_while(running, served, identity, to, reason)
            return ended or self._undo(service, identity, to=to, reason=reason)
        if to is not None:
            target: str | None = named_version(to, service, [one.version for one in served])
        else:
            target = way_back(served, row.stable)
        if target == row.stable:
            return Outcome("already", f"{service}: already serving {row.stable}{self._hint(row)}")
        version = next((one.version for one in served if one.version.id == target), None)
        if version is None:
            raise BadInput(f"{service} serves {row.stable} and has served no version before; deploy another")
        try:
            state = self._start_undo(row, version, identity, reason)
        except Conflict:
            # Of two people who undo at once, the second gets what it asked for too.
            if (already := self._done_by_another(service, version.id)) is not None:
                return already
            raise
        text = f"{service}: undo {state.id} to {version.id} begins (not proven){self.delay(service)}"
        return Outcome("asked", text, state.id, version.id)

    def _hint(self, row: ServiceRow) -> str:
        """How to go further back, for who is told that nothing is to be done; empty: there is no way."""
        further = self._further_back(row, self._store.served(row.name))
        return f"; to go further back: canaryctl undo {row.name} --to {further}" if further else ""

    def _further_back(self, row: ServiceRow, served: Sequence[ServedRow]) -> str | None:
        """The newest earlier version that was not rolled back since it served, and that nobody undid; or
        whose undo was for what serves now, which it had replaced by an undo itself."""
        for one in served:
            version = one.version.id
            if version == row.stable:
                continue
            attempts = self._attempts(row.name, version)
            may_return = one.undone is None or any(
                each.plan.undo and each.stable.id == row.stable and each.serving == version
                for each in attempts
            )
            if may_return and rejection(attempts) is None:
                return version
        return None

    def _undo_while(
        self,
        running: RolloutState,
        served: Sequence[ServedRow],
        identity: Identity,
        to: str | None,
        reason: str,
    ) -> Outcome | None:
        """Undo during a rollout: end it if that is where it leads. None: it has just ended by itself."""
        service = running.service
        target = way_back_of(running)
        if to is not None:
            known = {one.version.id: one.version for one in served}
            if (canary := self._store.version(service, running.canary.id)) is not None:
                known.setdefault(canary.id, canary)
            target = named_version(to, service, list(known.values()))
        is_returning = running.plan.undo or running.is_canary_leaving
        if is_returning and target in (way_back_of(running), self._heading(running)):
            return self._returning(running, target)
        if target != running.stable.id or running.is_canary_leaving:
            before = running.stable.id
            raise already_running(service, running.id, f"in {running.phase.value}", before=before)
        return self._end(running, identity, reason)

    def _done_by_another(self, service: str, target: str) -> Outcome | None:
        """The answer if another has just begun or completed the undo to `target`; None: no one has."""
        running = self._running(self._newest(service))
        if running is not None and running.plan.undo and running.canary.id == target:
            return self._returning(running, target)
        if self._store.service(service).stable == target:
            return Outcome("already", f"{service}: already serving {target}")
        return None

    def _start_undo(
        self, row: ServiceRow, version: VersionRow, identity: Identity, reason: str
    ) -> RolloutState:
        """version: the one to serve, as it served last."""
        stable = self._store.version(row.name, row.stable)
        if stable is None:
            raise Conflict(f"{row.name} has no stored version {row.stable}; restore the store")
        require_key(version, "earlier version", self._host.key_problem)
        if not version_spec(version).is_external:
            require_fit(
                version_spec(version), fingerprint_of(version), self._host.devices(restoring=row.name)
            )
        now_s = self._clock.now_s()
        state, request = begin_undo(row, stable, version, identity, reason, now_s=now_s)
        self._store.create_rollout(state, request=json.dumps(request), at_s=now_s, version=version)
        self._ticks.wake(row.name)
        return state

    def _end(self, state: RolloutState, identity: Identity, reason: str) -> Outcome | None:
        """Request the rollback of a running rollout; None: it has ended meanwhile."""
        command = self._store.append_command(
            state.id, CommandKind.ROLLBACK, identity, reason=reason, at_s=self._clock.now_s()
        )
        if command is None:
            return None
        self._ticks.wake(state.service)
        delay = self.delay(state.service)
        bypass = f"; or bypass it: canaryctl rollback {state.service} --direct" if delay else ""
        text = f"{state.service}: rollback of {state.id} to {state.stable.id} begins{delay}{bypass}"
        return Outcome("asked", text, state.id, state.stable.id)

    def delay(self, service: str) -> str:
        """Ends the answer to a command where ticks fail: when it is carried out; empty: at once."""
        problem = self._ticks.last_tick(service).problem
        return f" once the controller can act; now: {problem.text}" if problem is not None else ""

    def _returning(self, running: RolloutState, wanted: str) -> Outcome:
        """The answer while a rollout already returns to the wanted version. Raises RolloutRunning where it
        is an undo that does so no more."""
        service = running.service
        if (heading := self._heading(running)) != wanted:
            raise taken_back(service, running.id, wanted, heading)
        problem = self._ticks.last_tick(service).problem
        now = f"; now: {problem.text}" if problem is not None else ""
        end_it = ""
        if running.plan.undo and heading != running.stable.id:  # a second way back does not end the first
            command = ending_command(service, running.id, before=running.stable.id)
            end_it = f"; to end that and keep {running.stable.id}: {command}"
        text = f"{service} is returning to {heading} already{now}{end_it}"
        return Outcome("already", text, running.id, wanted)

    def _heading(self, running: RolloutState) -> str:
        """The version that a rollout which returns to one leads to, by its departure and by what was asked
        since the last tick."""
        asked = self._store.commands(running.id, after_seq=running.commands_through)
        if any(one.kind is CommandKind.ROLLBACK for one in asked):
            return running.stable.id
        return running.serving if running.departure is not None else way_back_of(running)

    def _require_kept(self, service: str) -> None:
        """Raises OlderDatabase where a command would be lost with the database that it is stored in.

        The route table is asked for each command: a controller that does not lead, or has not ticked yet,
        knows nothing of it, and a person may have accepted the database since the last tick. Where the table
        does not answer, the last tick tells.
        """
        problem = self._ticks.last_tick(service).problem
        is_newest = self._host.is_newest(service)
        if is_newest is None:
            is_newest = problem is None or not problem.loses_commands
        if not is_newest:
            why = problem.text if problem is not None and problem.loses_commands else older_text(service)
            raise OlderDatabase(
                f"nothing was changed, for it would be lost with this database: {why}; to take a canary's "
                f"traffic away now: canaryctl rollback {service} --direct"
            )

    def _active_service(self, service: str) -> ServiceRow:
        row = self._store.service(service)
        if row.removing:
            raise Conflict(f"{service} is being taken down; wait until it is gone, then canaryctl up")
        return row

    def _newest(self, service: str) -> RolloutRow | None:
        return next(iter(self._store.rollouts(service, limit=1)), None)

    def _running(self, newest: RolloutRow | None) -> RolloutState | None:
        """The newest rollout while it runs; None: none does. Raises UnreadableState."""
        return None if newest is None or newest.is_final else state_from_json(newest.state)

    def _attempts(self, service: str, canary: str) -> tuple[RolloutState, ...]:
        """The newest rollouts of this version that can be read, newest first."""
        states = map(past_state, self._store.attempts(service, canary, limit=SHOWN_ATTEMPTS))
        return tuple(state for state in states if state is not None)


def _with_lost_reason(outcome: Outcome, reason: str) -> Outcome:
    """The outcome; it says so where nothing is begun whose log could hold the reason."""
    if outcome.outcome != "already" or not reason:
        return outcome
    return outcome._replace(text=f"{outcome.text}; nothing is begun, so the reason is not kept")
