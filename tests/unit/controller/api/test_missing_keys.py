"""API keys that cannot be read any more: named in every view, and before a command needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.api.keys import KeyProblem
from controller.rollout.state import Departure, DepartureStep, Phase
from serving.credentials import KeyReference
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"
ENDPOINT = {"url": "https://api.example/v1", "model": "large", "api_key_env": "EXAMPLE_KEY"}
REMEDY = "is not set where the controller was started; export EXAMPLE_KEY, then run: canaryctl up"


@pytest.fixture
async def endpoint(
    controller: FakeController,
    api: httpx.AsyncClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The id of an endpoint that served before the checkpoint that serves; its key is gone since."""
    monkeypatch.setenv("EXAMPLE_KEY", "sk-secret-1")
    assert (await api.put(URL, json=ENDPOINT)).status_code == 200
    served = controller.store.service("chat").stable
    write_checkpoint(tmp_path / "next", seed=2)
    body = {"version": {"model": str(tmp_path / "next")}}
    stored = controller.store.load((await api.post(f"{URL}/rollouts", json=body)).json()["rollout"])
    assert stored is not None
    departure = Departure(stored.state.stable.id, stored.state.canary.id, DepartureStep.UNLOAD, 0.0, 0.0)
    promoted = replace(stored.state, phase=Phase.SUCCEEDED, departure=departure)
    controller.store.commit(promoted, (), expected_version=stored.version, evidence=None)
    monkeypatch.delenv("EXAMPLE_KEY")
    return served


@pytest.mark.slow
async def test_a_service_names_the_version_that_undo_could_not_bring_back(
    api: httpx.AsyncClient, endpoint: str
) -> None:
    (missing,) = (await api.get(URL)).json()["missing_keys"]

    assert (missing["version"], missing["variable"]) == (endpoint, "EXAMPLE_KEY")
    assert missing["text"].startswith(f"earlier version {endpoint} (")
    assert missing["text"].endswith(f"has no API key: EXAMPLE_KEY {REMEDY}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["undo", "rollback"])
async def test_a_way_back_without_its_key_is_refused_before_it_begins(
    controller: FakeController, api: httpx.AsyncClient, endpoint: str, command: str
) -> None:
    before = controller.picture()

    answer = await api.post(f"{URL}/{command}", json={})

    assert (answer.status_code, answer.json()["exit_code"]) == (409, 3)
    assert answer.json()["detail"].endswith(REMEDY)
    assert controller.picture() == before


@pytest.mark.slow
async def test_a_canary_without_its_key_is_not_loaded_and_a_plan_names_it(
    controller: FakeController, api: httpx.AsyncClient, endpoint: str
) -> None:
    before, body = controller.picture(), {"version": ENDPOINT}

    planned = await api.post(f"{URL}/plan", json={**body, "quick": True})
    deployed = await api.post(f"{URL}/rollouts", json=body)

    assert planned.json()["warnings"][-1].startswith(f"canary {endpoint}")
    assert planned.json()["warnings"][-1].endswith(REMEDY)
    assert (deployed.status_code, deployed.json()["detail"].endswith(REMEDY)) == (409, True)
    assert controller.picture() == before


@pytest.mark.slow
async def test_a_key_that_is_there_again_is_not_reported(
    api: httpx.AsyncClient, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", "sk-secret-1")

    view = (await api.get(URL)).json()

    assert view["missing_keys"] == []
    assert (await api.post(f"{URL}/undo", json={})).json()["outcome"] == "asked"


async def test_stable_s_own_key_is_reported_and_never_shown(api: httpx.AsyncClient, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-secret-1 sk-secret-2")
    await api.put(URL, json={**ENDPOINT, "api_key_env": None, "api_key_file": str(file)})

    answer = await api.get(URL)

    (missing,) = answer.json()["missing_keys"]
    assert (missing["role"], missing["variable"]) == ("stable", None)
    assert f"api_key_file {file} holds a blank" in missing["text"]
    assert "sk-secret" not in answer.text


@pytest.mark.slow
async def test_a_variable_that_ray_s_processes_lack_is_reported_too(
    controller: FakeController,
    api: httpx.AsyncClient,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Routers read the key in the environment that Ray was started in."""
    monkeypatch.setenv("EXAMPLE_KEY", "sk-secret-1")

    def lacking(self: Any, reference: KeyReference) -> KeyProblem | None:
        return KeyProblem(f"{reference.name} is not set where Ray was started")

    monkeypatch.setattr(type(controller.environment), "key_problem", lacking)

    answer = await api.post(f"{URL}/plan", json={"version": ENDPOINT, "quick": True})

    assert answer.json()["warnings"][-1].endswith("EXAMPLE_KEY is not set where Ray was started")
