"""A/B tests on a controller: begin, look, show, end.

`look` is called with every tick of the service; it reads what is new in the log and appends what has settled.
A test ends when someone stops it, when its time is over, or when its rollout ends (a guard or a gate took B
away). What is stored is the truth: of two controllers, the one that comes after replays it.

Invariant: whatever is wrong with a test, its service goes on.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from controller import telemetry
from controller.ab.outcomes import OutcomeLedger
from controller.ab.spec import AbEvaluator, AbView, ab_view, parse_ab
from controller.auth import Identity, Role
from controller.errors import BadInput, Conflict, RolloutRunning
from controller.evidence.feed import PAGE_EVENTS, PAGES_A_TICK, RecordsLog
from controller.quantities import duration
from controller.rollout.ports import Clock
from controller.rollout.state import RolloutState
from controller.spec.policy import PolicySpec
from controller.store.ab import AbRow, AbStore
from serving.messages import RequestRecord

_SHOWN = ("id", "service", "rollout", "created_at_s", "ended_at_s")
_SELF = Identity("controller", Role.OPERATOR)


class Rollouts(Protocol):
    """Who begins and ends rollouts."""

    def policy(self, service: str) -> PolicySpec: ...
    def deploy(self, service: str, body: Mapping[str, Any], identity: Identity) -> RolloutState: ...
    def rollback(self, service: str, identity: Identity, *, reason: str) -> tuple[str, str]: ...


class _Reading:
    """One test under way: its book, its judge, and how far they are."""

    def __init__(self, row: AbRow, store: AbStore) -> None:
        before = store.outcomes(row.id)
        self.row = row
        self.evaluator = AbEvaluator(row.spec, before)
        self.count = len(before)
        self.seq = row.resume_seq
        self.written = (row.resume_seq, row.settled_through_s)
        self.book = OutcomeLedger(
            row.rollout,
            row.spec.metric,
            row.spec.score_wait,
            row.settled_through_s,
            {outcome.unit for outcome in before},
        )


class AbTests:
    """All A/B tests of one controller. Safe to use from several threads."""

    def __init__(
        self,
        store: AbStore,
        rollouts: Rollouts,
        log: RecordsLog,
        clock: Clock,
        *,
        rollout_of: Callable[[str], RolloutState | None],
    ) -> None:
        """rollout_of: the rollout of this id as last committed; None: there is none."""
        self._store = store
        self._rollout_of = rollout_of
        self._rollouts = rollouts
        self._log = log
        self._clock = clock
        self._readings: dict[str, _Reading] = {}  # by service: its newest test's
        self._complained: dict[str, str] = {}  # by service: what fails now, so that the log hears of it once
        self._lock = threading.Lock()

    def create(self, service: str, body: Mapping[str, Any], identity: Identity) -> AbView:
        """Begin a test: deploy B with its share. Raises BadSpec, Conflict and what a deploy raises."""
        spec = parse_ab(body)
        newest = self._store.newest(service)
        if newest is not None and newest.ended_at_s is None and not self._is_over(newest):
            raise Conflict(
                f"{service} has A/B test {newest.id}, one at a time; end it: canaryctl ab stop {service}"
            )
        if spec.policy is None:
            spec = spec.model_copy(update={"policy": self._rollouts.policy(service)})
        try:
            rollout = self._rollouts.deploy(service, spec.deploy_body(), identity)
        except RolloutRunning as exc:
            raise RolloutRunning(f"an A/B test needs the canary's place: {exc}") from exc
        now_s = self._clock.now_s()
        if newest is not None:
            self._store.end(newest.id, at_s=now_s)
        row = AbRow(f"ab-{secrets.token_hex(4)}", service, rollout.id, spec, now_s, None)
        self._store.create(row)
        return self.status(service)

    def look(self, service: str, now_s: float) -> None:
        """Read what is new in the service's log and count what has settled; does nothing without a test."""
        try:
            self._look(service, now_s)
        except Exception as exc:  # noqa: BLE001 - this runs in the service's own tick, which must go on
            with self._lock:
                self._readings.pop(service, None)  # another may have written: begin again from the store
            if self._complained.get(service) != str(exc):
                telemetry.alarm("the A/B test could not be looked at, trying again", exc, service=service)
            self._complained[service] = str(exc)
        else:
            self._complained.pop(service, None)

    def status(self, service: str) -> AbView:
        """The service's newest test. Raises BadInput when it never had one."""
        with self._lock:
            row = self._newest(service)
            named = {name: getattr(row, name) for name in _SHOWN}
            evaluator = self._reading(row).evaluator
            return ab_view(named, row.spec, evaluator, self._rollout_of(row.rollout))

    def stop(self, service: str, identity: Identity) -> tuple[str, str]:
        """End the test and take B away: ('asked' | 'already', one line). The result stays readable."""
        row = self._newest(service)
        if row.ended_at_s is not None:
            return "already", f"{service}: A/B test {row.id} has ended already"
        if self._is_over(row):
            outcome, text = "already", "its rollout has ended"
        else:
            outcome, text = self._rollouts.rollback(service, identity, reason=f"A/B test {row.id} stopped")
        self._store.end(row.id, at_s=self._clock.now_s())
        return outcome, f"{service}: A/B test {row.id} stopped; {text.removeprefix(f'{service}: ')}"

    def _newest(self, service: str) -> AbRow:
        row = self._store.newest(service)
        if row is None:
            raise BadInput(
                f"{service} never had an A/B test; begin one: canaryctl ab create {service} --model DIR"
            )
        return row

    def _is_over(self, row: AbRow) -> bool:
        rollout = self._rollout_of(row.rollout)
        return rollout is None or rollout.is_final

    def _look(self, service: str, now_s: float) -> None:
        with self._lock:
            row = self._store.newest(service)
            if row is None or row.ended_at_s is not None:
                return
            self._read(self._reading(row), now_s)
        if self._is_over(row):
            self._store.end(row.id, at_s=now_s)
        elif now_s - row.created_at_s >= row.spec.duration:
            reason = f"A/B test {row.id} is over after {duration(row.spec.duration)}"
            self._rollouts.rollback(service, _SELF, reason=reason)
            self._store.end(row.id, at_s=now_s)

    def _reading(self, row: AbRow) -> _Reading:
        """What is known of the row's test; replayed when another controller has written since."""
        known = self._readings.get(row.service)
        is_current = known is not None and known.row.id == row.id
        if known is None or not is_current or known.written != (row.resume_seq, row.settled_through_s):
            known = self._readings[row.service] = _Reading(row, self._store)
        return known

    def _read(self, reading: _Reading, now_s: float) -> None:
        through_s = 0.0
        for _ in range(PAGES_A_TICK):
            page = self._log.read(reading.row.service, after_seq=reading.seq, limit=PAGE_EVENTS)
            if page is None:
                return
            for event in page.events:
                if isinstance(event, RequestRecord):
                    reading.book.add_request(event)
                else:
                    reading.book.add_score(event)
            for span in page.lost:
                reading.book.drop_span(span.since_s, span.until_s)
            reading.seq, through_s = page.next_seq, page.low_watermark_s
            if len(page.events) < PAGE_EVENTS:
                break
        due = reading.book.settle(through_s, now_s)
        if not due:
            return
        resume_seq, settled_through_s = reading.book.resume_seq(reading.seq), reading.book.settled_through_s
        self._store.append(
            reading.row.id,
            due,
            first=reading.count,
            resume_seq=resume_seq,
            settled_through_s=settled_through_s,
        )
        reading.written = (resume_seq, settled_through_s)
        reading.count += len(due)
        reading.evaluator.add(due)
