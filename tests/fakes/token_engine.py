"""An engine whose every byte of text is a token, with the events, ids and heads of vLLM behind our front.

It knows one answer to one prompt. Asked to continue from other tokens than the answer's own it writes '#'.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from serving.fleet.token_notes import TokenNote

PROMPT = [300, 301, 302]
EOS = 256
CONTEXT = 4096
_CREATED = 1_700_000_000


@dataclass
class _Output:
    text: str
    token_ids: list[int]
    finish_reason: str | None
    index: int = 0


def decode(ids: Sequence[int]) -> str:
    return bytes(one for one in ids if one < EOS).decode("utf-8", "replace")


@dataclass(frozen=True)
class TokenEngine:
    """`events` are what it writes for a request; `sizes` how many tokens each output has, repeated."""

    text: str
    sizes: tuple[int, ...] = (1,)
    name: str = "stable"
    vocabulary: str = "d1"
    prompt: tuple[int, ...] = tuple(PROMPT)

    @property
    def answer(self) -> list[int]:
        return [*self.text.encode(), EOS]

    def head(self, path: str, body: dict[str, Any]) -> list[tuple[bytes, bytes]]:
        kind = b"text/event-stream" if body.get("stream") else b"application/json"
        limit = f" {self._limit(path, body, self.prompt)}" if path != "/tokenize" else ""
        return [(b"content-type", kind), (b"x-canaryctl-tokens", (self.vocabulary + limit).encode())]

    def tokenize(self) -> bytes:
        return json.dumps(
            {"tokens": self.prompt, "count": len(self.prompt), "max_model_len": CONTEXT}
        ).encode()

    def events(self, path: str, body: dict[str, Any]) -> list[bytes]:
        """The whole stream, an event each, with the comments of its tokens."""
        is_chat = path.endswith("chat/completions")
        asked = body.get("prompt")
        prompt = asked if isinstance(asked, list) else list(self.prompt)
        options = body.get("stream_options") or {}
        note, ids, shown, held = TokenNote(decode), list(prompt), 0, b""
        found: list[bytes] = []
        limit = self._limit(path, body, prompt)
        finish, turn = None, 0
        while finish is None:
            new: list[int] = []
            text = ""
            for _ in range(self.sizes[turn % len(self.sizes)]):
                token = self._next(ids + new)
                new.append(token)
                if token != EOS:
                    held += bytes([token])
                    if not (whole := held.decode("utf-8", "replace")).endswith("\ufffd"):
                        text, held = text + whole, b""
                shown += 1
                finish = "stop" if token == EOS else "length" if shown == limit else None
                if finish:
                    break
            turn += 1
            ids += new
            note.add([_Output(text, new, finish)])
            if is_chat and not found:
                found.append(note.line() + self._event(path, {"role": "assistant", "content": ""}, None))
            usage = self._usage(prompt, shown) if options.get("continuous_usage_stats") else None
            found.append(note.line() + self._event(path, {"content": text}, finish, usage))
        if options.get("include_usage"):
            found.append(self._event(path, None, None, self._usage(prompt, shown)))
        return [*found, b"data: [DONE]\n\n"]

    def plain(self, path: str, body: dict[str, Any]) -> bytes:
        """The stream without the comments."""
        lines = b"".join(self.events(path, body)).split(b"\n")
        return b"\n".join(line for line in lines if not line.startswith(b": "))

    def _limit(self, path: str, body: dict[str, Any], prompt: Sequence[int]) -> int:
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        if asked is None and path == "/v1/completions" and "max_tokens" not in body:
            asked = 16
        return min(asked or CONTEXT, CONTEXT - len(prompt))

    def _next(self, ids: list[int]) -> int:
        done = len(ids) - len(self.prompt)
        is_right = ids == [*self.prompt, *self.answer[:done]] and done < len(self.answer)
        return self.answer[done] if is_right else ord("#")

    def _usage(self, prompt: list[int], shown: int) -> dict[str, int]:
        return {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + shown, "completion_tokens": shown}

    def _event(
        self, path: str, delta: dict[str, str] | None, finish: str | None, usage: object = None
    ) -> bytes:
        is_chat = path.endswith("chat/completions")
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        choices: list[dict[str, Any]] = []
        if delta is not None:
            shown = {"delta": delta} if is_chat else {"text": delta["content"]}
            choices = [{"index": 0, **shown, "logprobs": None, "finish_reason": finish}]
        event = {"id": f"id-{self.name}", "object": kind, "created": _CREATED + len(self.name)}
        event |= {"model": "chat", "choices": choices}
        if usage is not None:
            event["usage"] = usage
        return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    async def serve(self, request: web.Request, data: bytes, cut: int | None = None) -> web.StreamResponse:
        """Answer one request; the connection breaks after `cut` events of a stream. None: it does not."""
        path, body = request.path, json.loads(data)
        headers = {name.decode(): value.decode() for name, value in self.head(path, body)}
        if path == "/tokenize":
            return web.Response(body=self.tokenize(), headers=headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for event in self.events(path, body)[:cut]:
            await response.write(event)
            await asyncio.sleep(0)
        if cut is not None and request.transport is not None:
            request.transport.close()
        return response


@dataclass
class Answer:
    """A stream as its client reads it, every event checked. Raises AssertionError when it is not valid."""

    data: bytes
    is_chat: bool
    text: str = ""
    finish: str | None = None
    usage: tuple[int, int, int] | None = None
    id: str = ""

    def __post_init__(self) -> None:
        assert self.data.endswith(b"\n\n"), self.data[-80:]
        parts = (part.split(b"\n") for part in self.data[:-2].split(b"\n\n"))
        events = [b"\n".join(line for line in part if not line.startswith(b":")) for part in parts]
        events = [one for one in events if one]  # others are comments alone
        assert events[-1] == b"data: [DONE]", events[-1]
        shapes = set()
        for index, raw in enumerate(events[:-1]):
            assert raw.startswith(b"data: {"), raw
            event = json.loads(raw[6:])
            shapes.add((event["id"], event["object"], event["created"], event["model"]))
            if event.get("usage") is not None:
                usage = event["usage"]
                self.usage = usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
            if event["choices"]:
                self._read(event["choices"], is_first=index == 0)
            else:
                assert index == len(events) - 2, "the usage is not last"
        assert len(shapes) == 1, shapes
        self.id = next(iter(shapes))[0]
        assert self.finish is not None

    def _read(self, choices: list[dict[str, Any]], *, is_first: bool) -> None:
        (choice,) = choices
        assert self.finish is None, "an event after the finish"
        assert choice["index"] == 0
        if self.is_chat:
            assert ("role" in choice["delta"]) == is_first, choice
            self.text += choice["delta"]["content"]
        else:
            self.text += choice["text"]
        self.finish = choice["finish_reason"]
