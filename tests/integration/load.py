"""Load of a router by closed-loop clients, which note every answer that was not right."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from serving.checkpoints import questions

LONG_TOKENS = 600


@dataclass
class Traffic:
    """Closed-loop clients of the router, with short answers and streams alternating; records failures."""

    base: str
    model: str = "chat"
    workers: int = 4
    streams: bool = True  # every third answer
    answered: int = 0
    arms: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Traffic:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(120)

    def at_least(self, answered: int) -> None:
        deadline_s = time.time() + 60
        target = self.answered + answered
        while self.answered < target:
            assert time.time() < deadline_s, (self.answered, self.failures[:3])
            time.sleep(0.05)

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._work(session, worker) for worker in range(self.workers)))

    async def _work(self, session: aiohttp.ClientSession, worker: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            why = await self._one(session, f"user-{worker}-{count}", stream=self.streams and count % 3 == 0)
            self.answered += 1
            if why:
                self.failures.append(why)

    async def _one(
        self, session: aiohttp.ClientSession, user: str, *, stream: bool, **more: Any
    ) -> str | None:
        prompt = questions()[hash(user) % 600].prompt
        message = {"role": "user", "content": prompt}
        body = {"model": self.model, "messages": [message], "user": user, "stream": stream, **more}
        try:
            async with session.post(f"{self.base}/v1/chat/completions", json=body) as answer:
                text = await answer.text()
                arm = answer.headers.get("x-canaryctl-arm", "none")
                self.arms[arm] = self.arms.get(arm, 0) + 1
                if answer.status != 200:
                    return f"{answer.status} {text[:200]}"
                if stream and not text.rstrip().endswith("[DONE]"):
                    return f"stream of {arm} without its end: {text[-200:]}"
                return None
        except (aiohttp.ClientError, TimeoutError) as exc:
            return repr(exc)

    def long_streams(self, count: int) -> LongStreams:
        return LongStreams(self, count)


class LongStreams:
    """Streams of many tokens, all begun by `start`; `wait` returns their failures."""

    def __init__(self, traffic: Traffic, count: int) -> None:
        self._traffic, self._count = traffic, count
        self.failures: list[str] = []
        self.arms: dict[str, int] = {}

    def start(self) -> LongStreams:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def wait(self) -> list[str]:
        self._thread.join(180)
        assert not self._thread.is_alive()
        return self.failures

    async def _run(self) -> None:
        one = Traffic(self._traffic.base, self._traffic.model)
        more = {"max_tokens": LONG_TOKENS, "ignore_eos": True}
        async with aiohttp.ClientSession() as session:
            failures = await asyncio.gather(
                *(one._one(session, f"long-{index}", stream=True, **more) for index in range(self._count))
            )
        self.failures = [why for why in failures if why]
        self.arms = one.arms
