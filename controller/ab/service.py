"""A/B tests of a controller: create, tick, status, stop.

`tick` runs with every measurement of the service and stores the outcomes that have settled. A test ends when
a user stops it, when its duration is over, or when its rollout ends (a guard or a gate removed B). The stored
outcomes are authoritative: a second controller replays them.

Invariant: no fault in a test reaches its service.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from controller import telemetry
from controller.ab.outcomes import MAX_PENDING, OutcomeLedger
from controller.ab.results import AbEvaluator, AbView, ab_view
from controller.ab.spec import AbSpec, parse_ab
from controller.auth import Identity, Role
from controller.errors import BadInput, Conflict, RolloutRunning
from controller.evidence.reader import JoinedPage, RecordsReader
from controller.evidence.score_join import JOIN_WINDOW_S
from controller.quantities import duration
from controller.rollout.ports import Clock
from controller.rollout.state import RolloutState
from controller.spec.label import LABEL_KEYS
from controller.spec.policy import PolicySpec
from controller.store.ab import AbStore
from controller.store.rows import AbRow

_SUBSCRIBER = "ab"
_SELF = Identity("controller", Role.OPERATOR)


class Ended(Protocol):
    """Outcome of ending a rollout: 'asked' or 'already', and one line."""

    @property
    def outcome(self) -> str: ...
    @property
    def text(self) -> str: ...


class Rollouts(Protocol):
    """Starts and rolls back rollouts."""

    def policy(self, service: str) -> PolicySpec: ...
    def deploy(
        self,
        service: str,
        body: Mapping[str, Any],
        identity: Identity,
        *,
        ab_test: Callable[[str], AbRow] | None,
    ) -> RolloutState: ...
    def end_rollout(self, service: str, identity: Identity, *, reason: str) -> Ended: ...


class _Replay:
    """One test rebuilt from the store: ledger, evaluator, and its subscription to the records log."""

    join_s = JOIN_WINDOW_S
    join_ids = 2 * MAX_PENDING

    def __init__(self, row: AbRow, store: AbStore) -> None:
        before = store.outcomes(row.id)
        self.row = row
        spec = AbSpec.model_validate_json(row.spec)
        self.evaluator = AbEvaluator(spec, before)
        self.count = len(before)
        self.seq = row.resume_seq
        self.stored = (row.resume_seq, row.settled_through_s)
        self.reader: RecordsReader | None = None  # None: not subscribed yet
        self.fault: Exception | None = None  # None: every page so far was consumed
        counted = {outcome.unit for outcome in before}
        self.ledger = OutcomeLedger(row.rollout, spec.metric, spec.score_wait, row.settled_through_s, counted)
        self._low_watermark_s = self._now_s = 0.0

    def on_page(self, page: JoinedPage, now_s: float) -> None:
        """Consume one page. A fault is kept for `tick`: the other subscribers must go on."""
        try:
            for event in page.events:
                if event.is_new:
                    self.ledger.add_request(event.request)
                for score in event.scores:
                    self.ledger.add_score(score, event.request.request_id)
            for span in page.lost:
                self.ledger.drop_span(span.since_s, span.until_s)
        except Exception as exc:  # noqa: BLE001 - this runs in the service's own tick, which must go on
            self.fault = exc
        self._low_watermark_s, self._now_s = page.low_watermark_s, now_s

    def settle(self, store: AbStore, reader: RecordsReader) -> None:
        """Store and evaluate the outcomes that are due."""
        if self.fault is not None:
            raise self.fault
        due = self.ledger.settle(self._low_watermark_s, self._now_s)
        self.evaluator.note_crossed(len(self.ledger.crossed))
        if not due:
            return
        seq, through_s = self.ledger.resume_seq(reader.resume_seq(self.seq)), self.ledger.settled_through_s
        store.append(self.row.id, due, first=self.count, resume_seq=seq, settled_through_s=through_s)
        self.stored = (seq, through_s)
        self.count += len(due)
        self.evaluator.add(due)


class AbTests:
    """All A/B tests of one controller. Safe to use from several threads."""

    def __init__(
        self,
        store: AbStore,
        rollouts: Rollouts,
        clock: Clock,
        *,
        rollout_of: Callable[[str], RolloutState | None],
    ) -> None:
        """rollout_of: the rollout of this id as last committed; None: there is none."""
        self._store = store
        self._rollout_of = rollout_of
        self._rollouts = rollouts
        self._clock = clock
        self._replays: dict[str, _Replay] = {}  # by service: its newest test
        self._faults: dict[str, str] = {}  # by service: the current fault, so that it is logged once
        self._lock = threading.Lock()

    def create(self, service: str, body: Mapping[str, Any], identity: Identity) -> AbView:
        """Start a test: deploy B with its share. Raises BadSpec, Conflict and what a deploy raises."""
        label = {key: body[key] for key in LABEL_KEYS if key in body}
        spec = parse_ab({key: value for key, value in body.items() if key not in LABEL_KEYS})
        newest = self._store.newest(service)
        if newest is not None and newest.ended_at_s is None and not self._is_over(newest):
            raise Conflict(
                f"{service} has A/B test {newest.id}, one at a time; end it: canaryctl ab stop {service}"
            )
        if spec.policy is None:
            spec = spec.model_copy(update={"policy": self._rollouts.policy(service)})
        id, stored = f"ab-{secrets.token_hex(4)}", spec.model_dump_json()

        def test_on(rollout: str) -> AbRow:
            return AbRow(id, service, rollout, stored, self._clock.now_s(), ended_at_s=None)

        try:
            body = {**spec.deploy_body(), **label}
            self._rollouts.deploy(service, body, identity, ab_test=test_on)
        except RolloutRunning as exc:
            raise RolloutRunning(f"an A/B test deploys B as the canary: {exc}") from exc
        return self.status(service)

    def tick(self, service: str, reader: RecordsReader, now_s: float) -> None:
        """Settle what the reader has delivered; end a test that is over. Does nothing without a test."""
        try:
            self._tick(service, reader, now_s)
        except Exception as exc:  # noqa: BLE001 - this runs in the service's own tick, which must go on
            with self._lock:
                self._replays.pop(service, None)  # another controller may have written: replay the store
            reader.unsubscribe(_SUBSCRIBER)
            if self._faults.get(service) != str(exc):
                telemetry.error("the A/B test's tick failed, trying again", exc, service=service)
            self._faults[service] = str(exc)
        else:
            self._faults.pop(service, None)

    def status(self, service: str) -> AbView:
        """The service's newest test. Raises BadInput when it never had one."""
        with self._lock:
            row = self._newest(service)
            replay = self._replay(row)
            rollout = self._rollout_of(row.rollout)
            return ab_view(row, replay.evaluator, rollout, left_out=replay.ledger.left_out)

    def stop(self, service: str, identity: Identity) -> tuple[str, str]:
        """End the test and roll B back: ('asked' | 'already', one line). The result stays readable."""
        row = self._newest(service)
        if row.ended_at_s is not None:
            return "already", f"{service}: A/B test {row.id} has ended already"
        if self._is_over(row):
            outcome, text = "already", "its rollout has ended"
        else:
            ended = self._rollouts.end_rollout(service, identity, reason=f"A/B test {row.id} stopped")
            outcome, text = ended.outcome, ended.text
        self._store.end(row.id, at_s=self._clock.now_s())
        return outcome, f"{service}: A/B test {row.id} stopped; {text.removeprefix(f'{service}: ')}"

    def _newest(self, service: str) -> AbRow:
        row = self._store.newest(service)
        if row is None:
            raise BadInput(
                f"{service} never had an A/B test; start one: canaryctl ab create {service} --model DIR"
            )
        return row

    def _is_over(self, row: AbRow) -> bool:
        rollout = self._rollout_of(row.rollout)
        return rollout is None or rollout.is_final

    def _tick(self, service: str, reader: RecordsReader, now_s: float) -> None:
        with self._lock:
            row = self._store.newest(service)
            if row is None or row.ended_at_s is not None:
                reader.unsubscribe(_SUBSCRIBER)
                return
            replay = self._replay(row)
            if replay.reader is not None and replay.reader is not reader:
                # A new reader knows no request yet that a score may refer to: read again from `resume_seq`.
                replay = self._replays[service] = _Replay(row, self._store)
            replay.reader = reader
            reader.subscribe(_SUBSCRIBER, replay)
            replay.settle(self._store, reader)
        if self._is_over(row):
            self._store.end(row.id, at_s=now_s)
        elif now_s - row.created_at_s >= (length_s := replay.evaluator.spec.duration):
            reason = f"A/B test {row.id} is over after {duration(length_s)}"
            self._rollouts.end_rollout(service, _SELF, reason=reason)
            self._store.end(row.id, at_s=now_s)

    def _replay(self, row: AbRow) -> _Replay:
        """The row's test; replayed from the store when another controller has written since."""
        replay = self._replays.get(row.service)
        stored = (row.resume_seq, row.settled_through_s)
        if replay is None or replay.row.id != row.id or replay.stored != stored:
            replay = self._replays[row.service] = _Replay(row, self._store)
        return replay
