"""`up` with clients: they are stored, changed while the service runs, and never by a typo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.errors import BadSpec
from controller.spec.clients import ClientsSpec
from controller.spec.service import parse_service, parse_yaml, stored_service
from controller.wiring.controller import _client_rules
from serving.access import digest_of
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

KEY = {"name": "staff", "sha256": digest_of("sk-1"), "audiences": ["staff"]}
CLIENTS = {
    "keys": [KEY],
    "keys_required": True,
    "audience_bp": {"staff": 5000},
    "burst_cap": 60,
    "late_commit": "stream",
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "stable", seed=1))


def clients_of(controller: FakeController) -> Any:
    return json.loads(controller.store.service("chat").spec).get("clients")


@pytest.mark.slow
async def test_clients_are_changed_while_the_service_runs(
    controller: FakeController, api: httpx.AsyncClient, model: str
) -> None:
    stored = []
    optional = {**CLIENTS, "keys_required": False}
    bodies: list[dict[str, object]] = [{"clients": CLIENTS}, {}, {"clients": optional}, {"clients": {}}]
    for body in bodies:
        answer = await api.put("/v1/services/chat", json={"model": model, **body})
        assert answer.status_code == 200, answer.text
        stored.append(clients_of(controller))

    assert stored[0] == stored[1]
    assert [one and one.get("keys_required", False) for one in stored] == [True, True, False, None]
    assert "sk-1" not in json.dumps(stored)


async def test_who_changed_the_clients_is_in_the_history(
    controller: FakeController, api: httpx.AsyncClient, model: str
) -> None:
    for clients in (CLIENTS, {}):
        await api.put("/v1/services/chat", json={"model": model, "clients": clients})
    events = controller.store.events("chat")

    assert [one.text for one in events if "clients" in one.text] == ["clients changed"]


def test_the_spec_becomes_the_rules_of_the_routers_and_the_cap_is_shared_out() -> None:
    spec = parse_service({"service": "chat", "model": "/m", "routers": 3, "clients": CLIENTS})
    rules = _client_rules(stored_service(json.loads(spec.model_dump_json(exclude_defaults=True))))

    assert (rules.burst_cap, rules.late_commit) == (20, "stream")
    assert rules.access is not None
    assert (rules.access.keys_required, rules.access.audience_bp) == (True, {"staff": 5000})
    assert _client_rules(parse_service({"service": "chat", "model": "/m"})).access is None


def test_the_example_of_the_page_is_a_service() -> None:
    page = (Path(__file__).parents[4] / "docs" / "routing.md").read_text()
    [example] = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "clients:" in text]
    clients = parse_service(parse_yaml(example, "page")).clients

    assert (clients.keys_required, clients.audience_bp, clients.burst_cap) == (True, {"staff": 5000}, 60)
    assert {name for name in ClientsSpec.model_fields if f"{name}:" not in example} == {
        "category_bp",
        "trust",
    }


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"keys": [{**KEY, "sha256": "sk-1"}]}, "service.clients.keys.0.sha256: is no SHA-256 of 64 hex"),
        ({"audience_bp": {"staff": 5}}, "service.clients: audience staff of audience_bp is given by no key"),
        ({"trust": {"audience_header": "x-a", "from": ["10.0.0.0/8"]}}, "trust is for `canaryctl router`"),
        ({"key": []}, "service.clients.key"),
        ({"burst_cap": 0}, "service.clients.burst_cap 0 is not above 0; raise it"),
        ({"late_commit": "never"}, "service.clients.late_commit 'never'"),
        ({"keys_required": "yes"}, "service.clients.keys_required 'yes' is not true or false"),
    ],
)
def test_a_mistake_is_one_line_with_its_path(clients: dict[str, object], message: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_service({"service": "chat", "model": "/m", "clients": clients})

    assert message in str(caught.value)
    assert "sk-1" not in str(caught.value)


def test_a_service_without_clients_has_none_in_its_stored_spec() -> None:
    spec = parse_service({"service": "chat", "model": "/m"})

    assert "clients" not in spec.model_dump(mode="json", exclude_defaults=True)


async def test_a_stage_may_raise_an_audience_of_the_service_and_no_other(
    api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put("/v1/services/chat", json={"model": model, "clients": {"keys": [KEY]}})
    version = {"model": str(write_checkpoint(tmp_path / "next", seed=2))}
    answers = []
    for audience in ("staff", "stuff"):
        stages = [{"weight": "0.01%", "audience_bp": {audience: 10_000}}, {"weight": "10%"}]
        body = {"version": version, "policy": {"stages": stages}, "quick": True}
        answers.append(await api.post("/v1/services/chat/plan", json=body))

    staff = {"name": "staff", "weight_bp": 10_000}
    assert [one["audiences"] for one in answers[0].json()["stages"]] == [[staff]] * 2
    assert answers[1].status_code == 422
    assert answers[1].json()["detail"] == (
        "policy.stages.0.audience_bp.stuff is given by no key of the service; did you mean staff?"
    )
