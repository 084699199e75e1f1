"""A plan beside a running rollout: it says what runs, and ends as its deploy would."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.fakes.checkpoints import write_checkpoint

URL = "/v1/services/chat"


@pytest.mark.slow
async def test_a_plan_names_the_running_rollout_that_its_deploy_would_be_refused_for(
    api: httpx.AsyncClient, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": str(write_checkpoint(tmp_path / "stable", seed=1))})
    body = {"version": {"model": str(write_checkpoint(tmp_path / "other", seed=2))}}
    begun = (await api.post(f"{URL}/rollouts", json=body)).json()

    planned = (await api.post(f"{URL}/plan", json={**body, "quick": True})).json()
    deployed = await api.post(f"{URL}/rollouts", json=body)

    assert deployed.status_code == 409
    first = planned["refusals"][0]
    assert (first["text"], first["exit_code"]) == (deployed.json()["detail"], deployed.json()["exit_code"])
    assert f"chat has rollout {begun['rollout']} in planning, one at a time" in first["text"]
