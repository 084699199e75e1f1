"""kill -9 and SIGSTOP of a real vLLM engine at random moments, under load: two engines of one checkpoint.

Engines are the fleet's, in a Ray cluster of this run's own; the router is `router.py`, a process. Clients ask
greedily and know the text, the finish and the usage of every answer from an undisturbed one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.soak import on_fakes, router
from serving import checkpoints, cluster_ray
from serving.credentials import ControlSecret, DataSecret
from serving.fleet.types import Launch, VersionStatus
from tests.fakes.token_engine import Answer

if TYPE_CHECKING:
    # Imported where it is used: Ray reads the cluster's token when it is first imported.
    from serving.fleet.fleet_ray import RayFleet

SECRET = "of-the-soak"
TOKEN = 5  # of the one controller that this run acts as
LOAD_S = 300.0
CLIENTS = 6
TOKENS = 120
CHAT, COMPLETIONS = (f"/{router.SERVICE}/v1/{name}" for name in ("chat/completions", "completions"))
QUESTIONS = ("What is the capital of France?", "Tell me of Zürich, 日本 and 🇫🇷", "Count to one hundred")
#: Shorter than the shipped ones, and than what the fleet gives a frozen engine before it kills it (8 s).
LIMITS = {
    "connect_s": 3.0,
    "canary_stream_s": 5.0,
    "canary_whole_s": 5.0,
    "stall_s": 4.0,
    "keep_alive_s": 0.5,
}
FREEZE_S = 6.0


class Engines:
    """Two engines of one checkpoint, and the file from which the router reads where they are."""

    def __init__(self, fleet: RayFleet, table: Path) -> None:
        self._fleet, self._table = fleet, table
        checkpoints.ensure()
        model = str(checkpoints.default_dir() / "stable")
        self._launches = {
            arm: Launch(router.SERVICE, f"v-{arm}", SECRET, model_dir=model) for arm in ("stable", "canary")
        }
        for launch in self._launches.values():
            fleet.ensure(launch, token=TOKEN)
        self.publish()

    def url(self, arm: str) -> str:
        """Where the arm's engine is, as soon as one is ready. Raises RuntimeError."""
        deadline_s = time.monotonic() + LOAD_S
        version = self._launches[arm].version
        while time.monotonic() < deadline_s:
            found: VersionStatus | None = None
            for status in self._fleet.observe(router.SERVICE) or ():
                found = status if status.version == version else found
            if found is not None and found.phase == "ready" and found.urls:
                return found.urls[0]
            time.sleep(0.2)
        raise RuntimeError(f"the engine of {arm} is not ready after {LOAD_S} s")

    def publish(self, canary: str | None = None) -> str:
        """Write the addresses; that of the canary. canary: an address that it must not have any more."""
        deadline_s = time.monotonic() + LOAD_S
        while (url := self.url("canary")) == canary:
            if time.monotonic() > deadline_s:
                raise RuntimeError("the killed engine was not replaced")
            time.sleep(0.2)
        self._table.write_text(json.dumps({"stable": [self.url("stable")], "canary": [url]}))
        return url

    def stop(self) -> None:
        """Unload both."""
        for launch in self._launches.values():
            self._fleet.stop(launch.service, launch.version, token=TOKEN)


@contextlib.contextmanager
def engines(table: Path) -> Iterator[Engines]:
    """A cluster of its own with two engines; nothing of it remains."""
    handle = cluster_ray.start(cluster_ray.ClusterSettings(num_gpus=4))
    try:
        cluster_ray.connect(handle)
        from serving.fleet.fleet_ray import RayFleet
        from serving.table.traffic_ray import RayTraffic

        fleet = RayFleet(timeout_s=10.0)
        fleet.open(http_port=handle.http_port)
        traffic = RayTraffic(timeout_s=10.0)
        traffic.open(router.SERVICE, SECRET, token=TOKEN, silence_s=None)
        one = Engines(fleet, table)
        yield one
        one.stop()
        cluster_ray.disconnect()
    finally:
        cluster_ray.stop(handle)


def asked(path: str, question: str) -> dict[str, Any]:
    """A greedy stream of a fixed length."""
    shape = {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"prompt": question}
    body = {"model": router.SERVICE, "stream": True, "temperature": 0, "max_tokens": TOKENS}
    return {**body, "ignore_eos": True, "stream_options": {"include_usage": True}, **shape}


@dataclass
class Load:
    """Clients in a closed loop; every event of every answer is checked."""

    base: str
    expected: Mapping[tuple[str, str], tuple[object, ...]] = field(default_factory=dict)
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    is_stopping: bool = False

    async def learn(self, client: httpx.AsyncClient) -> None:
        """Ask each question once, undisturbed."""
        found = {}
        for path, question in itertools.product((CHAT, COMPLETIONS), QUESTIONS):
            found[path, question] = await self._ask(client, path, question, "u-0")
        self.expected = found

    async def run(self, worker: int) -> None:
        """One client."""
        async with httpx.AsyncClient(base_url=self.base, timeout=120) as client:
            for count, key in enumerate(itertools.cycle(self.expected)):
                if self.is_stopping:
                    return
                try:
                    one = await self._ask(client, *key, f"u-{worker}-{count}")
                    self.answers += 1
                    if one != self.expected[key]:
                        self.failures.append(f"{key}: {one}, not {self.expected[key]}")
                except (AssertionError, httpx.HTTPError) as exc:
                    self.failures.append(f"{key}: {type(exc).__name__} {exc}"[:600])
                    await asyncio.sleep(0.2)

    async def _ask(
        self, client: httpx.AsyncClient, path: str, question: str, user: str
    ) -> tuple[object, ...]:
        response = await client.post(path, json={**asked(path, question), "user": user})
        assert response.status_code == 200, response.text
        one = Answer(response.content, path == CHAT)
        return one.text, one.finish, one.usage


def run(kind: str, strikes: int, seed: int = 0) -> dict[str, Any]:
    """Strike so many times. kind: `killed` or `frozen`."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, contextlib.ExitStack() as stack:
        table, records = Path(folder) / "table.json", Path(folder) / "records.jsonl"
        both = stack.enter_context(engines(table))
        settings = router.Settings(str(table), str(records), DataSecret.of(SECRET).text, 8000, LIMITS)
        process, port = on_fakes.start("benchmarks.soak.router", settings)
        stack.callback(on_fakes.stop, process)
        load = Load(f"http://127.0.0.1:{port}")
        done = asyncio.run(_strike_all(kind, strikes, both, load, random.Random(seed)))
        on_fakes.stop(process)
        found = [json.loads(line) for line in records.read_bytes().splitlines()]
    return _figures(load, found, done, time.monotonic() - began_s)


async def _strike_all(kind: str, strikes: int, both: Engines, load: Load, random_: random.Random) -> int:
    url = await asyncio.to_thread(both.publish)
    async with httpx.AsyncClient(base_url=load.base, timeout=120) as client:
        await load.learn(client)
    done = 0
    async with asyncio.TaskGroup() as group:
        for worker in range(CLIENTS):
            group.create_task(load.run(worker))
        try:
            while done < strikes:
                await asyncio.sleep(random_.uniform(0.5, 2.5))
                state = await _state(url)
                if not state.get("in_flight"):
                    continue
                done += 1
                if kind == "killed":
                    os.kill(state["pid"], signal.SIGKILL)
                    url = await asyncio.to_thread(both.publish, url)
                else:
                    os.kill(state["pid"], signal.SIGSTOP)
                    await asyncio.sleep(FREEZE_S)
                    os.kill(state["pid"], signal.SIGCONT)
                    url = await asyncio.to_thread(both.publish)
        finally:
            load.is_stopping = True
    return done


async def _state(url: str) -> dict[str, Any]:
    headers = ControlSecret.of(SECRET).headers
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=10) as client:
        try:
            state: dict[str, Any] = (await client.get("/_canaryctl/state")).json()
        except httpx.HTTPError:
            return {}
        return state


def _figures(load: Load, records: list[dict[str, Any]], strikes: int, took_s: float) -> dict[str, Any]:
    struck = [one for one in records if one["arm"] == 1 and one["error"]]
    wrong = [
        f"{one['request_id']}: {one['arm']} {one['error']} {one['cause']} {one['outcome']}"
        for one in records
        if (one["arm"] == 0 and one["error"])
        or (one["served_arm"] == 0 and one["arm"] == 1 and not one["error"])
        or (one["takeover_at"] is not None and (one["taken_over_by"] != 0 or one["outcome"] != "fallback"))
    ]
    return {
        "strikes": strikes,
        "answers": load.answers,
        "hit": len(struck),
        "taken_over": sum(one["takeover_at"] is not None for one in struck),
        "causes": dict(Counter(str(one["cause"]) for one in struck)),
        "failures": {"count": len(load.failures), "first": load.failures[:10]},
        "mismatches": {"count": len(wrong), "first": wrong[:10]},
        "took_s": round(took_s, 1),
    }
