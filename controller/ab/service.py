"""A/B tests of a controller: create, tick, status, stop.

`tick` runs with every measurement of the service and stores the outcomes that have settled. A test ends when
a user stops it, when its duration is over, or when its rollout ends (a guard or a gate removed B). The stored
outcomes are authoritative: a second controller replays them.

Invariants: no fault in a test reaches its service, and no tick waits for another service's test, nor for a
replay; a test ends its own rollout and no other.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from controller import telemetry
from controller.ab.outcomes import MAX_PENDING, OutcomeLedger
from controller.ab.results import AbEvaluator, AbView, ab_view
from controller.ab.spec import AbSpec, parse_ab
from controller.auth import Identity, Role
from controller.errors import (
    BadInput,
    CanaryctlError,
    Conflict,
    RolloutRunning,
    StaleWrite,
    Unreachable,
)
from controller.evidence.reader import JoinedPage, RecordsReader
from controller.evidence.score_join import JOIN_WINDOW_S
from controller.quantities import duration
from controller.rollout.ports import Clock
from controller.rollout.state import Phase, RolloutState
from controller.spec.label import LABEL_KEYS
from controller.spec.policy import PolicySpec
from controller.store.ab import AbStore
from controller.store.rows import AbRow

_SUBSCRIBER = "ab"
_SELF = Identity("controller", Role.OPERATOR)
REPLAY_WAIT_S = 0.2  # of a tick; 200,000 outcomes take seconds
STATUS_WAIT_S = 10.0  # of a request, for the replay; less than the command line waits
RETRY_AFTER_S = 2


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
    def end_rollout(self, rollout: str, identity: Identity, *, reason: str) -> Ended: ...


class _Replay:
    """One test rebuilt from the store: ledger, evaluator, and its subscription to the records log.

    `lock` is held while outcomes are added and while the result is read.
    """

    join_s = JOIN_WINDOW_S
    join_ids = 2 * MAX_PENDING

    def __init__(self, row: AbRow, store: AbStore) -> None:
        self.lock = threading.Lock()
        self.row = row
        self._spec = AbSpec.model_validate_json(row.spec)
        self.evaluator = AbEvaluator(self._spec)
        self.count = 0
        self._counted: set[int] = set()  # units
        self.reader: RecordsReader | None = None  # None: not subscribed yet
        self.fault: Exception | None = None  # None: every page so far was consumed
        self._low_watermark_s = self._now_s = 0.0
        self._add(row, store)

    def follow(self, row: AbRow, store: AbStore) -> bool:
        """Add what the controller that leads has stored since. `lock` MUST be held.

        False: this one has counted from the log too, and another controller has written: replay it anew.
        """
        if self.stored != (row.resume_seq, row.settled_through_s):
            if self.reader is not None:
                return False
            self._add(row, store)
        return True

    def _add(self, row: AbRow, store: AbStore) -> None:
        new = store.outcomes(row.id, first=self.count)
        self.evaluator.add(new)
        self.count += len(new)
        self._counted |= {outcome.unit for outcome in new}
        self.seq = row.resume_seq
        self.stored = (row.resume_seq, row.settled_through_s)
        spec = self._spec
        self.ledger = OutcomeLedger(
            row.rollout, spec.metric, spec.score_wait, row.settled_through_s, set(self._counted)
        )

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
        """rollout_of: the rollout of this id as last committed; None: there is none, or it has ended and
        another release wrote it."""
        self._store = store
        self._rollout_of = rollout_of
        self._rollouts = rollouts
        self._clock = clock
        self._replays: dict[str, _Replay] = {}  # by service: its newest test
        self._building: dict[str, tuple[str, Future[_Replay]]] = {}  # by service, with the test's id
        self._builders = ThreadPoolExecutor(2, thread_name_prefix="ab-replay")
        self._faults: dict[str, str] = {}  # by service: the current fault, so that it is logged once
        self._lock = threading.Lock()  # of the two maps above; held for no longer than a look-up

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

        made: list[AbRow] = []

        def test_on(rollout: str) -> AbRow:
            made.append(AbRow(id, service, rollout, stored, self._clock.now_s(), ended_at_s=None))
            return made[-1]

        try:
            body = {**spec.deploy_body(), **label}
            state = self._rollouts.deploy(service, body, identity, ab_test=test_on)
        except RolloutRunning as exc:
            raise RolloutRunning(f"an A/B test deploys B as the canary: {exc}") from exc
        try:
            return self.status(service)
        except CanaryctlError as exc:  # it has begun all the same
            telemetry.warning("an A/B test that has begun is not read back", test=id, why=str(exc))
            return ab_view(made[-1], AbEvaluator(spec), state)

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
        """The service's newest test. Raises BadInput when it never had one, Unreachable while it is replayed
        from the store for over `STATUS_WAIT_S`."""
        ends_at_s = time.monotonic() + STATUS_WAIT_S
        while True:
            replay = self._replayed(service, ends_at_s)
            with replay.lock:
                row = self._newest(service)  # within the lock: this controller's tick writes it
                if replay.row.id == row.id and replay.follow(row, self._store):
                    left_out = replay.ledger.left_out
                    return ab_view(row, replay.evaluator, self._rollout_of(row.rollout), left_out=left_out)
            self._forget(replay)

    def _replayed(self, service: str, ends_at_s: float) -> _Replay:
        """The service's newest test, once it is replayed. Raises Unreachable."""
        row = self._newest(service)
        try:
            return self._replay(row).result(max(0.0, ends_at_s - time.monotonic()))
        except TimeoutError as exc:
            raise Unreachable(
                f"A/B test {row.id} is being read from the store, which takes over {STATUS_WAIT_S:g} s; it "
                "goes on, ask again later",
                retry_after_s=RETRY_AFTER_S,
            ) from exc

    def stop(self, service: str, identity: Identity) -> tuple[str, str]:
        """End the test and roll B back: ('asked' | 'already', one line). The result stays readable."""
        row = self._newest(service)
        if row.ended_at_s is not None:
            return "already", f"{service}: A/B test {row.id} has ended already"
        if self._is_over(row):
            outcome, text = "already", "its rollout has ended"
        else:
            ended = self._rollouts.end_rollout(row.rollout, identity, reason=f"A/B test {row.id} stopped")
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
        row = self._store.newest(service)
        if row is None or row.ended_at_s is not None:
            reader.unsubscribe(_SUBSCRIBER)
            return
        building = self._replay(row)
        wait([building], REPLAY_WAIT_S)
        if not building.done():
            return  # what the log holds meanwhile is read from `resume_seq` on
        replay = building.result()
        if replay.reader not in (None, reader):
            # A new reader knows no request yet that a score may refer to: read again from `resume_seq`.
            self._forget(replay)
            self._tick(service, reader, now_s)
            return
        if replay.lock.acquire(blocking=False):  # else a status is computed: the next tick settles
            try:
                if not replay.follow(row, self._store):
                    raise StaleWrite(f"another controller writes the A/B test {row.id}; replaying it")
                replay.reader = reader
                reader.subscribe(_SUBSCRIBER, replay)
                replay.settle(self._store, reader)
            finally:
                replay.lock.release()
        self._end_if_over(row, replay.evaluator.spec.duration, now_s)

    def _end_if_over(self, row: AbRow, length_s: float, now_s: float) -> None:
        """End a test whose rollout has ended, or which B has been served for long enough."""
        rollout = self._rollout_of(row.rollout)
        if rollout is None or rollout.is_final:
            self._store.end(row.id, at_s=now_s)
        elif served_s(rollout) >= length_s:
            reason = f"A/B test {row.id} is over after {duration(length_s)}"
            self._rollouts.end_rollout(row.rollout, _SELF, reason=reason)
            self._store.end(row.id, at_s=now_s)

    def _replay(self, row: AbRow) -> Future[_Replay]:
        """The row's test, which may still be replayed from the store, in a thread of its own."""
        with self._lock:
            known = self._replays.get(row.service)
            if known is not None and known.row.id == row.id:
                done: Future[_Replay] = Future()
                done.set_result(known)
                return done
            building = self._building.get(row.service)
            if building is None or building[0] != row.id:
                building = (row.id, self._builders.submit(self._build, row))
                self._building[row.service] = building
            return building[1]

    def _build(self, row: AbRow) -> _Replay:
        try:
            replay = _Replay(row, self._store)
            with self._lock:
                self._replays[row.service] = replay
            return replay
        finally:
            with self._lock:
                if self._building.get(row.service, ("", None))[0] == row.id:
                    del self._building[row.service]

    def _forget(self, replay: _Replay) -> None:
        """Replay the test anew the next time."""
        with self._lock:
            if self._replays.get(replay.row.service) is replay:
                del self._replays[replay.row.service]


def served_s(rollout: RolloutState) -> float:
    """For how long B has had its share, in seconds of the rollout's own time: neither what a set clock seems
    to add nor what no controller saw counts (`rollout/elapsed.py`). 0.0: it has not yet, or no more."""
    if rollout.phase is not Phase.STAGE or rollout.acked_at_s is None:
        return 0.0
    return rollout.ticked_at_s - rollout.acked_at_s
