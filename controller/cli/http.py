"""One HTTP request to a loopback endpoint.

The standard library's client: httpx takes longer to import than `status` takes to run.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from serving.network_errors import network_reason


class NoAnswer(Exception):
    """The endpoint could not be reached, or did not answer in time or in HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer, of any status."""

    status: int
    content: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.content)


def send(method: str, url: str, *, body: object = None, token: str | None = None, timeout_s: float) -> Answer:
    """Send one request to `url` (http only), `body` as JSON. Raises NoAnswer.

    timeout_s: of the connection and of each read. Proxies of the environment are not used, redirects are not
    followed.
    """
    parts = urlsplit(url)
    headers = {"accept": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    content = None
    if body is not None:
        content = json.dumps(body).encode()
        headers["content-type"] = "application/json"
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
    try:
        connection.request(method, target or "/", body=content, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())
    except TimeoutError as exc:
        raise NoAnswer(f"{url}: no answer within {timeout_s:g} s") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise NoAnswer(f"{url}: {network_reason(exc)}") from exc
    finally:
        connection.close()
