"""A service's judge over the API: changed in place, pinned in a rollout, shown in a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.rollout.judge_plan import JudgePlan
from controller.spec.service import stored_service
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"
JUDGE = {"url": "http://127.0.0.1:8000/v1", "model": "judge", "share": "50%"}
PLAN = JudgePlan("http://127.0.0.1:8000/v1", "judge", 5000, "quality", 60)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "1", seed=1))


async def canary(api: httpx.AsyncClient, model: str, tmp_path: Path, what: str, **more: object) -> Any:
    new = str(write_checkpoint(tmp_path / "2", seed=2))
    answer = await api.post(f"{URL}/{what}", json={"version": {"model": new}, **more})
    assert answer.status_code in (200, 201, 202), answer.text
    return answer.json()


@pytest.mark.slow
async def test_a_rollout_keeps_the_judge_that_it_began_with(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model})
    assert (await api.put(URL, json={"model": model, "judge": JUDGE})).status_code == 200
    rollout = (await canary(api, model, tmp_path, "rollouts"))["rollout"]
    await api.put(URL, json={"model": model, "judge": {**JUDGE, "model": "other"}})

    stored, request = controller.store.load(rollout), json.loads(controller.store.request(rollout))
    judge = stored_service(json.loads(controller.store.service("chat").spec)).judge
    assert stored is not None
    assert judge is not None
    assert (stored.state.plan.judge, judge.model) == (PLAN, "other")
    assert request["judge"] == JUDGE
    assert request["gate"]["gates"]["quality"]["sampling"] == {"stable": 0.5, "canary": 0.5}
    events = [one.text for one in controller.store.events("chat")]
    assert events.count("judge changed") == 2


@pytest.mark.slow
async def test_a_plan_says_what_is_judged_and_warns_of_a_budget_that_cannot_suffice(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model, "judge": JUDGE})
    plan = await canary(api, model, tmp_path, "plan", rate=10.0, quick=True)

    assert plan["judge"].startswith(
        "judge judge is asked of 50 % of both versions' answers, for quality: 300 a minute, "
    )
    assert any("questions a minute exceed per_minute 60 of 1 router(s)" in line for line in plan["warnings"])
    assert not any("quality: no score" in line for line in plan["warnings"])


@pytest.mark.slow
async def test_a_policy_without_its_gate_leaves_the_judge_out_and_says_so(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model, "judge": JUDGE})
    policy = {"gates": {"quality": None}}
    plan = await canary(api, model, tmp_path, "plan", rate=10.0, quick=True, policy=policy)

    assert plan["judge"] == ""
    assert "judge judge is not asked: no gate of the policy tests quality" in plan["warnings"]


async def test_texts_leave_the_cluster_only_with_permission(api: httpx.AsyncClient, model: str) -> None:
    away = {**JUDGE, "url": "https://api.example.com"}
    refused = await api.put(URL, json={"model": model, "judge": away})
    allowed = await api.put(URL, json={"model": model, "judge": {**away, "off_cluster": True}})

    assert (refused.status_code, allowed.status_code) == (422, 200)
    assert "so texts of users would leave the cluster" in refused.text
