"""An OpenAI-compatible endpoint in a thread that judges by a function, for tests of judges."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving.judging.plants import _FACTS

Says = Callable[[dict[str, Any]], tuple[int, Any]]


def spoken(word: str, likely: dict[str, float] | None = None) -> tuple[int, Any]:
    """An answer of one word; likely: log probabilities of the first token."""
    top = [{"token": token, "logprob": log_p} for token, log_p in (likely or {}).items()]
    logprobs = {"content": [{"token": word, "logprob": -0.1, "top_logprobs": top}]} if likely else None
    choice = {"index": 0, "message": {"role": "assistant", "content": word}, "logprobs": logprobs}
    return 200, {"choices": [{**choice, "finish_reason": "length"}], "usage": {"total_tokens": 100}}


@contextmanager
def judge_endpoint(says: Says, heads: list[dict[str, str]] | None = None) -> Iterator[str]:
    """Its base URL. says: status and body of the answer to a request's body; text is sent as it is. heads: to
    which each request's headers are added."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if heads is not None:
                heads.append({name.lower(): value for name, value in self.headers.items()})
            status, answer = says(body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def truthful(body: dict[str, Any]) -> tuple[int, Any]:
    """A judge that knows the facts of the plants: an answer without its question's fact is wrong."""
    text = body["messages"][1]["content"]
    # Without the marks of the quotations: they are random, and may hold the digits of a fact.
    parts = {
        lines[0]: "\n".join(lines[2:-1]) for part in text.split("\n\n") if len(lines := part.split("\n")) > 1
    }
    fact = next(fact for prompt, _, fact, _ in _FACTS if prompt in parts["QUESTION"])
    if "ANSWER" in parts:
        return spoken("no" if fact in parts["ANSWER"] else "yes")
    return spoken("A" if fact in parts["ANSWER A"] else "B")
