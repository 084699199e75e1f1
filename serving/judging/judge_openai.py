"""A judge behind any OpenAI-compatible endpoint: one question, one token, its probabilities.

Rules:
1. An answer that does not come in time, or cannot be read, is no verdict: `None`. Nothing is asked twice.
2. Never more questions at once than `at_once`; the others wait.
3. After FAILURES_IN_A_ROW without an answer the judge is not asked for a while, twice as long each time
   (circuit breaker). What would be asked then is no verdict.

Invariant: no text that is judged is in a log or an error.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving.judging.questions import Question, shares
from serving.targets import Endpoint, Target

FAILURES_IN_A_ROW = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
TOP_LOGPROBS = 20
ANSWER_LIMIT = 1 << 20  # bytes
REFUSAL_LIMIT = 300  # characters
OTHER_WORDS = "its answer is none of the words"
NO_ANSWER = "no answer"


@dataclass(slots=True)
class JudgeOpenAI:
    """One judge. `url`: its base URL as written. `trouble`: why its last question has no verdict.
    `refusal`: what the endpoint said of the first question that it refused. It may repeat what it was sent,
    so it is shown only where that is no user's text."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    at_once: int = 4
    clock: Callable[[], float] = time.monotonic
    trouble: str | None = None  # None: it has one
    first_trouble: str | None = None  # of the first question without a verdict; None: there was none
    refusal: str = ""
    asked: int = 0
    tokens: int = 0  # of questions and answers, as the endpoint counts them
    _client: httpx.AsyncClient | None = field(default=None, repr=False)
    _places: asyncio.Semaphore | None = field(default=None, repr=False)
    _failures: int = 0
    _paused_until_s: float = -math.inf
    _has_logprobs: bool = True  # the endpoint gives them

    def __post_init__(self) -> None:
        """Raises ValueError for a URL that is none."""
        Endpoint.parsed(self.url)

    async def __aenter__(self) -> JudgeOpenAI:
        self._client = httpx.AsyncClient(timeout=self.timeout_s)
        self._places = asyncio.Semaphore(self.at_once)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def ask(self, question: Question) -> dict[str, float] | None:
        """The probability of each of the question's words; None: no verdict, and `trouble` says why."""
        assert self._places is not None, "enter the judge first"
        found = await self._asked(question)
        self.first_trouble = self.first_trouble or self.trouble
        return found

    async def _asked(self, question: Question) -> dict[str, float] | None:
        assert self._places is not None, "enter the judge first"
        async with self._places:
            if self.clock() < self._paused_until_s:
                self.trouble = "it is not asked for a while: it did not answer"
                return None
            answer = await self._answer(question)
            if answer is None and self._has_logprobs and self.trouble == "status 400":
                self._has_logprobs = False  # some endpoints refuse what they do not know
                answer = await self._answer(question)
        if answer is None:
            self._failed()
            return None
        self._failures = 0
        found = shares(question, *answer)
        self.trouble = None if found is not None else OTHER_WORDS
        return found

    async def _answer(self, question: Question) -> tuple[str, list[tuple[str, float]]] | None:
        """Its text, and what it might have said; None: no answer."""
        assert self._client is not None, "enter the judge first"
        self.asked += 1
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(question.messages),
            "max_tokens": 1 if self._has_logprobs else 8,
            "temperature": 0.0,
        }
        if self._has_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        url = Endpoint.parsed(self.url).url(Target("/v1/chat/completions"))
        try:
            response = await self._client.post(str(url), json=body, headers=headers)
            if response.status_code != httpx.codes.OK or len(response.content) > ANSWER_LIMIT:
                self.trouble = f"status {response.status_code}"
                self.refusal = self.refusal or response.text[:REFUSAL_LIMIT]
                return None
            return self._read(response.json())
        except httpx.TimeoutException:
            self.trouble = f"{NO_ANSWER} within {self.timeout_s:g} s"
        except httpx.HTTPError as exc:
            self.trouble = type(exc).__name__
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            self.trouble = "its answer is not of the form of chat completions"
        return None

    def _read(self, data: Any) -> tuple[str, list[tuple[str, float]]]:
        """Of a whole answer. Raises KeyError, IndexError, TypeError and AttributeError for another form."""
        choice = data["choices"][0]
        usage = data.get("usage") or {}
        total = usage.get("total_tokens")
        self.tokens += total if type(total) is int and total > 0 else 0
        content = (choice.get("logprobs") or {}).get("content") or []
        likely = [
            (str(one["token"]), float(one["logprob"]))
            for one in (content[0].get("top_logprobs") or [] if content else [])
        ]
        return str(choice["message"]["content"] or ""), likely

    def _failed(self) -> None:
        self._failures += 1
        rounds = self._failures - FAILURES_IN_A_ROW
        if rounds >= 0:
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(rounds, 10), LONGEST_PAUSE_S)
            self._paused_until_s = self.clock() + pause_s
