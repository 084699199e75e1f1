"""A/B tests of a running service: create, tick, stop, and what survives a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.ab import service
from controller.ab.outcomes import OutcomeLedger
from controller.ab.results import AbEvaluator, AbView
from controller.ab.service import AbTests
from controller.ab.spec import parse_ab
from controller.api.bodies import Outcome
from controller.auth import Identity, Role
from controller.errors import BadInput, Conflict, RolloutRunning, Unreachable
from controller.evidence.reader import RecordsReader
from controller.rollout.state import Cause, CauseKind, Phase, RolloutState
from controller.spec.policy import PolicySpec
from controller.spec.service import parse_policy
from controller.store.ab import AbStore
from controller.store.rows import AbOutcome, AbRow, ServiceRow, VersionRow
from controller.store.sql import SqlStore
from serving.messages import Event, LostSpan, RecordPage, ScoreRecord
from tests.database_rig import sqlite_url
from tests.fakes.ab_maker import BODY, JoinedLedger, consume, request
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

ADMIN = Identity("ada", Role.ADMIN)
CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)


class Log:
    """A records log in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lost: tuple[LostSpan, ...] = ()
        self.low_watermark_s = 1e9

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        new = [event for event in self.events if event.seq > after_seq][:limit]
        return RecordPage(tuple(new), new[-1].seq if new else after_seq, self.lost, self.low_watermark_s)


class Rollouts:
    """Starts every rollout, with its test, in its stage at once."""

    store: SqlStore

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.is_over, self.reason = False, "asked"
        self.acked_at_s: float | None = 1.0
        self.ticked_at_s = 1.0  # by the rollout's own time
        self.ended: list[str] = []  # rollouts
        self.is_running = False
        self.service_policy = PolicySpec()

    def policy(self, service: str) -> PolicySpec:
        return self.service_policy

    def deploy(
        self,
        service: str,
        body: Mapping[str, Any],
        identity: Identity,
        *,
        ab_test: Callable[[str], AbRow] | None = None,
    ) -> Any:
        if self.is_running:
            raise RolloutRunning(f"{service} has rollout r-0")
        self.bodies.append(body)
        for running in self.store.running(service):  # of the test before, which has ended
            stored = self.store.load(running)
            assert stored is not None
            ended = replace(stored.state, phase=Phase.FAILED)
            self.store.commit(ended, (), expected_version=stored.version, evidence=None)
        id = f"r-{len(self.store.rollouts(service)) + 1}"
        test = ab_test(id) if ab_test is not None else None
        self.store.create_rollout(a_rollout(id), request="{}", at_s=5000.0, ab_test=test)
        return a_rollout(id)

    def end_rollout(self, rollout: str, identity: Identity, *, reason: str) -> Outcome:
        self.is_over, self.reason = True, reason
        self.ended.append(rollout)
        return Outcome("asked", "chat: rollback begins")

    def load(self, rollout: str) -> RolloutState:
        state = replace(
            a_rollout(rollout), phase=Phase.STAGE, acked_at_s=self.acked_at_s, ticked_at_s=self.ticked_at_s
        )
        cause = Cause(CauseKind.USER, self.reason)
        return replace(state, phase=Phase.ROLLED_BACK, cause=cause) if self.is_over else state


class Controller(AbTests):
    """A controller's A/B tests, with the reader of its service."""

    def __init__(self, log: Log, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reader = RecordsReader("chat", log)

    def poll(self, service: str, now_s: float) -> None:
        self.tick(service, self.reader, now_s)  # subscribes a new test
        self.reader.poll(now_s)
        self.tick(service, self.reader, now_s)


class Bench:
    """One controller over a database file."""

    def __init__(self, path: Path) -> None:
        self.log, self.rollouts, self.clock = Log(), Rollouts(), SimpleNamespace(now_s=lambda: 5000.0)
        self.path = path
        self.tests = self.restarted()

    def restarted(self) -> Controller:
        store = self.rollouts.store = SqlStore(sqlite_url(self.path / "ab.db"))
        if not store.services():
            store.put_service(CHAT, VersionRow("chat", STABLE, "{}", "{}", 1.0))
        return Controller(
            self.log, AbStore(store.database), self.rollouts, self.clock, rollout_of=self.rollouts.load
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def scored(n: int, seed: int = 0) -> list[Event]:
    """Requests and their scores; B (arm 1) is clearly better."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for i in range(n):
        arm = int(rng.random() < 0.5)
        events.append(request(2 * i + 1, arm=arm, at_s=float(i)))
        score = float(rng.random() < (0.9 if arm else 0.5))
        events.append(ScoreRecord(2 * i + 2, f"a{2 * i + 1}", "quality", score, i + 1.0))
    return events


@pytest.mark.slow
def test_a_better_b_is_found_from_the_log(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = scored(400)
    bench.tests.poll("chat", now_s=5000.0)

    view = bench.tests.status("chat")
    assert view.verdict == "b better"
    assert view.n_a + view.n_b == 400


def test_b_gets_its_share_and_is_never_promoted_by_the_test(bench: Bench) -> None:
    bench.tests.create("chat", BODY | {"split": "30%", "duration": "2h"}, ADMIN)

    [body] = bench.rollouts.bodies
    [stage] = parse_policy(body["policy"]).stages or ()
    assert (stage.bp, stage.duration, stage.margins) == (3000, 7200.0, {})
    assert stage.deadline is not None
    assert stage.deadline > stage.duration  # the test itself ends it
    assert stage.min_canary >= 10**9


@pytest.mark.slow
def test_a_restart_continues_with_the_same_result(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    events = scored(400)
    bench.log.events, bench.log.low_watermark_s = events[:301], 151.0
    bench.tests.poll("chat", now_s=160.0)
    assert 0 < bench.tests.status("chat").n_a < 150
    restarted = bench.restarted()
    bench.log.events, bench.log.low_watermark_s = events, 1e9
    restarted.poll("chat", now_s=5000.0)
    undisturbed = AbEvaluator(parse_ab(BODY))
    ledger = JoinedLedger("r-1", "quality", 600.0)
    consume(ledger, events)
    undisturbed.add(ledger.settle(1e9, 5000.0))

    view, expected = restarted.status("chat"), undisturbed.result()
    assert (view.n_a, view.n_b, view.p_value) == (expected.n_a, expected.n_b, expected.p_value)


@pytest.mark.slow
def test_a_new_reader_finds_requests_that_still_wait_for_their_score(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    events = scored(400)
    bench.log.events, bench.log.low_watermark_s = events[:301], 151.0
    bench.tests.poll("chat", now_s=160.0)
    bench.tests.reader = RecordsReader("chat", bench.log)  # of the next lease term
    bench.log.events, bench.log.low_watermark_s = events, 1e9
    bench.tests.poll("chat", now_s=5000.0)

    view = bench.tests.status("chat")
    assert (view.n_a + view.n_b, view.missing_a + view.missing_b) == (400, 0)


@pytest.mark.slow
def test_the_result_stays_readable_after_stop(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = scored(400)
    bench.tests.poll("chat", now_s=5000.0)

    assert bench.tests.stop("chat", ADMIN)[0] == "asked"
    assert bench.tests.stop("chat", ADMIN)[0] == "already"
    assert bench.tests.status("chat").verdict == "b better"


@pytest.mark.slow
def test_a_second_controller_continues_the_test(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    events = scored(400)
    standby = bench.restarted()
    assert standby.status("chat").n_a == 0
    bench.log.events, bench.log.low_watermark_s = events[:300], 150.0
    bench.tests.poll("chat", now_s=160.0)

    view = standby.status("chat")
    assert view.n_a + view.n_b == 150
    bench.log.events, bench.log.low_watermark_s = events, 1e9
    standby.poll("chat", now_s=500.0)
    view = standby.status("chat")
    assert view.n_a + view.n_b == 400


@pytest.mark.slow
def test_two_controllers_that_both_write_lose_nothing(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events, bench.log.low_watermark_s = scored(100), 1e9
    stale = bench.restarted()
    stale.status("chat")
    append = AbStore.append

    def append_after_another(self: AbStore, *args: Any, **kwargs: Any) -> None:
        AbStore.append = append  # type: ignore[method-assign]
        bench.tests.poll("chat", now_s=500.0)
        append(self, *args, **kwargs)

    AbStore.append = append_after_another  # type: ignore[method-assign]
    try:
        stale.poll("chat", now_s=500.0)
    finally:
        AbStore.append = append  # type: ignore[method-assign]
    stale.poll("chat", now_s=501.0)

    view = stale.status("chat")
    assert view.n_a + view.n_b == 100


def test_a_fault_in_a_test_does_not_reach_the_services_tick(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = scored(40)
    with monkeypatch.context() as broken:
        broken.setattr(OutcomeLedger, "add_request", lambda *_, **__: 1 / 0)
        bench.tests.poll("chat", now_s=500.0)
    bench.tests.poll("chat", now_s=501.0)

    view = bench.tests.status("chat")
    assert view.n_a + view.n_b == 40


def test_outcomes_that_could_not_be_stored_are_counted_by_the_next_tick(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = scored(40)
    with monkeypatch.context() as broken:
        broken.setattr(AbStore, "append", lambda *_, **__: 1 / 0)
        bench.tests.poll("chat", now_s=500.0)
    bench.tests.poll("chat", now_s=501.0)

    view = bench.tests.status("chat")
    assert view.n_a + view.n_b == 40


def test_b_is_rolled_back_when_the_duration_is_over(bench: Bench) -> None:
    bench.tests.create("chat", BODY | {"duration": "10m"}, ADMIN)
    bench.rollouts.acked_at_s, bench.rollouts.ticked_at_s = 5100.0, 5699.0
    bench.tests.poll("chat", now_s=5699.0)
    assert bench.tests.status("chat").phase == "running"
    bench.rollouts.ticked_at_s = 5700.0
    bench.tests.poll("chat", now_s=5700.0)

    view = bench.tests.status("chat")
    assert (view.phase, view.ended_at_s) == ("ended", 5700.0)
    assert view.why == f"A/B test {view.id} is over after 10 min"


@pytest.mark.parametrize("acked_at_s", [None, 5000.0], ids=["while B loads", "after the clock was set"])
def test_time_that_b_was_not_served_does_not_count(bench: Bench, acked_at_s: float | None) -> None:
    bench.tests.create("chat", BODY | {"duration": "10m"}, ADMIN)
    bench.rollouts.acked_at_s, bench.rollouts.ticked_at_s = acked_at_s, 5010.0

    bench.tests.poll("chat", now_s=5000.0 + 8 * 86_400)

    assert bench.tests.status("chat").ended_at_s is None


def test_a_test_ends_its_own_rollout(bench: Bench) -> None:
    """A colleague may have deployed another version, once a guard had ended the test's rollout."""
    bench.tests.create("chat", BODY, ADMIN)

    bench.tests.stop("chat", ADMIN)

    assert bench.rollouts.ended == ["r-1"]


def test_a_policy_with_a_ladder_of_its_own_guards_b(bench: Bench) -> None:
    bench.rollouts.service_policy = parse_policy({"ladder": "full"})
    bench.tests.create("chat", BODY, ADMIN)

    [body] = bench.rollouts.bodies
    assert len(parse_policy(body["policy"]).stages or ()) == 1


@pytest.mark.slow
def test_a_long_replay_holds_up_neither_another_service_nor_the_tick(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.log.events = scored(40)
    restarted, is_read, real = bench.restarted(), threading.Event(), AbStore.outcomes

    def slow(self: AbStore, test: str, **kwargs: Any) -> tuple[AbOutcome, ...]:
        assert is_read.wait(20.0)
        return real(self, test, **kwargs)

    monkeypatch.setattr(AbStore, "outcomes", slow)
    monkeypatch.setattr(service, "REPLAY_WAIT_S", 0.01)
    view: list[AbView] = []
    reading = threading.Thread(target=lambda: view.append(restarted.status("chat")), daemon=True)
    reading.start()
    restarted.poll("chat", now_s=500.0)
    restarted.poll("code", now_s=500.0)
    assert view == []

    is_read.set()
    reading.join(20.0)
    monkeypatch.setattr(service, "REPLAY_WAIT_S", 20.0)
    restarted.poll("chat", now_s=501.0)
    after = restarted.status("chat")
    assert (view[0].n_a, after.n_a + after.n_b) == (0, 40)


def test_a_status_does_not_wait_for_a_long_replay(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    restarted, is_read, real = bench.restarted(), threading.Event(), AbStore.outcomes

    def slow(self: AbStore, test: str, **kwargs: Any) -> tuple[AbOutcome, ...]:
        assert is_read.wait(60.0)
        return real(self, test, **kwargs)

    monkeypatch.setattr(AbStore, "outcomes", slow)
    monkeypatch.setattr(service, "STATUS_WAIT_S", 0.01)
    with pytest.raises(Unreachable, match="is being read from the store") as refused:
        restarted.status("chat")
    is_read.set()
    monkeypatch.setattr(service, "STATUS_WAIT_S", 60.0)

    assert (refused.value.retry_after_s, restarted.status("chat").n_a) == (service.RETRY_AFTER_S, 0)


@pytest.mark.slow
def test_a_standby_reads_only_the_outcomes_that_are_new(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    events, firsts, real = scored(400), [], AbStore.outcomes
    bench.log.events, bench.log.low_watermark_s = events[:300], 150.0
    bench.tests.poll("chat", now_s=160.0)
    standby = bench.restarted()
    standby.status("chat")

    def counted(self: AbStore, test: str, *, first: int = 0) -> tuple[AbOutcome, ...]:
        firsts.append(first)
        return real(self, test, first=first)

    monkeypatch.setattr(AbStore, "outcomes", counted)
    bench.log.events, bench.log.low_watermark_s = events, 1e9
    bench.tests.poll("chat", now_s=500.0)
    view = standby.status("chat")

    assert (view.n_a + view.n_b, firsts) == (400, [150])


@pytest.mark.slow
def test_a_test_whose_rollout_ended_does_not_block_the_next(bench: Bench) -> None:
    first = bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.is_over = True
    assert bench.tests.stop("chat", ADMIN)[1] == f"chat: A/B test {first.id} stopped; its rollout has ended"
    bench.rollouts.is_over = False
    bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.is_over = True

    assert bench.tests.create("chat", BODY, ADMIN).id != first.id


@pytest.mark.parametrize(("is_acked", "phase"), [(True, "running"), (False, "loading")])
def test_status_shows_whether_b_is_served(bench: Bench, is_acked: bool, phase: str) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.acked_at_s = 1.0 if is_acked else None

    view = bench.tests.status("chat")
    assert (view.phase, view.version_a, view.version_b) == (phase, STABLE, CANARY)
    assert (view.why is None) == is_acked


def test_a_test_ends_with_its_rollout(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)
    bench.rollouts.is_over = True
    bench.tests.poll("chat", now_s=77.0)

    assert bench.tests.status("chat").ended_at_s == 77.0


def test_one_test_at_a_time(bench: Bench) -> None:
    bench.tests.create("chat", BODY, ADMIN)

    with pytest.raises(Conflict, match="canaryctl ab stop chat"):
        bench.tests.create("chat", BODY, ADMIN)
    assert len(bench.rollouts.bodies) == 1


def test_a_test_is_refused_while_a_rollout_runs(bench: Bench) -> None:
    bench.rollouts.is_running = True

    with pytest.raises(RolloutRunning, match="an A/B test deploys B as the canary: chat has rollout r-0"):
        bench.tests.create("chat", BODY, ADMIN)


def test_status_without_a_test_names_the_create_command(bench: Bench) -> None:
    with pytest.raises(BadInput, match="canaryctl ab create chat"):
        bench.tests.status("chat")


def test_without_a_policy_the_services_own_gates_watch_b(bench: Bench) -> None:
    bench.rollouts.service_policy = parse_policy(
        {"gates": {"latency_shape": {"threshold": 2.0}}, "bake": "5m"}
    )
    bench.tests.create("chat", BODY, ADMIN)

    policy = parse_policy(bench.rollouts.bodies[-1]["policy"])
    assert {gate.name: gate.threshold for gate in policy.gate_policy().gates}["latency_shape"] == 2.0
    assert policy.bake == 300.0


def test_a_test_that_was_stored_is_answered_although_it_cannot_be_read_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Try again" was answered with "one at a time" the second time."""
    real, reads = bench.tests._store.newest, []

    def newest(service: str) -> AbRow | None:
        reads.append(service)
        if len(reads) > 1:
            raise Unreachable("database is locked; try again")
        return real(service)

    monkeypatch.setattr(bench.tests._store, "newest", newest)
    view = bench.tests.create("chat", BODY, ADMIN)

    stored = real("chat")
    assert stored is not None
    assert (view.id, view.rollout) == (stored.id, stored.rollout)
