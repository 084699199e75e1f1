"""Slow calls: hashing never holds up a rollback, and too much of it is refused."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from controller.api.slow_calls import MAX_CALLS
from controller.planning.fingerprint import Fingerprint
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeEnvironment

URL = "/v1/services/chat"


@pytest.fixture(autouse=True)
async def chat(api: httpx.AsyncClient, tmp_path: Path) -> None:
    """The service `chat`."""
    model = write_checkpoint(tmp_path / "stable", seed=1)
    assert (await api.put(URL, json={"model": str(model)})).status_code == 200


@pytest.mark.integration
@pytest.mark.parametrize("command", ["plan", "rollouts"])
async def test_a_rollback_does_not_wait_for_any_number_of_hashing_requests(
    api: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    is_hashed, real = threading.Event(), FakeEnvironment.fingerprint

    def slow(self: FakeEnvironment, version: object) -> Fingerprint:
        assert is_hashed.wait(20.0)
        return real(self, version)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeEnvironment, "fingerprint", slow)
    body = {"version": {"model": str(write_checkpoint(tmp_path / "next", seed=2))}}
    requests = [asyncio.create_task(api.post(f"{URL}/{command}", json=body)) for _ in range(MAX_CALLS + 2)]
    try:
        waiting = set(requests)
        while len(waiting) > MAX_CALLS:  # two are refused at once
            _, waiting = await asyncio.wait(waiting, timeout=20.0, return_when=asyncio.FIRST_COMPLETED)
        rolled_back = await asyncio.wait_for(api.post(f"{URL}/rollback"), timeout=5.0)
        status = await asyncio.wait_for(api.get(URL), timeout=5.0)
    finally:
        is_hashed.set()
        codes = sorted(answer.status_code for answer in await asyncio.gather(*requests))

    assert (rolled_back.status_code, status.status_code) == (202, 200)
    assert codes[-2:] == [503, 503]
    assert codes[0] in (200, 201)
