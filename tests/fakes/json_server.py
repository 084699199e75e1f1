"""HTTP server on loopback that answers GET with JSON values, as a controller or another program does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

Answer = Callable[[str], object]


@dataclass(slots=True)
class JsonServer:
    """answer: the value for a path. seen: path and authorization header of each request."""

    answer: Answer
    port: int = 0
    seen: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def json_server(answer: Answer) -> Iterator[JsonServer]:
    """A running server, on a free port; it ends with the block."""
    served = JsonServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.seen.append((self.path, self.headers["authorization"]))
            body = json.dumps(served.answer(self.path)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.port = server.server_port
        Thread(target=server.serve_forever, daemon=True).start()
        yield served
        server.shutdown()
