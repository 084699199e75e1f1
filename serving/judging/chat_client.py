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
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from serving.json_value import json_value
from serving.judging.chat_answer import Answer, is_filtered, streamed_answer, whole_answer
from serving.judging.request_forms import RequestForms
from serving.network_errors import network_reason
from serving.targets import Endpoint, Target

ANSWER_LIMIT = 4 << 20  # bytes
BYTES_BESIDE, BYTES_OF_A_TOKEN = 256 << 10, 1 << 10
CHAT = Target("/v1/chat/completions")
# The endpoint did not judge the request: the key, a limit, overload, or what stands before it
# (409: an engine of ours, whose route table has moved on).
_NOT_ASKED = frozenset({401, 402, 403, 407, 408, 409, 425, 429, 502, 503, 504})
# The endpoint does not take this form of the request, or not this request.
_OF_ANOTHER_FORM = frozenset({400, 422})
REFUSAL_LIMIT = 16 << 10  # bytes of a refusal that are read
REFUSAL_TIMEOUT_S = 5.0  # for them


@dataclass(frozen=True, slots=True)
class Rejected:
    """The endpoint refuses this request, or cannot answer it, by its status."""

    status: int
    is_filtered: bool = False  # a filter of contents refuses it

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
    # With temperature and max_tokens; by max_completion_tokens alone.
    _forms: RequestForms = field(default_factory=lambda: RequestForms(2), repr=False)

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
        said: Said = NoAnswer("not asked")
        async with self._places:
            for form in self._forms.to_try():
                said = await self._asked(_formed(body, form), is_streamed)
                if not isinstance(said, Rejected) or said.is_filtered or said.status not in _OF_ANOTHER_FORM:
                    break
            if isinstance(said, Answer):
                self._forms.answered(form)
        return said

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
        """The whole body of an answer of any 2xx, or what there is in its place."""
        assert self._client is not None, "enter the client first"
        url = str(Endpoint.parsed(self.url).url(target))
        parts, size, limit = [], 0, _limit_of(body)
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._client.stream(method, url, json=body) as response,
            ):
                if response.is_client_error and is_filtered(await beginning_of(response)):
                    return Rejected(response.status_code, is_filtered=True)
                if response.status_code in _NOT_ASKED:
                    return NoAnswer(f"status {response.status_code}")
                if not response.is_success:
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
            return NoAnswer(network_reason(exc))
        return b"".join(parts)


async def beginning_of(response: httpx.Response) -> bytes:
    """The first bytes of a refusal, as far as they come soon: up to REFUSAL_LIMIT."""
    data = bytearray()
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(REFUSAL_TIMEOUT_S):
            async for piece in response.aiter_raw():
                data += piece
                if len(data) >= REFUSAL_LIMIT:
                    break
    return bytes(data[:REFUSAL_LIMIT])


def _formed(body: Mapping[str, Any], form: int) -> dict[str, Any]:
    """The body in one of the two forms."""
    if form == 0:
        return {**body, "temperature": 0.0}
    other = {key: value for key, value in body.items() if key != "max_tokens"}
    return other | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in body else {})


def _limit_of(body: Mapping[str, Any] | None) -> int:
    """Bytes of the answer to a request."""
    tokens = (body or {}).get("max_tokens") or (body or {}).get("max_completion_tokens")
    if type(tokens) is not int:
        return ANSWER_LIMIT
    return min(ANSWER_LIMIT, BYTES_BESIDE + BYTES_OF_A_TOKEN * tokens)
