"""A body of the wrong content type, as `curl -d` sends it: each route says which header is missing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute

from controller.ab.service import AbTests
from controller.api.ab import add_ab_routes
from controller.api.bearer_auth import TokenLookups, requires
from controller.api.slow_calls import SlowCalls
from controller.auth import Role
from tests.fakes.controller import FakeController

FORM = {"content-type": "application/x-www-form-urlencoded"}


def routes_with_a_body(controller: FakeController) -> Iterator[tuple[str, str]]:
    for route in controller.app.routes:
        if isinstance(route, APIRoute):
            for method in route.methods & {"POST", "PUT"}:
                yield method, route.path.replace("{service}", "chat")


async def test_every_route_names_the_missing_header(
    controller: FakeController, api: httpx.AsyncClient
) -> None:
    """It said `body is bytes; send a JSON object` to who had sent one."""
    lookups = TokenLookups(controller.store)
    viewer, operator = requires(lookups, Role.VIEWER), requires(lookups, Role.OPERATOR)
    unused: AbTests = None  # type: ignore[assignment]  # refused before it is asked
    add_ab_routes(controller.app, unused, viewer=viewer, operator=operator, slow=SlowCalls())
    asked = list(routes_with_a_body(controller))
    assert len(asked) >= 7

    for method, path in asked:
        answer = await api.request(method, path, content=b'{"id": "chatcmpl-1", "score": 1}', headers=FORM)
        assert answer.status_code == 422, (method, path, answer.text)
        assert answer.json()["lines"] == [
            "the body came without the header content-type: application/json; add it "
            "(curl: -H 'content-type: application/json')"
        ], (method, path)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
async def test_json_is_taken(api: httpx.AsyncClient, kind: str) -> None:
    answer = await api.post("/v1/feedback", content=b'{"id": "x"}', headers={"content-type": kind})

    assert "content-type" not in answer.text
