"""Versions stored under ids of older rules, after an upgrade: none becomes another, none is forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from controller.planning.fingerprint import Fingerprint
from controller.rollout.state import Cause, CauseKind, Phase
from controller.spec.version import VersionSpec
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController, FakeEnvironment


def older(found: Fingerprint) -> Fingerprint:
    """The fingerprint as older rules computed it: other digests, another id; tensors are hashed as today."""
    kept = ("tensors", "engine_release")
    parts = tuple((name, value if name in kept else "older") for name, value in found.parts)
    return replace(found, parts=parts, scheme=1, files=(), vocabulary=())


@pytest.fixture
async def ids(
    controller: FakeController, api: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """(stable's id, id of a version that was rolled back), both stored before the upgrade."""
    fresh = FakeEnvironment.fingerprint

    def by_older_rules(self: FakeEnvironment, version: VersionSpec) -> Fingerprint:
        return older(fresh(self, version))

    stable, bad = (write_checkpoint(tmp_path / name, seed=n) for n, name in enumerate(("stable", "bad")))
    with monkeypatch.context() as before_the_upgrade:
        before_the_upgrade.setattr(FakeEnvironment, "fingerprint", by_older_rules)
        await api.put("/v1/services/chat", json={"model": str(stable)})
        answer = await api.post("/v1/services/chat/rollouts", json={"version": {"model": str(bad)}})
    stored = controller.store.load(answer.json()["rollout"])
    assert stored is not None
    ended = replace(stored.state, phase=Phase.ROLLED_BACK, cause=Cause(CauseKind.GATE, "quality fell"))
    controller.store.commit(ended, (), expected_version=stored.version, evidence=None)
    return controller.store.service("chat").stable, stored.state.canary.id


@pytest.mark.slow
async def test_what_runs_is_not_seen_as_another_version(
    ids: tuple[str, str], api: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = {"version": {"model": str(tmp_path / "stable")}}
    answer = await api.post("/v1/services/chat/rollouts", json=body)

    assert answer.status_code == 409
    assert f"chat already serves {ids[0]}: nothing in it changes" in answer.json()["detail"]


@pytest.mark.slow
async def test_a_rejected_version_stays_rejected_under_its_id(
    ids: tuple[str, str], api: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = {"version": {"model": str(tmp_path / "bad")}}
    answer = await api.post("/v1/services/chat/rollouts", json=body)

    assert answer.json()["type"] == "urn:canaryctl:already-rejected"
    assert answer.json()["detail"].startswith(ids[1])


@pytest.mark.slow
async def test_a_fine_tune_of_what_runs_is_graded_as_one(
    ids: tuple[str, str], api: httpx.AsyncClient, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", seed=7)
    body = {"version": {"model": str(other)}, "quick": True}
    answer = await api.post("/v1/services/chat/plan", json=body)

    assert answer.json()["risk"] == "medium"
    assert answer.json()["reasons"] == ["fine-tuned tensors on the same base"]


@pytest.mark.slow
async def test_a_twin_of_what_runs_has_the_id_of_stable(ids: tuple[str, str], api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/services/chat/plan", json={"twin": True, "quick": True})

    assert answer.json()["canary"] == f"{ids[0]}-twin"
