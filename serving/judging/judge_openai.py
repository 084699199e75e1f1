"""A judge behind any OpenAI-compatible endpoint: one question, one token, its probabilities.

Rules:
1. An answer that does not come in time, or cannot be read, is no verdict: `None`. A question that is refused
   is asked in another form (`_formed`), until the endpoint has answered one; from then on nothing is asked
   twice (`request_forms.py`).
2. Never more questions at once than `at_once`; the others wait.
3. After FAILURES_IN_A_ROW without an answer the judge is not asked for a while, twice as long each time
   (circuit breaker). What would be asked then is no verdict. A refusal of one question (400, 413, 422) says
   nothing of the next, and does not count.
4. Of its answer ANSWER_LIMIT bytes are read, as they are sent: no compression, which could hide more. One
   that comes in drops has `timeout_s` in all.
5. To a judge inside (`Endpoint.is_inside`, or one with an engine's secret) no proxy of the environment is
   used: it would see texts and key.

Invariant: no text that is judged is in a log or an error.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import httpx

from serving.credentials import DataSecret
from serving.engine_headers import VIA_HEADER
from serving.json_value import json_value
from serving.judging.chat_answer import whole_answer
from serving.judging.chat_client import beginning_of
from serving.judging.questions import Question, shares
from serving.judging.request_forms import RequestForms
from serving.network_errors import network_reason
from serving.targets import Endpoint, Target

FAILURES_IN_A_ROW = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
TOP_LOGPROBS = 20
WORD_TOKENS = 16  # of a judge without log probabilities; some endpoints take no smaller limit
THINKING_TOKENS = 2048  # of one that takes `max_completion_tokens` alone: it thinks before its word
ANSWER_LIMIT = 1 << 20  # bytes
REFUSAL_LIMIT = 300  # characters
OTHER_WORDS = "its answer is none of the words"
NO_ANSWER = "no answer"
# By which endpoints refuse `logprobs`, `max_tokens` or `temperature`, each its own.
_OF_ANOTHER_FORM = frozenset(f"status {one}" for one in (400, 403, 422, 500, 501))
# A question that is too long for the judge's context, as a rule: the next one may be short.
_OF_ONE_QUESTION = frozenset({"status 400", "status 413", "status 422"})


# timeout: it did not come in time.  unreadable: not of the form, none of the words, or the question was
# refused.  no judge: the endpoint failed, refused whoever asks, could not be reached, or is left alone.
Cause: TypeAlias = Literal["timeout", "unreadable", "no judge"]


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said to one question. shares: the probability of each word; None: no verdict."""

    shares: Mapping[str, float] | None
    cause: Cause | None  # why there is no verdict; None: there is one
    tokens: int = 0  # of question and answer, as the endpoint counts them
    why: str | None = None  # the cause in more words; None: there is a verdict
    refusal: str = ""  # what the endpoint said of a question that it refused, if that is kept


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    likely: list[tuple[str, float]]  # what it might have said: tokens with their log probabilities
    tokens: int


@dataclass(frozen=True, slots=True)
class _Nothing:
    """No answer: its cause, and why in more words."""

    cause: Cause
    why: str
    refusal: str = ""


@dataclass(slots=True)
class JudgeOpenAI:
    """One judge. `url`: its base URL as written. `keeps_refusal`: what it says of a question that it refuses
    is kept. That may repeat what it was sent, so this is for texts that are no user's.

    Invariant: what is of one question is in what `said` returns, for several are asked at once.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    secret: DataSecret | None = field(default=None, repr=False)  # of an engine of ours; None: an endpoint
    timeout_s: float = 30.0
    at_once: int = 4
    clock: Callable[[], float] = time.monotonic
    keeps_refusal: bool = False
    asked: int = 0
    tokens: int = 0  # of questions and answers, as the endpoint counts them
    _client: httpx.AsyncClient | None = field(default=None, repr=False)
    _places: asyncio.Semaphore | None = field(default=None, repr=False)
    _failures: int = 0
    _paused_until_s: float = -math.inf
    _forms: RequestForms = field(default_factory=lambda: RequestForms(3), repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError for a URL that is none."""
        Endpoint.parsed(self.url)

    async def __aenter__(self) -> JudgeOpenAI:
        # With a transport of its own the client reads no proxies; certificates of the environment hold.
        is_inside = self.secret is not None or Endpoint.parsed(self.url).is_inside
        direct = httpx.AsyncHTTPTransport() if is_inside else None
        self._client = httpx.AsyncClient(timeout=self.timeout_s, transport=direct)
        self._places = asyncio.Semaphore(self.at_once)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def ask(self, question: Question) -> dict[str, float] | None:
        """The probability of each of the question's words; None: no verdict."""
        found = (await self.said(question)).shares
        return None if found is None else dict(found)

    async def said(self, question: Question, *, via: bytes = b"") -> Said:
        """What it says to the question, or why that is no verdict. via: through which routers the request
        came whose answer is judged: where the question comes to one of them it is refused (508)."""
        assert self._places is not None, "enter the judge first"
        async with self._places:
            if self.clock() < self._paused_until_s:
                return Said(None, "no judge", why="it is not asked for a while: it did not answer")
            answer: _Answer | _Nothing = _Nothing("no judge", NO_ANSWER)
            for form in self._forms.to_try():
                answer = await self._answer(question, via, form)
                if isinstance(answer, _Answer):
                    self._forms.answered(form)
                if isinstance(answer, _Answer) or answer.why not in _OF_ANOTHER_FORM:
                    break
        if isinstance(answer, _Nothing):
            if answer.why not in _OF_ONE_QUESTION:
                self._failed()
            return Said(None, answer.cause, why=answer.why, refusal=answer.refusal)
        self._failures = 0
        found = shares(question, answer.text, answer.likely)
        if found is None:
            return Said(None, "unreadable", answer.tokens, OTHER_WORDS)
        return Said(found, None, answer.tokens)

    async def _answer(self, question: Question, via: bytes, form: int) -> _Answer | _Nothing:
        """Its answer to the question in this form, or why there is none."""
        assert self._client is not None, "enter the judge first"
        self.asked += 1
        body = {"model": self.model, "messages": list(question.messages), **_formed(form)}
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        headers |= {"accept-encoding": "identity", **(self.secret.headers if self.secret is not None else {})}
        if via:
            headers[VIA_HEADER.decode()] = via.decode()
        url = str(Endpoint.parsed(self.url).url(Target("/v1/chat/completions")))
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._client.stream("POST", url, json=body, headers=headers) as response,
            ):
                if not response.is_success:
                    why = f"status {response.status_code}"
                    said = await beginning_of(response) if self.keeps_refusal else b""
                    refusal = said.decode("utf-8", "replace")[:REFUSAL_LIMIT]
                    return _Nothing("unreadable" if why in _OF_ONE_QUESTION else "no judge", why, refusal)
                data = bytearray()
                async for piece in response.aiter_raw():
                    data += piece
                    if len(data) > ANSWER_LIMIT:
                        return _Nothing("unreadable", f"its answer has over {ANSWER_LIMIT} bytes")
            return self._read(json_value(data))
        except (httpx.TimeoutException, TimeoutError):
            return _Nothing("timeout", f"{NO_ANSWER} within {self.timeout_s:g} s")
        except httpx.HTTPError as exc:
            return _Nothing("no judge", network_reason(exc))
        except (ValueError, LookupError, TypeError, AttributeError):
            return _Nothing("unreadable", "its answer is not of the form of chat completions")

    def _read(self, data: Any) -> _Answer:
        """Of a whole answer. Raises ValueError, KeyError, TypeError and AttributeError for another form."""
        answer = whole_answer(data)
        if answer is None:
            raise ValueError
        self.tokens += answer.tokens
        content = (data["choices"][0].get("logprobs") or {}).get("content") or []
        likely = [
            (str(one["token"]), float(one["logprob"]))
            for one in (content[0].get("top_logprobs") or [] if content else [])
        ]
        return _Answer(answer.text, likely, answer.tokens)

    def _failed(self) -> None:
        self._failures += 1
        rounds = self._failures - FAILURES_IN_A_ROW
        if rounds >= 0:
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(rounds, 10), LONGEST_PAUSE_S)
            self._paused_until_s = self.clock() + pause_s


def _formed(form: int) -> dict[str, Any]:
    """How much of an answer is asked for: by its first token's probabilities; by a word; by a word of a judge
    that takes neither a temperature nor `max_tokens`."""
    if form == 2:
        return {"max_completion_tokens": THINKING_TOKENS}
    if form == 1:
        return {"max_tokens": WORD_TOKENS, "temperature": 0.0}
    return {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
