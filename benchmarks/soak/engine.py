"""Fake engine of the fault matrix: the answers of `answers.py` on a socket, and one fault at a time.

A process of its own, with raw sockets, so that what it does wrong is wrong on the wire. It answers as vLLM
does behind our front (`tests/contracts/test_engine_contract.py` runs against both), accepts the service's
secret only, and keeps a log: a line when a request begins, with the fault that it meets, and one when it has
been answered. A killed engine has written what it had begun.

    POST /_soak/fault {"name": ..., "rate": ...}   the fault from now on; without a secret
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import uvloop

from benchmarks.soak.answers import MODEL, answer_of, engine_of, plain, prompt_in
from benchmarks.soak.faults import BY_NAME, Fault

SECRET_HEADER = b"x-canaryctl-secret"
STALL_S = 3600.0
TRICKLE_S = 0.3  # pause of a trickling answer, well under every time limit of the router
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


@dataclass(frozen=True, slots=True)
class Settings:
    """One engine. secret: that of its routers; empty: it is an endpoint of somebody else. port 0: any."""

    arm: str
    secret: str = ""
    fault: str = "no fault"
    rate: float = 0.7
    seed: int = 0
    port: int = 0
    pace_s: float = 0.0
    log: str = ""  # path; empty: none is kept


class Engine:
    """State of one engine process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fault: Fault = BY_NAME[settings.fault]
        self.rate = settings.rate
        self.random = random.Random(f"{settings.seed}-{os.getpid()}")
        self.connections: set[Connection] = set()
        self.port = settings.port
        self._server: asyncio.Server | None = None
        flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
        self._log = os.open(settings.log, flags) if settings.log else None

    def note(self, *words: object) -> None:
        """Write a line into the log, at once."""
        if self._log is not None:
            os.write(self._log, json.dumps(words).encode() + b"\n")

    async def listen(self) -> None:
        """Accept connections, on the same port as before."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=listening, backlog=1024)

    async def run(self) -> None:
        """Serve for ever; under `connection refused` only now and then."""
        await self.listen()
        print(self.port, flush=True)
        while True:
            await asyncio.sleep(self.random.uniform(0.01, 0.06))
            if self.fault.place == "listener" and self._server is not None:
                self._server.close()
                share = min(self.rate, 0.9)
                await asyncio.sleep(self.random.uniform(0.01, 0.06) * share / (1 - share))
                await self.listen()

    def meets_fault(self) -> bool:
        """Whether the next answer fails."""
        return self.fault.place in ("head", "body") and self.random.random() < self.rate


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        split = self._buffer.find(b"\r\n\r\n")
        if split < 0 or (self._task is not None and not self._task.done()):
            return
        line, *lines = self._buffer[:split].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(b":") for one in lines)}
        end = split + 4 + int(headers.get(b"content-length", b"0"))
        if len(self._buffer) < end:
            return
        body, self._buffer = self._buffer[split + 4 : end], self._buffer[end:]
        method, target, _ = line.decode().split(" ")
        work = self._answer(method, target, headers, body)
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(_exit_on_error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    # ---- a whole answer

    def _send(self, status: int, body: bytes, *headers: tuple[str, str], close: bool = False) -> None:
        reason = _REASONS.get(status, "Error")
        lines = [f"HTTP/1.1 {status} {reason}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (("content-type", "application/json"), *headers)]
        is_last = close or self._engine.fault.place == "listener"
        lines += ["connection: close"] if is_last else []
        self._transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        if is_last:
            self._transport.close()

    def _send_error(self, status: int, why: str = "error", *headers: tuple[str, str]) -> None:
        error = {"message": why, "type": why, "param": None, "code": status}
        self._send(status, json.dumps({"error": error}).encode(), *headers)

    def _abort(self) -> None:
        """Break the connection by a reset."""
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # ---- requests

    async def _answer(self, method: str, target: str, headers: dict[bytes, bytes], data: bytes) -> None:
        engine, path = self._engine, target.partition("?")[0]
        if path == "/_soak/fault":
            asked = json.loads(data)
            engine.fault, engine.rate = BY_NAME[asked["name"]], asked["rate"]
            self._send(200, b"{}")
            return
        if headers.get(SECRET_HEADER, b"").decode() != engine.settings.secret:
            self._send_error(403, "secret", ("x-canaryctl-refused", "secret"))
            return
        if method == "GET":
            models = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
            self._send(200, json.dumps(models).encode() if path == "/v1/models" else b"{}")
            return
        try:
            body = json.loads(data)
            prompt = prompt_in(body)
        except ValueError:
            prompt = None
        if prompt is None:
            self._send_error(400, "no prompt")
            return
        await self._serve(path, body, headers.get(b"x-request-id", b"").decode(), prompt)

    async def _serve(self, path: str, body: dict[str, Any], request: str, prompt: str) -> None:
        engine = self._engine
        arm = engine.settings.arm
        known = engine_of(arm, prompt)
        if path == "/tokenize":
            self._send(200, known.tokenize(), ("x-canaryctl-tokens", known.vocabulary))
            return
        is_stream = bool(body.get("stream"))
        fault = engine.fault
        is_hit = engine.meets_fault() and (is_stream or not fault.streams_only)
        engine.note("begin", request, fault.name if is_hit else "")
        if is_hit and fault.place == "head":
            await self._fail_head(fault)
            return
        events = answer_of(arm, path, body)
        if not engine.settings.secret:
            events = [plain([one]) for one in events]
        names_ids = engine.settings.secret and path.endswith("completions")
        # vLLM's front names ids in streams of the two APIs with one choice.
        head = {a.decode(): b.decode() for a, b in known.head(path, body)} if names_ids else {}
        head["content-type"] = "text/event-stream; charset=utf-8" if is_stream else "application/json"
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in head.items())]
        if fault.place == "listener":
            lines.append("connection: close")
        lines.append("transfer-encoding: chunked" if is_stream else f"content-length: {len(events[0])}")
        self._head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        if is_hit:
            await self._fail_body(fault, events, is_stream=is_stream)
            if not fault.is_harmless:
                return
        elif is_stream:
            self._transport.write(self._head)
            await self._events(events)
            self._transport.write(b"0\r\n\r\n")
        else:
            self._transport.write(self._head + events[0])
        engine.note("end", request)
        if fault.place == "listener":
            self._transport.close()

    async def _events(self, events: list[bytes]) -> None:
        """Write the events of a stream, as chunks."""
        pace_s = self._engine.settings.pace_s
        for event in events:
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if pace_s:
                await asyncio.sleep(self._engine.random.uniform(0, 2 * pace_s))

    async def _fail_head(self, fault: Fault) -> None:
        match fault.name:
            case "reset before the head":
                self._abort()
            case "silent before the head":
                await asyncio.sleep(STALL_S)
            case "garbage instead of a head":
                garbage = self._engine.random.randbytes(self._engine.random.randint(1, 300))
                starts = (b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\ncontent-length: -1", b"HTTP/1.1 200\r\n\0")
                self._transport.write(self._engine.random.choice(starts) + garbage)
                self._transport.close()
            case "refused by the fence":
                self._send_error(409, "fence", ("x-canaryctl-refused", "fence"))
            case "refused while closing":
                self._send_error(503, "closed", ("x-canaryctl-refused", "closed"))
            case _:
                self._send_error(int(fault.name.removeprefix("status ")))

    async def _fail_body(self, fault: Fault, events: list[bytes], *, is_stream: bool) -> None:
        if not is_stream:
            await self._fail_whole(fault, events[0])
            return
        random_ = self._engine.random
        last = self._finish_at(events)
        if fault.name == "truncated" and b'"message_stop"' in events[last]:
            last -= 1  # of a message nothing is missing before that event: the router adds it
        is_at_start = last == 0 or fault.name in ("error inside a 200", "garbage body")
        at = 0 if is_at_start else random_.randrange(last)
        self._transport.write(self._head)
        match fault.name:
            case "trickling":
                await self._trickle(b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events))
                self._transport.write(b"0\r\n\r\n")
                return
            case "cut after the finish":
                # Every choice has finished; the usage, [DONE] and the end of the body are missing.
                await self._events(events[: last + 1])
                self._transport.close()  # not by a reset, which may take with it what was written
                return
        await self._events(events[:at])
        await asyncio.sleep(random_.choice((0.0, 0.003)))  # so that some have been passed on
        next_ = events[at]
        match fault.name:
            case "error inside a 200" | "error in mid-stream":
                error = {"message": "engine died", "type": "InternalServerError", "code": 500}
                event = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
                await self._events([event, b"data: [DONE]\n\n"])
                self._transport.write(b"0\r\n\r\n")
            case "garbage body" | "garbage in mid-stream":
                garbage = b"\xfe" + random_.randbytes(random_.randint(0, 80)).replace(
                    b"\n", b""
                )  # no comment
                start = random_.choice((b"data: ", b"data: {", b""))
                await self._events([start + garbage + b"\n\n"])
                if random_.random() < 0.5:
                    self._transport.write(b"0\r\n\r\n")
                else:
                    self._transport.close()
            case "garbage framing in mid-answer":
                self._transport.write(b"zz" + random_.randbytes(random_.randint(1, 60)) + b"\r\n")
                self._transport.close()
            case "truncated":
                part = next_[: random_.randrange(len(next_))]
                await self._events([part] if part else [])
                self._transport.write(b"0\r\n\r\n")
            case "reset in mid-answer":
                self._transport.write(b"%x\r\n" % len(next_) + next_[: random_.randrange(len(next_))])
                await asyncio.sleep(random_.choice((0.0, 0.002)))
                self._abort()
            case "stalled in mid-answer":
                await asyncio.sleep(STALL_S)

    async def _fail_whole(self, fault: Fault, answer: bytes) -> None:
        random_ = self._engine.random
        at = random_.randrange(len(answer))
        match fault.name:
            case "error inside a 200":
                self._send(200, b'{"error": {"message": "engine died", "code": 500}}')
            case "garbage body":
                self._send(200, random_.choice((b"{", b"[]", b"", random_.randbytes(60))))
            case "truncated":  # the body ends as its framing says
                self._send(200, answer[:at])
            case "garbage framing in mid-answer":
                head = self._head.replace(b"content-length: %d" % len(answer), b"transfer-encoding: chunked")
                self._transport.write(head + b"%x\r\n%b\r\nzz\r\n" % (at + 1, answer[: at + 1]))
                self._transport.close()
            case "reset in mid-answer":
                self._transport.write(self._head + answer[:at])
                await asyncio.sleep(random_.choice((0.0, 0.002)))
                self._abort()
            case "stalled in mid-answer":
                self._transport.write(self._head + answer[:at])
                await asyncio.sleep(STALL_S)
            case "trickling":
                self._transport.write(self._head)
                await self._trickle(answer)

    async def _trickle(self, data: bytes) -> None:
        """Six parts of any size, with pauses."""
        cuts = sorted(self._engine.random.randrange(len(data)) for _ in range(5))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self._transport.write(data[start:end])
            await asyncio.sleep(TRICKLE_S)

    def _finish_at(self, events: list[bytes]) -> int:
        """Index of the event after which nothing of the answer is missing."""
        marks = (b'"finish_reason":"', b'"response.completed"', b'"message_stop"')
        return max(index for index, one in enumerate(events) if any(mark in one for mark in marks))


def _exit_on_error(task: asyncio.Task[None]) -> None:
    """End the process on an error of its own, which is none of its faults."""
    if not task.cancelled() and (exc := task.exception()) is not None:
        traceback.print_exception(exc)
        os._exit(70)


def main() -> None:
    """Run the engine that the first argument describes; prints its port."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    uvloop.run(Engine(settings).run())


if __name__ == "__main__":
    main()
