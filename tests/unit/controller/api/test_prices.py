"""A service's prices over the API: changed in place, pinned in a rollout, named where one is missing."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from controller.evidence.records import gate_config
from controller.planning.baseline import MeasuredBaseline
from controller.rollout.machine import abandon
from evaluation.costs import Prices, TokenPrice
from evaluation.metrics import Kind
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"
PRICES = {"currency": "EUR", "input": 2.5, "output": 10, "versions": {"cheap": {"input": 1, "output": 2}}}
COST = {"metric": "cost", "kind": "mean", "threshold": 0.2, "alpha_share": 0.05}
POLICY = {"gates": {"quality": {"alpha_share": 0.1}, "cost": COST}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "1", seed=1))


async def canary(api: httpx.AsyncClient, tmp_path: Path, what: str, **more: object) -> httpx.Response:
    new = str(write_checkpoint(tmp_path / "2", seed=2))
    return await api.post(f"{URL}/{what}", json={"version": {"model": new}, **more})


async def test_a_rollout_keeps_the_prices_that_it_began_with(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model})
    assert (
        await api.put(URL, json={"model": model, "prices": {**PRICES, "alert": "50%"}})
    ).status_code == 200
    answer = await canary(api, tmp_path, "rollouts", name="cheap")
    await api.put(URL, json={"model": model, "prices": {"input": 1, "output": 1}})

    config = gate_config(controller.store.request(answer.json()["rollout"]))

    assert config.prices == Prices("EUR", TokenPrice(2.5, 10.0), TokenPrice(1.0, 2.0))
    [alarm] = config.policy.gates_for("cost")
    assert (alarm.kind, alarm.threshold, alarm.is_alarm) == (Kind.MEAN, 0.5, True)
    assert [one.text for one in controller.store.events("chat")].count("prices changed") == 2


@pytest.mark.parametrize("versions", [{"big": {"input": 10, "output": 10}}, {}], ids=["by name", "by id"])
async def test_a_twin_has_stables_prices(
    controller: FakeController, api: httpx.AsyncClient, model: str, versions: dict[str, object]
) -> None:
    """By its own id it had the service's, a tenth of stable's: a gate on cost could roll a twin back."""
    await api.put(URL, json={"model": model, "name": "big"})
    versions = versions or {controller.store.service("chat").stable: {"input": 10, "output": 10}}
    await api.put(URL, json={"model": model, "prices": {"input": 1, "output": 1, "versions": versions}})
    answer = await api.post(f"{URL}/rollouts", json={"twin": True})

    prices = gate_config(controller.store.request(answer.json()["rollout"])).prices

    assert prices == Prices("USD", TokenPrice(10.0, 10.0), TokenPrice(10.0, 10.0))


async def test_a_version_that_is_deployed_again_has_the_prices_of_the_name_it_had(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model})
    await api.put(URL, json={"model": model, "prices": PRICES})
    first = (await canary(api, tmp_path, "rollouts", name="cheap")).json()["rollout"]
    stored = controller.store.load(first)
    assert stored is not None
    ended = abandon(stored.state, stored.state.ticked_at_s + 1.0, "by hand")
    controller.store.commit(ended, (), expected_version=stored.version, evidence=None)

    body = {"version": {"model": str(tmp_path / "2")}, "retry": True}
    again = (await api.post(f"{URL}/rollouts", json=body)).json()["rollout"]

    kept = [gate_config(controller.store.request(id)).prices for id in (first, again)]
    assert kept == [Prices("EUR", TokenPrice(2.5, 10.0), TokenPrice(1.0, 2.0))] * 2


async def test_a_service_without_prices_has_rollouts_without(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model})
    answer = await canary(api, tmp_path, "rollouts")

    request = json.loads(controller.store.request(answer.json()["rollout"]))

    assert request["prices"] is None
    assert "cost_alarm" not in request["gate"]["gates"]


async def test_a_plan_names_the_version_without_a_price(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path
) -> None:
    await api.put(URL, json={"model": model, "prices": {"versions": {"cheap": {"input": 1, "output": 2}}}})
    plan = (await canary(api, tmp_path, "plan", rate=10.0, quick=True, name="cheap")).json()

    assert [line for line in plan["warnings"] if "cost NOT JUDGED: prices has none for stable;" in line]


@pytest.mark.parametrize("has_prices", [True, False])
async def test_a_gate_on_cost_needs_prices(
    controller: FakeController, api: httpx.AsyncClient, model: str, tmp_path: Path, has_prices: bool
) -> None:
    controller.environment.traffic = MeasuredBaseline(
        1000, events={"error": 3, "rejected": 0}, values={"latency_ms": 1000, "tokens": 990, "ttft_ms": 1000}
    )
    prices = {"prices": PRICES} if has_prices else {}
    await api.put(URL, json={"model": model, **prices})
    answer = await canary(api, tmp_path, "plan", rate=100.0, quick=True, policy=POLICY)

    said = "cost NOT JUDGED: none of stable's 1,000 requests has cost; the policy names it"
    remedy = "give the service prices (`prices`, docs/cost.md)"
    assert (said in answer.text, remedy in answer.text) == (not has_prices, not has_prices)
