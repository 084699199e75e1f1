"""A deploy with a golden set: pinned with the plan, shown by it, and refused for a broken line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

GOLDEN = b'{"messages": [{"role": "user", "content": "A private question?"}], "reference": "x"}\n'


@pytest.fixture
async def model(tmp_path: Path, api: httpx.AsyncClient) -> Path:
    """A second checkpoint; the service `chat` serves the first."""
    stable = write_checkpoint(tmp_path / "stable", seed=1)
    answer = await api.put("/v1/services/chat", json={"model": str(stable)})
    assert answer.status_code == 200
    return write_checkpoint(tmp_path / "twin", seed=2)


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
