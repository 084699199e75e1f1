"""A controller without ticks, and its API over ASGI with the admin's token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from controller.auth import admin_token
from tests.fakes.controller import FakeController, SharedApi


@pytest.fixture(scope="session")
def shared_api() -> SharedApi:
    return SharedApi()


@pytest.fixture
def controller(tmp_path: Path, shared_api: SharedApi) -> FakeController:
    """Without ticks: the API's answers must not depend on one, and tests end rollouts themselves."""
    return FakeController(tmp_path, api=shared_api)


@pytest.fixture
async def api(controller: FakeController) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {admin_token(controller.home)}"}
    transport = httpx.ASGITransport(app=controller.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        yield client
