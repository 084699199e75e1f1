"""Overhead of the router: requests to one fake engine, directly and through the router, in the same run.

`python -m benchmarks.router [--seconds 2] [--out FILE]` prints JSON: p50 in ms at 1 client, requests/s at 32
and the router's CPU time per request, for a whole answer and for a stream of 20 chunks, and the ratios. The
engine is 40 lines of asyncio that answer at once, so that the difference is the router. Three alternating
rounds; the best of each counts, because other work on the machine only adds time. Client, router and engine
share the machine: only the ratios and the CPU time are meaningful.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psutil

CHUNKS = 20
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
ANSWER = json.dumps(
    {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Engine(asyncio.Protocol):
    """HTTP server that answers at once; a body with `"stream": true` gets 20 chunks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does not inherit from asyncio.Transport.
        self.transport, self.buffer = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (split := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:split].lower()
            start = head.find(b"content-length:")
            size = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self.buffer) < split + 4 + size:
                return
            body = self.buffer[split + 4 : split + 4 + size]
            self.buffer = self.buffer[split + 4 + size :]
            if b'"stream": true' in body:
                self.transport.write(HEAD)
                for _ in range(CHUNKS):
                    self.transport.write(chunk(EVENT))
                self.transport.write(chunk(LAST) + END)
            else:
                self.transport.write(WHOLE)


def run_engine(ready: multiprocessing.connection.Connection) -> None:
    """Main function of the engine's process, which sends its port."""
    import uvloop

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


def run_router(table: str, port: int) -> None:
    """Main function of the router's process."""
    from serving.router.table_file import main

    sys.exit(main(table, "127.0.0.1", port))


class Client(asyncio.Protocol):
    """One connection that sends its next request as soon as the last is answered."""

    def __init__(self, request: bytes, is_stream: bool, until_s: float) -> None:
        self.request, self.is_stream, self.until_s = request, is_stream, until_s
        self.times_s: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        self.buffer = b""
        self.began_s = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not (self.buffer.endswith(END) if self.is_stream else self.buffer.endswith(ANSWER)):
            return
        now_s = time.perf_counter()
        self.times_s.append(now_s - self.began_s)
        if now_s < self.until_s:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"connection lost after {self.buffer[:200]!r}"))


async def measure(port: int, *, clients: int, is_stream: bool, seconds: float) -> tuple[float, float]:
    """(p50 in ms, requests per second)."""
    user = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "user": "u-1"}
    body = json.dumps({"model": "chat", **user, "stream": is_stream}).encode()
    request = b"POST /chat/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request += b"content-length: %d\r\n\r\n%s" % (len(body), body)
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    connections = [
        await loop.create_connection(lambda: Client(request, is_stream, began_s + seconds), "127.0.0.1", port)
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in connections))
    times_s = [time_s for _, client in connections for time_s in client.times_s]
    return statistics.median(times_s) * 1000, len(times_s) / (time.perf_counter() - began_s)


@contextmanager
def processes() -> Iterator[tuple[dict[str, int], psutil.Process]]:
    """The engine and a router in front of it: name -> port, and the router's process."""
    from serving.loopback import free_ports, is_free

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    engine = context.Process(target=run_engine, args=(there,), daemon=True)
    engine.start()
    engine_port = int(here.recv())
    (router_port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.yaml"
        url = f"http://127.0.0.1:{engine_port}"
        table.write_text(
            f"service: chat\nstable: {{url: '{url}'}}\ncanary: {{url: '{url}'}}\nweight_bp: 5000\nsalt: s\n"
        )
        router = context.Process(target=run_router, args=(str(table), router_port), daemon=True)
        router.start()
        while is_free(router_port):
            time.sleep(0.05)
        try:
            yield {"engine": engine_port, "router": router_port}, psutil.Process(router.pid)
        finally:
            router.terminate()
            engine.terminate()
            router.join()
            engine.join()


def run(seconds: float) -> dict[str, object]:
    """All results, as JSON values."""
    figures: dict[str, dict[str, float]] = {}
    with processes() as (ports, router):
        for case, is_stream in (("whole", False), ("stream", True)):
            rounds: dict[str, list[tuple[float, float]]] = {"engine": [], "router": []}
            cpu_ms = []
            for _ in range(3):
                for target, port in ports.items():
                    p50_ms, _ = asyncio.run(measure(port, clients=1, is_stream=is_stream, seconds=seconds))
                    before_s, began_s = sum(router.cpu_times()[:2]), time.perf_counter()
                    _, rate = asyncio.run(measure(port, clients=32, is_stream=is_stream, seconds=seconds))
                    took_s = time.perf_counter() - began_s
                    rounds[target].append((p50_ms, rate))
                    if target == "router":
                        cpu_ms.append((sum(router.cpu_times()[:2]) - before_s) * 1000 / (rate * took_s))
            best = {name: (min(p for p, _ in all_), max(r for _, r in all_)) for name, all_ in rounds.items()}
            figures[case] = {
                "engine_p50_ms": round(best["engine"][0], 3),
                "router_p50_ms": round(best["router"][0], 3),
                "added_p50_ms": round(best["router"][0] - best["engine"][0], 3),
                "engine_requests_s": round(best["engine"][1]),
                "router_requests_s": round(best["router"][1]),
                "router_cpu_ms_per_request": round(min(cpu_ms), 3),
                "throughput_ratio": round(best["router"][1] / best["engine"][1], 3),
            }
    return {"benchmark": "router", "chunks": CHUNKS, "clients": [1, 32], "seconds": seconds, **figures}


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    text = json.dumps(run(arguments.seconds), indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
