"""Users for the demo: a real OpenAI client asks questions whose answers are known, and grades what it got.

Runs in a thread of its own with its own event loop, so that the terminal stays live. Half of the answers are
streamed. A request fails when the client raises, or when its answer ends without a finish reason.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx
import openai

ANSWER_TOKENS = 24
GRADE_RETRY_S, GRADE_TRIES = 1.0, 25  # the demo's policy counts grades that come within 30 s
STABLE, CANARY = "stable", "canary"


class Question(Protocol):
    """A prompt whose right answer is known."""

    @property
    def prompt(self) -> str: ...
    def is_right(self, text: str) -> bool: ...


@dataclass(slots=True)
class Tally:
    """What the users saw so far. Counters by arm; `failures` holds one line for each failed request."""

    answered: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    grades_lost: int = 0  # grades that the controller did not take; evidence lost, no request failed

    @property
    def requests(self) -> int:
        return self.answered.total() + len(self.failures)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the users send their requests and their grades."""

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
        asyncio.run(self._all())

    async def _all(self) -> None:
        client = openai.AsyncOpenAI(base_url=self._target.base_url, api_key="not-needed", max_retries=0)
        headers = {"Authorization": f"Bearer {self._target.token}"}
        async with client, httpx.AsyncClient(headers=headers, timeout=10.0) as grades:
            await asyncio.gather(*(self._user(seed, client, grades) for seed in range(self._concurrency)))

    async def _user(self, seed: int, client: openai.AsyncOpenAI, grades: httpx.AsyncClient) -> None:
        rng = random.Random(seed)
        pending: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            question = rng.choice(self._questions)
            started_s = time.monotonic()
            try:
                answer_id, arm, text = await self._ask(client, question, stream=rng.random() < 0.5)
            except (openai.OpenAIError, httpx.HTTPError, IncompleteAnswer) as exc:
                waited_s = time.monotonic() - started_s
                self.tally.failures.append(f"after {waited_s:.2f} s: {type(exc).__name__}: {exc}")
                continue
            is_right = question.is_right(text)
            self.tally.answered[arm] += 1
            self.tally.right[arm] += is_right
            pending.add(grading := asyncio.create_task(self._grade(grades, answer_id, is_right=is_right)))
            grading.add_done_callback(pending.discard)
            await asyncio.sleep(self._think_s)
        for grading in pending:
            grading.cancel()

    async def _ask(
        self, client: openai.AsyncOpenAI, question: Question, *, stream: bool
    ) -> tuple[str, str, str]:
        """Id of the answer, arm, text. Raises IncompleteAnswer when it ended without a finish reason."""
        ask = client.chat.completions.with_raw_response
        message = {"role": "user", "content": question.prompt}
        if not stream:
            raw = await ask.create(
                model=self._target.model,
                messages=[message],  # type: ignore[list-item]
                temperature=0.0,
                max_tokens=ANSWER_TOKENS,
            )
            answer = raw.parse()
            choice = answer.choices[0]
            _complete(choice.finish_reason)
            return answer.id, _arm(raw.headers), choice.message.content or ""
        raw_stream = await ask.create(
            model=self._target.model,
            messages=[message],  # type: ignore[list-item]
            temperature=0.0,
            max_tokens=ANSWER_TOKENS,
            stream=True,
        )
        answer_id, text, finish = "", "", None
        chunks = raw_stream.parse()
        if not isinstance(chunks, openai.AsyncStream):
            raise IncompleteAnswer("asked for a stream, got a whole answer")
        async for chunk in chunks:
            answer_id = chunk.id
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
        _complete(finish)
        return answer_id, _arm(raw_stream.headers), text

    async def _grade(self, grades: httpx.AsyncClient, answer_id: str, *, is_right: bool) -> None:
        """Hand the grade in; while the controller is away, again and again until it is too late to count."""
        body = {"id": answer_id, "metric": "quality", "score": float(is_right)}
        for _ in range(GRADE_TRIES):
            try:
                if (await grades.post(self._target.feedback_url, json=body)).is_success:
                    return
            except httpx.TransportError:
                pass  # nobody listens there now
            await asyncio.sleep(GRADE_RETRY_S)
        self.tally.grades_lost += 1


class IncompleteAnswer(Exception):
    """A 200 whose answer ended without a finish reason: the user saw a sentence cut off."""


def _complete(finish: str | None) -> None:
    if finish is None:
        raise IncompleteAnswer("no finish reason")


def _arm(headers: Mapping[str, str]) -> str:
    return CANARY if headers.get("x-canaryctl-arm") == CANARY else STABLE
