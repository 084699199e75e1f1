"""A deploy with a golden set: pinned with the plan, shown by it, and refused for a broken line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from controller.auth import Identity, Role, token_digest
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

GOLDEN = b'{"messages": [{"role": "user", "content": "A private question?"}], "reference": "fine"}\n'


@pytest.fixture
def operator(controller: FakeController) -> dict[str, str]:
    """Headers of an operator."""
    controller.store.put_token(token_digest("op"), Identity("op", Role.OPERATOR), at_s=0.0)
    return {"authorization": "Bearer op"}


@pytest.fixture
async def model(tmp_path: Path, api: httpx.AsyncClient) -> Path:
    """A second checkpoint; the service `chat` serves the first."""
    stable = write_checkpoint(tmp_path / "stable", seed=1)
    answer = await api.put("/v1/services/chat", json={"model": str(stable)})
    assert answer.status_code == 200
    return write_checkpoint(tmp_path / "twin", seed=2)


@pytest.mark.slow
async def test_the_golden_set_is_pinned_by_its_digest_and_no_text_is_stored(
    controller: FakeController, api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_bytes(GOLDEN)
    policy = {"preflight": {"golden": str(file), "require": ["tools"]}}
    body = {"version": {"model": str(model)}, "policy": policy}

    planned = (await api.post("/v1/services/chat/plan", json={**body, "quick": True})).json()
    deployed = (await api.post("/v1/services/chat/rollouts", json=body)).json()

    assert planned["preflight"] == f"smoke cases, golden set {file}, must pass tools"
    stored = controller.store.load(deployed["rollout"])
    assert stored is not None
    pinned = stored.state.plan.preflight
    assert pinned is not None
    assert pinned.golden_digest == hashlib.sha256(GOLDEN).hexdigest()
    for one in controller.home.rglob("*"):
        assert one == file or not one.is_file() or b"A private question" not in one.read_bytes()


@pytest.mark.slow
async def test_a_broken_line_refuses_the_plan_and_the_deploy(
    api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_bytes(GOLDEN + b"{}\nx\n")
    body = {"version": {"model": str(model)}, "policy": {"preflight": {"golden": str(file)}}}

    for path in ("plan", "rollouts"):
        answer = await api.post(f"/v1/services/chat/{path}", json=body)
        problem = answer.json()
        assert (answer.status_code, problem["exit_code"]) == (422, 2)
        assert [line.split(":")[0] for line in problem["lines"]] == [f"{file} line 2", f"{file} line 3"]


async def test_a_relative_path_is_refused_by_the_controller(api: httpx.AsyncClient, model: Path) -> None:
    body = {"version": {"model": str(model)}, "policy": {"preflight": {"golden": "golden.jsonl"}}}

    answer = await api.post("/v1/services/chat/plan", json=body)

    assert answer.json()["detail"].startswith("policy.preflight.golden golden.jsonl is not absolute")


@pytest.mark.slow
async def test_an_operator_has_the_controller_read_no_golden_set_that_is_new(
    api: httpx.AsyncClient, operator: dict[str, str], model: Path, tmp_path: Path
) -> None:
    """The answers told which files there are, and which lines they have."""
    there = tmp_path / "secret.txt"
    there.write_text("root:x\n")
    for path in ("plan", "rollouts"):
        said = []
        for file in (there, tmp_path / "absent.txt"):
            body = {"version": {"model": str(model)}, "policy": {"preflight": {"golden": str(file)}}}
            answer = await api.post(f"/v1/services/chat/{path}", json=body, headers=operator)
            assert (answer.status_code, answer.json()["exit_code"]) == (422, 2)
            said.append(answer.json()["detail"].replace(str(file), "FILE"))
        assert said[0] == said[1]
        assert "is new for chat: an admin must deploy with it first" in said[0]


@pytest.mark.slow
async def test_an_operator_deploys_with_the_golden_set_that_an_admin_deployed_with(
    api: httpx.AsyncClient, operator: dict[str, str], model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_bytes(GOLDEN)
    body = {"version": {"model": str(model)}, "policy": {"preflight": {"golden": str(file)}}}
    assert (await api.post("/v1/services/chat/rollouts", json=body)).status_code == 201

    answer = await api.post("/v1/services/chat/plan", json={**body, "quick": True}, headers=operator)

    assert answer.json()["preflight"] == f"smoke cases, golden set {file}"
