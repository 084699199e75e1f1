"""A rollout of the past whose state another release wrote: it hides nothing, and refuses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from controller.planning.forecast import MIN_RATE
from controller.rollout.state import Cause, CauseKind, Departure, DepartureStep, Phase
from controller.store import schema as t
from controller.store.rows import RolloutRow
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"
WAIVED = {"allow_unjudged": "a test", "allow_unproven": "a test"}


class Past:
    """The service `chat` with one checkpoint after the other, and rollouts that end as told."""

    def __init__(self, controller: FakeController, api: httpx.AsyncClient, folder: Path) -> None:
        self.controller, self.api, self.folder = controller, api, folder

    def model(self, seed: int) -> str:
        path = self.folder / f"model-{seed}"
        return str(path if path.exists() else write_checkpoint(path, seed=seed))

    async def deploy(self, seed: int, **more: Any) -> httpx.Response:
        body = {"version": {"model": self.model(seed)}, **WAIVED, **more}
        return await self.api.post(f"{URL}/rollouts", json=body)

    def end(self, rollout: str, *, promoted: bool) -> None:
        stored = self.controller.store.load(rollout)
        assert stored is not None
        state = stored.state
        if promoted:
            step = Departure(state.stable.id, state.canary.id, DepartureStep.UNLOAD, 5.0, 5.0)
            state = replace(state, phase=Phase.SUCCEEDED, departure=step)
        else:
            state = replace(state, phase=Phase.ROLLED_BACK, cause=Cause(CauseKind.GATE, "slower"))
        self.controller.store.commit(state, (), expected_version=stored.version, evidence=None)

    def garble(self, rollout: str) -> RolloutRow:
        """As a release writes it whose phases this one does not know."""
        row = self.controller.store.rollout(rollout)
        assert row is not None
        state = json.loads(row.state)
        state["rollout"]["phase"] = "judged"
        with self.controller.store.database.write() as db:
            db.execute(
                sa.update(t.rollouts).where(t.rollouts.c.id == rollout).values(state=json.dumps(state))
            )
        return row

    async def ended(self, seed: int, *, promoted: bool) -> str:
        begun = await self.deploy(seed)
        assert begun.status_code == 201, begun.text
        self.end(begun.json()["rollout"], promoted=promoted)
        return str(begun.json()["rollout"])


@pytest.fixture
async def past(controller: FakeController, api: httpx.AsyncClient, tmp_path: Path) -> Past:
    past = Past(controller, api, tmp_path)
    assert (await api.put(URL, json={"model": past.model(0)})).status_code == 200
    return past


@pytest.mark.slow
async def test_an_older_rollout_that_cannot_be_read_refuses_no_plan_and_no_deploy(past: Past) -> None:
    first = await past.ended(1, promoted=False)
    await past.ended(2, promoted=False)
    past.garble(first)

    planned = await past.api.post(f"{URL}/plan", json={"version": {"model": past.model(3)}, "quick": True})
    begun = await past.deploy(3)

    assert (planned.status_code, begun.status_code) == (200, 201), (planned.text, begun.text)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["rollback", "undo"])
async def test_what_an_unreadable_rollout_promoted_can_be_undone(past: Past, command: str) -> None:
    before = past.controller.store.service("chat").stable
    past.garble(await past.ended(1, promoted=True))

    undone = await past.api.post(f"{URL}/{command}", json={})
    running = past.controller.store.rollouts("chat", limit=1)[0]

    assert undone.status_code == 202, undone.text
    assert (running.id, running.canary) == (undone.json()["rollout"], before)


@pytest.mark.slow
async def test_the_status_shows_an_unreadable_rollout_that_has_ended(past: Past) -> None:
    rollout = past.garble(await past.ended(1, promoted=True))

    shown = await past.api.get(URL)
    alone = await past.api.get(f"{URL}/rollouts/{rollout.id}")

    assert shown.status_code == 200, shown.text
    assert shown.json()["stable"] == rollout.canary
    assert shown.json()["rollout"]["phase"] == alone.json()["phase"] == "unreadable"


@pytest.mark.slow
async def test_after_an_unreadable_rollback_a_second_one_changes_nothing(past: Past) -> None:
    past.garble(await past.ended(1, promoted=False))

    again = await past.api.post(f"{URL}/rollback", json={})

    assert (again.status_code, again.json()["outcome"]) == (202, "already")


@pytest.mark.slow
async def test_a_version_whose_verdict_cannot_be_read_needs_a_retry(past: Past) -> None:
    """It may have been rolled back."""
    rollout = past.garble(await past.ended(1, promoted=False))
    body = {"version": {"model": past.model(1)}, "quick": True}

    refused = await past.deploy(1)
    planned = await past.api.post(f"{URL}/plan", json=body)
    begun = await past.deploy(1, retry=True)

    assert refused.status_code == 409
    assert f"was tried in {rollout.id}, and another release wrote how that ended" in refused.text
    assert [one["phase"] for one in planned.json()["attempts"]] == ["unreadable"]
    assert begun.status_code == 201


@pytest.mark.slow
async def test_a_rejection_stands_after_any_number_of_retries_without_a_verdict(past: Past) -> None:
    stored = past.controller.store.load(await past.ended(1, promoted=False))
    assert stored is not None
    failed = replace(stored.state, phase=Phase.FAILED, cause=Cause(CauseKind.PROBE, "too slow"))
    for count in range(101):
        again = replace(failed, id=f"r-{count:08x}")
        past.controller.store.create_rollout(again, request="{}", at_s=float(count))

    refused = await past.deploy(1)

    assert (refused.status_code, "was rolled back in" in refused.text) == (409, True)


async def test_the_lowest_rate_of_a_plan_is_planned_for(past: Past) -> None:
    body = {"version": {"model": past.model(1)}, "quick": True, **WAIVED}

    assert (await past.api.post(f"{URL}/plan", json={**body, "rate": MIN_RATE})).status_code == 200


@pytest.mark.slow
async def test_what_a_newer_release_knows_of_a_fingerprint_refuses_no_deploy(past: Past) -> None:
    await past.ended(1, promoted=False)
    with past.controller.store.database.write() as db:
        for row in db.execute(sa.select(t.versions.c.id, t.versions.c.fingerprint)).all():
            known = json.loads(row.fingerprint) | {"adapters": []}
            here = t.versions.c.id == row.id
            db.execute(sa.update(t.versions).where(here).values(fingerprint=json.dumps(known)))

    assert (await past.deploy(2)).status_code == 201
