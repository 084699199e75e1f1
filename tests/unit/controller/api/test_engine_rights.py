"""An admin's engine arguments: refused to an operator before a file is read, unless the service has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.auth import Identity, Role, token_digest
from controller.planning.risk import HIDDEN
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The checkpoint of the service."""
    return write_checkpoint(tmp_path / "stable", seed=1)


@pytest.fixture
async def operator(controller: FakeController, api: httpx.AsyncClient, model: Path) -> dict[str, str]:
    """Headers of an operator of the service `chat`."""
    controller.store.put_token(token_digest("op"), Identity("op", Role.OPERATOR), at_s=0.0)
    assert (await api.put(URL, json={"model": str(model)})).status_code == 200
    return {"authorization": "Bearer op"}


def body(**engine: Any) -> dict[str, Any]:
    waivers = {"allow_unjudged": "new", "allow_unproven": "new"}
    return {"version": {"engine": engine}, **waivers}


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize("path", ["plan", "rollouts"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("middleware", ["os.system"]),
        ("worker_extension_cls", "os.path"),
        ("kv_transfer_config", {"kv_connector_module_path": "os"}),
        ("trust_remote_code", True),
        ("reasoning_parser_plugin", "/x.py"),
        ("otlp_traces_endpoint", "http://evil"),
        ("chat_template", "/etc/passwd"),
        ("chat_template", " /etc/passwd"),
        ("chat_template", "admin.token"),
    ],
)
async def test_an_operator_may_not_set_what_an_admin_must(
    controller: FakeController,
    api: httpx.AsyncClient,
    operator: dict[str, str],
    path: str,
    name: str,
    value: Any,
) -> None:
    answer = await api.post(f"{URL}/{path}", json=body(**{name: value}), headers=operator)

    assert answer.status_code == 422
    assert f"engine argument {name} " in answer.json()["detail"]
    assert "an admin must deploy it first" in answer.json()["detail"]
    assert controller.store.rollouts("chat", limit=1) == ()


async def test_a_template_outside_the_checkpoint_is_not_reached_by_dots(
    api: httpx.AsyncClient, operator: dict[str, str], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s3cret")

    answer = await api.post(f"{URL}/plan", json=body(chat_template=f"{model}/../secret"), headers=operator)

    assert (answer.status_code, "outside the checkpoint" in answer.text) == (422, True)


@pytest.mark.slow
async def test_an_operator_uses_a_template_of_the_checkpoint_or_an_inline_one(
    api: httpx.AsyncClient, operator: dict[str, str], model: Path
) -> None:
    (model / "short.jinja").write_text("{{ messages }}")

    for template in (f"{model}/short.jinja", "{{ messages[0] }}"):
        answer = await api.post(f"{URL}/plan", json=body(chat_template=template), headers=operator)
        assert answer.status_code == 200, answer.text


@pytest.mark.slow
async def test_an_operator_deploys_with_what_an_admin_has_allowed(
    api: httpx.AsyncClient, model: Path, tmp_path: Path, operator: dict[str, str]
) -> None:
    mine = {"model": str(model), "engine": {"middleware": ["mod.fn"]}}
    assert (await api.put("/v1/services/code", json=mine)).status_code == 200

    inherited = await api.post("/v1/services/code/plan", json=body(max_num_seqs=3), headers=operator)
    another = await api.post("/v1/services/code/plan", json=body(middleware=["other.fn"]), headers=operator)

    assert (inherited.status_code, another.status_code) == (200, 422)


@pytest.mark.slow
async def test_a_viewer_sees_no_value_that_may_hold_a_secret(
    controller: FakeController, api: httpx.AsyncClient, operator: dict[str, str]
) -> None:
    asked = body(otlp_traces_endpoint="http://user:s3cret@host/")
    deployed = await api.post(f"{URL}/rollouts", json=asked)
    rollout = controller.store.rollouts("chat", limit=1)[0].id
    controller.store.put_token(token_digest("view"), Identity("view", Role.VIEWER), at_s=0.0)

    views = [
        await api.get(path, headers={"authorization": "Bearer view"})
        for path in ("/v1/services", URL, f"{URL}/history", f"{URL}/rollouts/{rollout}")
    ]

    assert {view.status_code for view in views} == {200}
    assert not [view.text for view in views if "s3cret" in view.text]
    assert HIDDEN in views[1].text
    assert "s3cret" not in deployed.text


@pytest.mark.slow
async def test_a_long_inline_template_is_cut_in_the_reasons(
    controller: FakeController, api: httpx.AsyncClient, operator: dict[str, str]
) -> None:
    template = "{{ x }}" + "y" * 500_000

    deployed = await api.post(f"{URL}/rollouts", json=body(chat_template=template))

    assert deployed.status_code == 201
    assert len(controller.store.rollouts("chat", limit=1)[0].state) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "status"),
    [
        (None, "", 201),  # other tensors alone
        ("modeling_mine.py", "import os", 422),
        ("modeling.py", "import os", 422),
        ("config.json", None, 422),  # names the code of another folder
    ],
)
async def test_the_right_to_run_a_checkpoints_code_is_to_that_code(
    controller: FakeController,
    api: httpx.AsyncClient,
    tmp_path: Path,
    file: str | None,
    text: str | None,
    status: int,
) -> None:
    """An operator got any code of his own to run as the controller's user, which reads admin.token."""
    trusted, other = write_checkpoint(tmp_path / "trusted", seed=1), write_checkpoint(tmp_path / "o", seed=2)
    for folder in (trusted, other):
        (folder / "modeling.py").write_text("class Model: ...")
    if text is not None and file is not None:
        (other / file).write_text(text)
    elif file is not None:
        config = json.loads((other / file).read_text())
        config["auto_map"] = {"AutoConfig": "/home/mallory--modeling.Model"}
        (other / file).write_text(json.dumps(config))
    given = {"model": str(trusted), "engine": {"trust_remote_code": True}}
    assert (await api.put(URL, json=given)).status_code == 200
    controller.store.put_token(token_digest("op"), Identity("op", Role.OPERATOR), at_s=0.0)
    asked = {**body(), "version": {"model": str(other)}}

    answer = await api.post(f"{URL}/rollouts", json=asked, headers={"authorization": "Bearer op"})

    assert answer.status_code == status, answer.text
    if status == 422:
        assert "runs the code of" in answer.text
        assert (await api.post(f"{URL}/rollouts", json=asked)).status_code == 201  # an admin's
