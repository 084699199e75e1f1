"""Chat completions of any OpenAI-compatible endpoint, whole or streamed, for checks of its answers.

Rules:
1. What the endpoint says of a request is an answer; a refusal of the request by its status; what no client
   can read; or nothing that could be judged (no connection, no key, overload, no end in time).
2. An endpoint that takes no `temperature` or `max_tokens` (models that reason, behind some APIs) is asked by
   `max_completion_tokens` without a temperature, once the first request has shown that it answers so.
3. Nothing is asked twice, and an answer is read up to `ANSWER_LIMIT` bytes; where the request bounds its
   tokens, up to `BYTES_BESIDE` and `BYTES_OF_A_TOKEN` for each, as a streamed one may take.

Invariant: no text of a request or an answer, and no key, is in a log, an error or a `repr`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from serving.json_value import json_value
from serving.targets import Endpoint, Target

ANSWER_LIMIT = 4 << 20  # bytes
BYTES_BESIDE, BYTES_OF_A_TOKEN = 256 << 10, 1 << 10
CHAT = Target("/v1/chat/completions")
# The endpoint did not judge the request: the key, a limit, overload, or what stands before it
# (409: an engine of ours, whose route table has moved on).
_NOT_ASKED = frozenset({401, 402, 403, 407, 408, 409, 425, 429, 502, 503, 504})
_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
NO_WORD = "no word"  # in place of a finish reason that is a text: the endpoint's own, which may hold anything


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function: its name and its arguments as the model wrote them."""

    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of a chat completion."""

    text: str = field(repr=False)
    finish: str | None  # finish reason, or NO_WORD; None: there is none
    calls: tuple[ToolCall, ...] = ()
    is_reasoning: bool = False  # it holds reasoning beside its text
    tokens: int = 0  # of prompt and answer, as the endpoint counts them; 0: it does not


@dataclass(frozen=True, slots=True)
class Rejected:
    """The endpoint refuses this request, or cannot answer it, by its status."""

    status: int

    @property
    def is_unsupported(self) -> bool:
        """True: a client's fault by its status, as of what the endpoint does not have."""
        return self.status < 500 or self.status == 501


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Nothing can be said of the model. why: one line without a text of the endpoint's."""

    why: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """The endpoint answered in a form that no client reads. why: one line without a text of its own."""

    why: str


Said = Answer | Rejected | Malformed | NoAnswer


class Chat(Protocol):
    """What is asked: a `ChatClient`, or a model in tests."""

    at_once: int  # requests side by side that make sense

    async def ask(self, body: Mapping[str, Any], *, is_streamed: bool = False) -> Said:
        """What it says of one request at temperature 0. body: without model and temperature."""


@dataclass(slots=True)
class ChatClient:
    """One endpoint. url: its base URL as written. headers: sent with each request, and never shown."""

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = 60.0  # of one answer, to its end
    at_once: int = 4
    asked: int = 0
    tokens: int = 0
    _client: httpx.AsyncClient | None = field(default=None, repr=False)
    _places: asyncio.Semaphore | None = field(default=None, repr=False)
    _is_plain: bool | None = None  # it takes temperature and max_tokens; None: not known

    def __post_init__(self) -> None:
        """Raises ValueError for a URL that is none."""
        Endpoint.parsed(self.url)

    async def __aenter__(self) -> ChatClient:
        headers = {**self.headers, "accept-encoding": "identity"}  # a compressed answer may have any length
        is_tls = Endpoint.parsed(self.url).is_tls  # making a context for it takes 45 ms
        self._client = httpx.AsyncClient(
            timeout=self.timeout_s, headers=headers, trust_env=False, verify=is_tls
        )
        self._places = asyncio.Semaphore(self.at_once)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def ask(self, body: Mapping[str, Any], *, is_streamed: bool = False) -> Said:
        """What the endpoint says of one request at temperature 0. body: without model and temperature."""
        assert self._places is not None, "enter the client first"
        async with self._places:
            if self._is_plain is not False:
                said = await self._asked({**body, "temperature": 0.0}, is_streamed)
                is_refused = isinstance(said, Rejected) and said.status in (400, 422)
                if not is_refused or self._is_plain:
                    self._is_plain = self._is_plain or isinstance(said, Answer) or None
                    return said
            other = {key: value for key, value in body.items() if key != "max_tokens"}
            if "max_tokens" in body:
                other["max_completion_tokens"] = body["max_tokens"]
            second = await self._asked(other, is_streamed)
            if isinstance(second, Answer) and self._is_plain is None:
                self._is_plain = False
            return second

    async def models(self) -> Sequence[str] | NoAnswer:
        """The models that it lists; empty: it lists none."""
        found = await self._exchanged("GET", Target("/v1/models"))
        if isinstance(found, NoAnswer):
            return found
        value = json_value(found) if isinstance(found, bytes) else None
        listed = value.get("data") if isinstance(value, dict) else None
        names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return [name for name in names if isinstance(name, str)]

    async def _asked(self, body: Mapping[str, Any], is_streamed: bool) -> Said:
        self.asked += 1
        sent = {"model": self.model, **body, **({"stream": True} if is_streamed else {})}
        found = await self._exchanged("POST", CHAT, sent)
        if not isinstance(found, bytes):
            return found
        answer = streamed_answer(found) if is_streamed else whole_answer(json_value(found))
        if answer is None:
            return Malformed("an answer that is not of the form of chat completions")
        self.tokens += answer.tokens
        return answer

    async def _exchanged(
        self, method: str, target: Target, body: Mapping[str, Any] | None = None
    ) -> bytes | Rejected | Malformed | NoAnswer:
        """The whole body of an answer of status 200, or what there is in its place."""
        assert self._client is not None, "enter the client first"
        url = str(Endpoint.parsed(self.url).url(target))
        parts, size, limit = [], 0, _limit_of(body)
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._client.stream(method, url, json=body) as response,
            ):
                if response.status_code in _NOT_ASKED:
                    return NoAnswer(f"status {response.status_code}")
                if response.status_code != httpx.codes.OK:
                    return Rejected(response.status_code)
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    return Malformed("an answer that is compressed, though that was not accepted")
                async for part in response.aiter_raw():
                    size += len(part)
                    if size > limit:
                        return Malformed(f"an answer of more than {limit} bytes")
                    parts.append(part)
        except (TimeoutError, httpx.TimeoutException):
            return NoAnswer(f"no whole answer within {self.timeout_s:g} s")
        except httpx.HTTPError as exc:
            return NoAnswer(type(exc).__name__)
        return b"".join(parts)


def _limit_of(body: Mapping[str, Any] | None) -> int:
    """Bytes of the answer to a request."""
    tokens = (body or {}).get("max_tokens") or (body or {}).get("max_completion_tokens")
    if type(tokens) is not int:
        return ANSWER_LIMIT
    return min(ANSWER_LIMIT, BYTES_BESIDE + BYTES_OF_A_TOKEN * tokens)


def whole_answer(value: Any) -> Answer | None:
    """The first choice of a whole answer; None: it has another form."""
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    calls = message.get("tool_calls")
    read = [_call(one) for one in calls] if isinstance(calls, list) else []
    return Answer(
        _text(message.get("content")),
        _finish(choice),
        tuple(one for one in read if one is not None),
        _reasons(message),
        _tokens(value),
    )


def streamed_answer(data: bytes) -> Answer | None:
    """The first choice of a stream of events; None: it is none, or it did not end.

    Calls of tools are not put together: nothing here asks for them in a stream.
    """
    texts: list[str] = []
    finish, tokens, is_reasoning, has_ended = None, 0, False, False
    for line in data.splitlines():
        if not line.startswith(b"data:"):
            continue
        content = line[5:].strip()
        if content == b"[DONE]":
            has_ended = True
            break
        value = json_value(content)
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            return None
        tokens = max(tokens, _tokens(value))
        for choice in value["choices"]:
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta")
            if isinstance(delta, dict):
                texts.append(_text(delta.get("content")))
                is_reasoning = is_reasoning or _reasons(delta)
            finish = _finish(choice) or finish
    if not has_ended and finish is None:
        return None
    return Answer("".join(texts), finish, (), is_reasoning, tokens)


def _call(value: Any) -> ToolCall | None:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments")
    return ToolCall(function["name"], arguments if isinstance(arguments, str) else "")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(one["text"] for one in parts if isinstance(one, dict) and isinstance(one.get("text"), str))


def _finish(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason:
        return None
    return reason if _WORD.fullmatch(reason) else NO_WORD


def _reasons(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in ("reasoning_content", "reasoning"))


def _tokens(value: Mapping[str, Any]) -> int:
    usage = value.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and total > 0 else 0
