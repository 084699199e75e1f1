"""Slow calls: hashing never holds up a rollback, and too much of it is refused."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.api.app import ViewBuilder
from controller.api.event_stream import EVENTS_POLL_S, StreamedViews
from controller.api.slow_calls import MAX_CALLS, MAX_FEEDBACK, SlowCalls, view_calls
from controller.errors import Unreachable
from controller.planning.fingerprint import Fingerprint
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController, FakeEnvironment

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


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("reader", "path", "is_shown"), [("past", "/history", True), ("service", "", False)])
async def test_a_rollback_does_not_wait_for_any_number_of_readers(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, reader: str, path: str, is_shown: bool
) -> None:
    """A viewer's 150 requests for the history held a rollback's answer for 26 s."""
    is_read, held, real = threading.Event(), threading.Semaphore(0), getattr(ViewBuilder, reader)

    def slow(self: ViewBuilder, row: Any) -> object:
        held.release()
        assert is_read.wait(20.0)
        return real(self, row)

    await api.post(f"{URL}/rollouts", json={"version": {"url": "http://127.0.0.1:9"}})
    monkeypatch.setattr(ViewBuilder, reader, slow)
    requests = [asyncio.create_task(api.get(f"{URL}{path}")) for _ in range(60)]
    try:
        await asyncio.to_thread(held.acquire)
        rolled_back = await asyncio.wait_for(api.post(f"{URL}/rollback"), timeout=5.0)
        alive = await asyncio.wait_for(api.get("/healthz"), timeout=5.0)
        if is_shown:
            assert (await asyncio.wait_for(api.get(URL), timeout=5.0)).status_code == 200
    finally:
        is_read.set()
        codes = {answer.status_code for answer in await asyncio.gather(*requests)}

    assert (rolled_back.status_code, alive.status_code, codes) == (202, 200, {200})


@pytest.mark.slow
async def test_a_rollback_does_not_wait_behind_scores_and_too_many_are_sent_away(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind 800 scores for a log that did not answer it took 7.5 s, in the one pool of threads."""
    is_written, held = threading.Event(), threading.Semaphore(0)

    def slow(self: FakeEnvironment, service: str, scores: object) -> bool:
        held.release()
        assert is_written.wait(60)
        return True

    monkeypatch.setattr(FakeEnvironment, "append_scores", slow)
    score = {"id": "x", "score": 1}
    requests = [asyncio.create_task(api.post("/v1/feedback", json=score)) for _ in range(MAX_FEEDBACK + 2)]
    try:
        waiting = set(requests)
        while len(waiting) > MAX_FEEDBACK:  # two are refused at once
            _, waiting = await asyncio.wait(waiting, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(held.acquire)
        rolled_back = await asyncio.wait_for(api.post(f"{URL}/rollback"), timeout=60)
        alive = await asyncio.wait_for(api.get("/healthz"), timeout=60)
    finally:
        is_written.set()
        answers = await asyncio.gather(*requests)

    assert (rolled_back.status_code, alive.status_code) == (202, 200)
    sent_away = [one for one in answers if one.status_code == 503]
    assert [one.headers["retry-after"] for one in sent_away] == ["1", "1"]
    assert {one.status_code for one in answers} == {202, 503}


@pytest.mark.slow
async def test_all_streams_of_a_service_share_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 streams read the same view 1,600 times a second."""
    reads: list[str] = []

    def read(self: StreamedViews, service: str) -> tuple[str, int]:
        reads.append(service)
        return f"view {len(reads)}", 7

    monkeypatch.setattr(StreamedViews, "_read", read)
    nothing: Any = None
    views = StreamedViews(nothing, nothing, view_calls())

    shown = await asyncio.gather(*(views.of("chat") for _ in range(50)), views.of("code"))
    await asyncio.sleep(EVENTS_POLL_S)

    assert (set(shown), sorted(reads)) == ({("view 1", 7), ("view 2", 7)}, ["chat", "code"])
    assert await views.of("chat") == ("view 3", 7)


@pytest.mark.slow
async def test_a_call_that_never_returns_is_answered_and_keeps_its_place() -> None:
    slow, is_ended = SlowCalls(threads=1, max_calls=2, limit_s=0.05), threading.Event()

    for expected in ("took over 0.05 s", "took over 0.05 s", "at most 2 may"):
        with pytest.raises(Unreachable, match=expected):
            await slow.run(lambda: is_ended.wait(20.0))

    is_ended.set()
    await asyncio.wait(slow.running)
    assert await slow.run(lambda: "works again") == "works again"


@pytest.mark.slow
async def test_a_preflight_has_the_time_to_read_the_whole_checkpoint(
    controller: FakeController, api: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed minute was over before the weights of a large model had been hashed again."""
    real = FakeEnvironment.fingerprint

    def large(self: FakeEnvironment, version: object) -> Fingerprint:
        return replace(real(self, version), tensor_bytes=400 * 10**9)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeEnvironment, "fingerprint", large)
    body = {"version": {"model": str(write_checkpoint(tmp_path / "next", seed=2))}}
    answer = await api.post(f"{URL}/rollouts", json=body)

    stored = controller.store.load(answer.json()["rollout"])
    assert stored is not None
    assert stored.state.plan.preflight_s >= 4000.0
