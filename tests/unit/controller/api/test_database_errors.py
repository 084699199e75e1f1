"""Every route of the API over a database that fails: 503, exit code 4, one line with a remedy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute

from controller.auth import admin_token
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[FakeController]:
    fake = FakeController(tmp_path)
    yield fake
    fake.stop()


@pytest.fixture
async def api(controller: FakeController) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {admin_token(controller.home)}"}
    transport = httpx.ASGITransport(app=controller.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


def break_tables(controller: FakeController, *, tokens: bool) -> None:
    """Drop the tables, and with `tokens` the one that every request reads first."""
    kept = {"canaryctl_meta", "canaryctl_schema_version"} | (set() if tokens else {"tokens"})
    with controller.store.database.write() as db:
        for name in set(sa.inspect(db).get_table_names()) - kept - {"sqlite_sequence"}:
            db.execute(sa.text(f"DROP TABLE {name}"))


def calls(controller: FakeController, model: Path) -> list[tuple[str, str, object]]:
    """A valid request to every route that needs the store."""
    bodies: dict[str, object] = {
        "put_service": {"model": str(model)},
        "deploy": {"version": {"model": str(model)}},
        "plan": {"version": {"model": str(model)}},
        "rollback": {},
        "feedback": {"id": "a", "metric": "quality", "score": 1.0},
    }
    return [
        (method, route.path.replace("{service}", "chat"), bodies.get(route.name))
        for route in controller.app.routes
        if isinstance(route, APIRoute) and route.path != "/healthz"
        for method in route.methods
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [True, False])
async def test_every_route_answers_503_with_exit_code_4(
    controller: FakeController, api: httpx.AsyncClient, tmp_path: Path, tokens: bool
) -> None:
    model = write_checkpoint(tmp_path / "model", seed=1)
    requests = calls(controller, model)
    break_tables(controller, tokens=tokens)

    answers = [await api.request(method, path, json=body) for method, path, body in requests]

    assert len(requests) >= 9
    assert {(answer.status_code, answer.json()["exit_code"]) for answer in answers} == {(503, 4)}
    assert all("restore the database" in answer.json()["detail"] for answer in answers)
