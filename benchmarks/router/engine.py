"""Fake engine that answers at once: 60 lines of asyncio, so that what a router adds is what is measured.

A body with `"stream": true` gets 20 events in as many writes, any other POST one JSON answer. GET requests
answer what routers ask of their workers: health, the list of models, vLLM's version.
"""

from __future__ import annotations

import asyncio
import json
from multiprocessing.connection import Connection
from typing import cast

CHUNKS = 20
MODEL = "chat"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"chat","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'  # noqa: E501
LAST = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"chat","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'  # noqa: E501
ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()
MODELS = json.dumps(
    {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def whole(body: bytes) -> bytes:
    """A whole JSON answer."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


_WHOLE = whole(ANSWER)
_EVENT = chunk(EVENT)
_END = chunk(LAST) + END


class Engine(asyncio.Protocol):
    """One connection of the engine. `served` counts the answers of all connections."""

    served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does not inherit from asyncio.Transport.
        self.transport, self.buffer = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (split := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:split].lower()
            if b"transfer-encoding: chunked" in head:
                end = self.buffer.find(END, split)
                if end < 0:
                    return
                body, rest = self.buffer[split + 4 : end], self.buffer[end + len(END) :]
            else:
                start = head.find(b"content-length:")
                size = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
                if len(self.buffer) < split + 4 + size:
                    return
                body, rest = self.buffer[split + 4 : split + 4 + size], self.buffer[split + 4 + size :]
            self.buffer = rest
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get /engine/served"):
            self.transport.write(whole(b"%d" % Engine.served))
        elif head.startswith(b"get /v1/models"):
            self.transport.write(whole(MODELS))
        elif head.startswith(b"get /version"):
            self.transport.write(whole(b'{"version": "0.32.0"}'))
        elif head.startswith(b"get "):
            self.transport.write(whole(b"{}"))
        else:
            Engine.served += 1
            if b'"stream": true' in body or b'"stream":true' in body:
                self.transport.write(HEAD)
                for _ in range(CHUNKS):
                    self.transport.write(_EVENT)
                self.transport.write(_END)
            else:
                self.transport.write(_WHOLE)


def run_engine(ready: Connection) -> None:
    """Main function of an engine's process, which sends its port."""
    import uvloop

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())
