"""An OpenAI-compatible endpoint in a thread that answers the shipped smoke cases, well or with one fault."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving.judging.chat_answer import is_filtered, streamed_answer, whole_answer
from serving.judging.chat_client import Malformed, NoAnswer, Rejected, Said


@dataclass(frozen=True)
class Reply:
    """An answer. status other than 200: a refusal. raw: sent in its place as it is."""

    text: str | None = ""
    finish: str | None = "stop"
    calls: tuple[tuple[str, str], ...] = ()
    status: int = 200
    raw: str | None = None
    streamed: str | None = None  # text of the stream; None: the same
    reasoning: str | None = None


Model = Callable[[dict[str, Any]], Reply]


def good(body: dict[str, Any]) -> Reply:
    """What a good chat model answers to the shipped cases."""
    prompt = str(body["messages"][-1]["content"])
    if "tools" in body:
        return Reply(None, "tool_calls", (("get_weather", '{"city": "Oslo"}'),))
    if "response_format" in body:
        schema = body["response_format"]["json_schema"]["schema"]
        is_person = "age" in schema["properties"]
        value = {"name": "Anna", "age": 34} if is_person else {"size": "large", "items": ["ham", "olives"]}
        return Reply(json.dumps(value))
    if "code of the north gate is" in prompt:
        found = re.search(r"gate is (\d+)", prompt)
        assert found is not None
        return Reply(found.group(1))
    if "Begin your answer with" in prompt:
        return Reply("I'm sorry, but I can't help with that.")
    if "stop" in body:
        return Reply("One, two, three, ")
    return Reply("It is as you would expect.")


def faulty(fault: Callable[[dict[str, Any], Reply], Reply | None]) -> Model:
    """The good model, but what `fault` gives in place of an answer."""

    def answers(body: dict[str, Any]) -> Reply:
        reply = good(body)
        return fault(body, reply) or reply

    return answers


def without_tools(body: dict[str, Any], _reply: Reply) -> Reply | None:
    """Refuses tools as vLLM does without a parser for them."""
    return Reply(status=400) if "tools" in body else None


def leaking(body: dict[str, Any], reply: Reply) -> Reply | None:
    """Ends each plain answer with a special token as text."""
    return replace(reply, text=f"{reply.text}<|im_end|>") if reply.text == good({**body}).text else None


@dataclass
class ModelChat:
    """A model without the network, read as `ChatClient` reads endpoints."""

    model: Model
    at_once: int = 4
    asked: int = 0

    async def ask(self, body: Mapping[str, Any], *, is_streamed: bool = False) -> Said:
        """What the model says, as it would be read from its bytes."""
        self.asked += 1
        reply = self.model({**body, "stream": is_streamed})
        if reply.status != 200:
            if reply.status == 503:
                return NoAnswer("status 503")
            return Rejected(reply.status, is_filtered((reply.raw or "").encode()))
        if reply.raw is not None:
            return Malformed("another form")
        answer = streamed_answer(_events(reply).encode()) if is_streamed else whole_answer(_whole(reply))
        assert answer is not None
        return answer


@dataclass
class ChatEndpoint:
    """A running endpoint. seen: bodies, in order of arrival; keys: the authorization headers."""

    url: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def chat_endpoint(model: Model = good, *, models: tuple[str, ...] = ("m",)) -> Iterator[ChatEndpoint]:
    """The endpoint of a model, which lists these names; it ends with the block."""
    served = ChatEndpoint("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: a second one waits 40 ms for the first's receipt
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(200, json.dumps({"data": [{"id": name} for name in models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            served.seen.append(body)
            served.keys.append(self.headers["authorization"])
            reply = model(body)
            if reply.raw is not None or reply.status != 200:
                self._send(reply.status, reply.raw if reply.raw is not None else '{"error": {}}')
            elif body.get("stream"):
                self._send(200, _events(reply), "text/event-stream")
            else:
                self._send(200, json.dumps(_whole(reply)))

        def _send(self, status: int, text: str, kind: str = "application/json") -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def _whole(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in reply.calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": reply.finish}
    return {"choices": [choice], "usage": {"total_tokens": 10}}


def _events(reply: Reply) -> str:
    text = reply.streamed if reply.streamed is not None else reply.text or ""
    parts = [text[at : at + 5] for at in range(0, len(text), 5)]
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]} for part in parts
    ]
    if reply.reasoning is not None:
        events.insert(0, {"choices": [{"index": 0, "delta": {"reasoning": reply.reasoning}}]})
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})
    return "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"
