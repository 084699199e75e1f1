"""Evidence of ended rollouts: what is shown stays, what it would go on from does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.errors import Unreachable
from controller.evidence.snapshot import envelope_of, stored_status
from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import Phase
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring.evidence_retention import INTERVAL_S, EvidenceRetention
from evaluation.report import Verdict
from tests.database_rig import sqlite_url
from tests.fakes.rollouts import STABLE, a_rollout

STATUS = EvidenceStatus(1, Verdict.PASS, canary_requests=7)
LARGE = envelope_of(STATUS, {"evaluator": "x" * 500_000})
ENDED, RUNNING, FOREIGN = "r-00000001", "r-00000002", "r-00000003"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    """Three rollouts with large evidence; one runs, and the evidence of one is of another release."""
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    for id, evidence in ((ENDED, LARGE), (RUNNING, LARGE), (FOREIGN, b"?" * 500_000)):
        service = f"s-{id}"
        version = VersionRow(service, STABLE, "{}", "{}", 1.0)
        store.put_service(ServiceRow(service, "{}", STABLE, "s", 1.0), version)
        state = a_rollout(id, service=service)
        store.create_rollout(state, request="{}", at_s=1.0)
        ended = state if id == RUNNING else replace(state, phase=Phase.ROLLED_BACK)
        store.commit(ended, (), expected_version=0, evidence=evidence)
    yield store
    store.close()


def test_of_an_ended_rollout_only_what_is_shown_is_kept(store: SqlStore) -> None:
    """14.7 MB for each rollout of 100,000 users, for ever."""
    shorten = EvidenceRetention(store.database)
    for _ in range(3):
        shorten(100.0)

    evidence = store.evidence(ENDED)
    assert evidence is not None
    assert (len(evidence) < 2_000, stored_status(evidence)) == (True, STATUS)
    assert store.evidence(RUNNING) == LARGE
    assert store.evidence(FOREIGN) == b"?" * 500_000


@pytest.mark.slow
def test_the_search_is_repeated_every_hour(store: SqlStore) -> None:
    shorten = EvidenceRetention(store.database)
    for _ in range(3):
        shorten(100.0)
    state = a_rollout(RUNNING, service=f"s-{RUNNING}")
    store.commit(replace(state, phase=Phase.FAILED), (), expected_version=1, evidence=None)

    shorten(100.0 + INTERVAL_S - 1.0)
    before = store.evidence(RUNNING)
    shorten(100.0 + INTERVAL_S)

    assert (before == LARGE, store.evidence(RUNNING) == LARGE) == (True, False)


def test_a_database_that_does_not_answer_keeps_no_service_from_being_found(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> tuple[str, ...]:
        raise Unreachable("the disk is full")

    monkeypatch.setattr("controller.wiring.evidence_retention.large_evidence", fails)

    EvidenceRetention(store.database)(100.0)

    assert store.evidence(ENDED) == LARGE
