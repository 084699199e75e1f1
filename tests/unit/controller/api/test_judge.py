"""A service's judge over the API: changed in place, pinned in a rollout, shown in a plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.quantities import GIB, gib
from controller.rollout.judge_plan import JudgePlan
from controller.rollout.serialization import state_from_json, state_to_json
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


@pytest.fixture
def served(tmp_path: Path) -> dict[str, object]:
    """A judge that the service serves itself, with another checkpoint than both versions."""
    return {"model": str(write_checkpoint(tmp_path / "judge-s", seed=7)), "share": "50%"}


@pytest.mark.slow
async def test_a_served_judge_is_planned_with_its_memory_and_pinned_with_its_digest(
    controller: FakeController,
    api: httpx.AsyncClient,
    model: str,
    tmp_path: Path,
    served: dict[str, object],
) -> None:
    assert (await api.put(URL, json={"model": model, "judge": served})).status_code == 200
    plan = await canary(api, model, tmp_path, "plan", rate=10.0, quick=True)
    begun = await api.post(f"{URL}/rollouts", json={"version": {"model": str(tmp_path / "2")}})
    stored = controller.store.load(begun.json()["rollout"])
    assert stored is not None
    judge = stored.state.plan.judge
    assert judge is not None
    assert judge.engine is not None
    size = gib(judge.engine.need_bytes)

    assert judge.model == f"judge-s-{judge.engine.version.removeprefix('v-')}"
    assert json.loads(judge.engine.spec)["model"] == served["model"]
    assert judge.url == ""
    assert f"it is served here as {judge.model} ({size})" in plan["judge"]
    assert plan["capacity"].endswith(f"the judge's engine takes {size} more")
    assert state_from_json(state_to_json(stored.state)) == stored.state


@pytest.mark.slow
async def test_a_judge_that_does_not_fit_beside_the_canary_is_refused_with_what_to_do(
    controller: FakeController,
    api: httpx.AsyncClient,
    model: str,
    tmp_path: Path,
    served: dict[str, object],
) -> None:
    large = {**served, "kv_cache_memory_bytes": "60GiB"}
    await api.put(URL, json={"model": model})
    await api.put(URL, json={"model": model, "judge": large})
    controller.environment.free_bytes = 40 * GIB
    plan = await canary(api, model, tmp_path, "plan", rate=10.0, quick=True)
    new = str(tmp_path / "2")
    refused = await api.post(f"{URL}/rollouts", json={"version": {"model": new}})

    assert [one["exit_code"] for one in plan["refusals"]] == [3]
    assert refused.status_code == 409
    text = refused.json()["detail"]
    assert text.startswith("the judge's engine does not fit beside the canary: a second engine needs 61.")
    assert text.endswith("or name a judge elsewhere (url)")


async def test_a_judge_that_is_no_checkpoint_is_refused_by_its_path(
    api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    absent = await api.put(URL, json={"model": model, "judge": {"model": str(tmp_path / "none")}})
    await api.put(URL, json={"model": model})
    changed = await api.put(URL, json={"model": model, "judge": {"model": str(tmp_path / "none")}})

    assert (absent.status_code, changed.status_code) == (422, 422)
    assert f"judge: checkpoint {tmp_path / 'none'} is not a directory" in absent.json()["detail"]


async def test_a_service_that_is_left_as_it_is_needs_the_files_of_its_judge_no_more(
    api: httpx.AsyncClient, model: str, served: dict[str, object]
) -> None:
    """Else nobody could start a controller again with the file of its service."""
    body = {"model": model, "judge": served}
    await api.put(URL, json=body)
    shutil.rmtree(str(served["model"]))

    assert (await api.put(URL, json=body)).status_code == 200
