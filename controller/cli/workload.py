"""Recorded requests that are sent again (`canaryctl replay`): JSON lines, OpenAI's batch form or bare bodies.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    {"messages": [...], "max_tokens": 64}
    {"prompt": "..."}

Everything is read before anything is sent; what is wrong is named with its line, and none of it is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controller.errors import BadInput
from controller.wiring.replay import Recorded
from serving.judging.redaction import Redaction
from serving.targets import ELIGIBLE_PATHS

MAX_REQUESTS = 100_000
MAX_BYTES = 256 << 20  # of the whole file
SHOWN = 5  # mistakes
_BATCH = frozenset({"custom_id", "method", "url", "body"})


def read_workload(path: Path, *, is_redacted: bool = False) -> list[Recorded]:
    """The requests of the file, in its order. Raises BadInput, with the lines that are wrong.

    is_redacted: names, numbers and keys in the bodies are replaced (`serving/judging/redaction.py`).
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadInput(f"{path.name} has {size} bytes, over {MAX_BYTES}; send it in parts")
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise BadInput(f"{path}: {exc.strerror}; name a file with recorded requests") from exc
    if len(lines) > MAX_REQUESTS:
        raise BadInput(f"{path.name} has {len(lines)} lines, over {MAX_REQUESTS}; send it in parts")
    found: list[Recorded] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_request(line, is_redacted=is_redacted))
        except ValueError as exc:
            wrong.append(f"{path.name} line {number}: {exc}")
    if wrong:
        more = [f"{len(wrong) - SHOWN} further lines are wrong"] if len(wrong) > SHOWN else []
        raise BadInput((*wrong[:SHOWN], *more))
    if not found:
        raise BadInput(f"{path.name} has no requests; give one JSON object a line")
    return found


def _request(line: bytes, *, is_redacted: bool) -> Recorded:
    """Raises ValueError: what is wrong with the line, and the remedy."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ValueError("is no JSON; write one object a line") from exc
    if not isinstance(data, dict):
        raise ValueError("is no JSON object; write a request's body, or OpenAI's batch form")
    path, body = _batched(data) if "url" in data or "body" in data else (_path_of(data), data)
    if path not in ELIGIBLE_PATHS:
        raise ValueError(f"url {str(path)[:60]!r} asks no model for an answer; use /v1/chat/completions")
    if body.get("background") is True:
        raise ValueError("a background request has no answer to judge; leave it out")
    value: Any = Redaction().value(body) if is_redacted else body
    return Recorded(path, json.dumps(value).encode())


def _batched(data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if unknown := sorted(data.keys() - _BATCH):
        raise ValueError(f"unknown key {unknown[0]!r} beside url and body; use {', '.join(sorted(_BATCH))}")
    method, url, body = data.get("method", "POST"), data.get("url"), data.get("body")
    if method != "POST" or not isinstance(url, str) or not isinstance(body, dict):
        raise ValueError("needs method POST, url (such as /v1/chat/completions) and body, an object")
    return url, body


def _path_of(body: dict[str, Any]) -> str:
    if isinstance(body.get("messages"), list):
        return "/v1/chat/completions"
    if "prompt" in body:
        return "/v1/completions"
    raise ValueError("has neither messages nor prompt; say which path it is for: {url: ..., body: ...}")
