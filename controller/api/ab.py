"""The routes of A/B tests: POST, GET and DELETE /v1/services/{service}/ab."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Depends, FastAPI

from controller.ab.results import AbView
from controller.ab.service import AbTests
from controller.api.bodies import json_body
from controller.api.slow_calls import SlowCalls, ab_calls, body_calls, write_calls
from controller.auth import Identity
from controller.errors import BadInput
from controller.views.models import CommandResult

_BODY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}


def add_ab_routes(
    app: FastAPI,
    tests: AbTests,
    *,
    viewer: Callable[..., Identity | Awaitable[Identity]],
    operator: Callable[..., Identity | Awaitable[Identity]],
    slow: SlowCalls,
) -> None:
    """Mount POST, GET and DELETE /v1/services/{service}/ab. viewer, operator: check the token's role."""
    may_write = Depends(operator)
    given = json_body(operator, body_calls())
    shown, writes = ab_calls(), write_calls()

    @app.post("/v1/services/{service}/ab", status_code=201, openapi_extra=_BODY)
    async def create_ab(service: str, body: Any = given, identity: Identity = may_write) -> AbView:
        """Start an A/B test: B gets its share. 409 while a rollout or another test runs."""
        if not isinstance(body, Mapping):
            raise BadInput(f"body is {json.dumps(body)[:40]}; send a JSON object with version")
        return await slow.run(lambda: tests.create(service, body, identity))

    @app.get("/v1/services/{service}/ab", dependencies=[Depends(viewer)])
    async def get_ab(service: str) -> AbView:
        """The service's newest A/B test and its current result. 503 while it is replayed from the store."""
        return await shown.run(lambda: tests.status(service))

    @app.delete("/v1/services/{service}/ab", status_code=202)
    async def stop_ab(service: str, identity: Identity = may_write) -> CommandResult:
        """End the test and roll B back; the result stays readable."""
        outcome, text = await writes.run(lambda: tests.stop(service, identity))
        return CommandResult(outcome=outcome, text=text)
