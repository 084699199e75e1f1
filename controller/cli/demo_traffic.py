"""Simulated users of the demo: an OpenAI client sends questions with known answers and scores the replies.

Runs in its own thread with its own event loop, so that the terminal stays responsive. Half of the answers are
streamed. A request has failed when the client raises, or when its answer ends without a finish reason.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import openai

from serving.network_errors import network_reason

ANSWER_TOKENS = 24
SCORE_RETRY_S, SCORE_TRIES = 1.0, 25  # the demo's policy counts scores that arrive within 30 s
STABLE, CANARY = "stable", "canary"


class Question(Protocol):
    """A prompt whose correct answer is known."""

    @property
    def prompt(self) -> str: ...
    def is_right(self, text: str) -> bool: ...


@dataclass(slots=True)
class Tally:
    """Counts so far, by arm."""

    answered: Counter[str] = field(default_factory=Counter)
    correct: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # one line for each failed request
    scores_lost: int = 0  # scores the controller did not accept; lost evidence, not failed requests

    @property
    def requests(self) -> int:
        return self.answered.total() + len(self.failures)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the users send requests and scores."""

    base_url: str  # of the service, ending in /v1
    model: str
    feedback_url: str
    token: str


class Users:
    """`concurrency` users in a closed loop, each pausing `think_s` between requests; a context manager."""

    def __init__(
        self, target: Target, questions: Sequence[Question], *, concurrency: int = 6, think_s: float = 0.02
    ) -> None:
        self.tally = Tally()
        self._target = target
        self._questions = questions
        self._concurrency = concurrency
        self._think_s = think_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-users", daemon=True)

    def __enter__(self) -> Users:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._run_users())

    async def _run_users(self) -> None:
        client = openai.AsyncOpenAI(base_url=self._target.base_url, api_key="not-needed", max_retries=0)
        headers = {"Authorization": f"Bearer {self._target.token}"}
        async with client, httpx.AsyncClient(headers=headers, timeout=10.0) as feedback:
            await asyncio.gather(*(self._user(seed, client, feedback) for seed in range(self._concurrency)))

    async def _user(self, seed: int, client: openai.AsyncOpenAI, feedback: httpx.AsyncClient) -> None:
        rng = random.Random(seed)
        pending: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            question = rng.choice(self._questions)
            started_s = time.monotonic()
            try:
                answer_id, arm, text = await self._request(client, question, stream=rng.random() < 0.5)
            except (openai.OpenAIError, httpx.HTTPError, IncompleteAnswer) as exc:
                waited_s = time.monotonic() - started_s
                self.tally.failures.append(f"after {waited_s:.2f} s: {_reason(exc)}")
                continue
            is_correct = question.is_right(text)
            self.tally.answered[arm] += 1
            self.tally.correct[arm] += is_correct
            pending.add(
                scoring := asyncio.create_task(self._score(feedback, answer_id, is_correct=is_correct))
            )
            scoring.add_done_callback(pending.discard)
            await asyncio.sleep(self._think_s)
        for scoring in pending:
            scoring.cancel()

    async def _request(
        self, client: openai.AsyncOpenAI, question: Question, *, stream: bool
    ) -> tuple[str, str, str]:
        """Answer id, arm and text. Raises IncompleteAnswer when it ended without a finish reason."""
        completions = client.chat.completions.with_raw_response
        request: dict[str, Any] = {
            "model": self._target.model,
            "messages": [{"role": "user", "content": question.prompt}],
            "temperature": 0.0,
            "max_tokens": ANSWER_TOKENS,
        }
        if not stream:
            raw = await completions.create(**request)
            answer = raw.parse()
            choice = answer.choices[0]
            _check_finish(choice.finish_reason)
            return answer.id, _arm(raw.headers), choice.message.content or ""
        raw_stream = await completions.create(**request, stream=True)
        answer_id, text, finish = "", "", None
        chunks = raw_stream.parse()
        if not isinstance(chunks, openai.AsyncStream):
            raise IncompleteAnswer("requested a stream, received a whole answer")
        async for chunk in chunks:
            answer_id = chunk.id
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
        _check_finish(finish)
        return answer_id, _arm(raw_stream.headers), text

    async def _score(self, feedback: httpx.AsyncClient, answer_id: str, *, is_correct: bool) -> None:
        """Send the score; while the controller is unreachable, retry until it is too late to count."""
        body = {"id": answer_id, "metric": "quality", "score": float(is_correct)}
        for _ in range(SCORE_TRIES):
            try:
                if (await feedback.post(self._target.feedback_url, json=body)).is_success:
                    return
            except httpx.TransportError:
                pass  # the controller is down
            await asyncio.sleep(SCORE_RETRY_S)
        self.tally.scores_lost += 1


def _reason(error: Exception) -> str:
    """Why a request failed, in one line."""
    is_network = isinstance(error, openai.APIConnectionError | httpx.HTTPError)
    return network_reason(error) if is_network else str(error)


class IncompleteAnswer(Exception):
    """A 200 whose answer ended without a finish reason: truncated."""


def _check_finish(finish: str | None) -> None:
    if finish is None:
        raise IncompleteAnswer("no finish reason")


def _arm(headers: Mapping[str, str]) -> str:
    return CANARY if headers.get("x-canaryctl-arm") == CANARY else STABLE
