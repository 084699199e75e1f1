"""HTTP client to engines: pooled connections, unchanged streaming bodies, failures as `UpstreamFailure`.

No aiohttp exception leaves this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from serving.messages import CANARY
from serving.router.headers import RawHeaders
from serving.router.types import Attempt, Failure, Limits, Request

# Below uvicorn's 5 s, so that the router closes an idle connection, not the engine during a request.
KEEP_ALIVE_S = 4.0


class UpstreamFailure(Exception):
    """The engine did not answer, or its answer broke off."""

    def __init__(self, why: Failure) -> None:
        super().__init__(why)
        self.why = why


class _Withheld(Exception):
    """`may_start` was False when the head was about to be written."""


class Answer:
    """An engine's answer whose body has not been read yet."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: RawHeaders = response.raw_headers

    async def chunk(self, within_s: float) -> bytes:
        """The next bytes as they arrive; b'' at the end. Raises UpstreamFailure 'cut' or 'timeout'."""
        try:
            async with asyncio.timeout(within_s):
                return await self._response.content.readany()
        except TimeoutError as exc:
            self.close()
            raise UpstreamFailure("timeout") from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            self.close()
            raise UpstreamFailure("cut") from exc

    async def whole(self, within_s: float) -> bytes:
        """The whole body. Raises UpstreamFailure."""
        parts = []
        while part := await self.chunk(within_s):
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Return the connection to the pool if the body has ended, else break it, which stops the engine."""
        self._response.release()  # aiohttp itself closes a connection whose body has not been read whole


class Upstream:
    """Connection pool to every engine of a service. Use it in one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._plain = self._session([])
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_check_may_start)
        self._checked = self._session([trace])

    def _session(self, traces: list[aiohttp.TraceConfig]) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=traces,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s),
            read_bufsize=1 << 18,
        )

    async def open(self, attempt: Attempt, request: Request, may_start: Callable[[], bool]) -> Answer:
        """Send the request and wait for the answer's head. Raises UpstreamFailure.

        may_start: called just before the head is written; False sends nothing and fails as 'withheld'.
        """
        # Checked for a canary only: tracing costs time, and stable is never withheld.
        session = self._checked if attempt.arm == CANARY else self._plain
        headers = CIMultiDict((k.decode("latin-1"), v.decode("latin-1")) for k, v in attempt.headers)
        try:
            async with asyncio.timeout(attempt.first_byte_s):
                response = await session.request(
                    request.method,
                    URL(attempt.url, encoded=True),
                    data=request.body or None,
                    headers=headers,
                    allow_redirects=False,
                    trace_request_ctx=may_start,
                )
        except _Withheld as exc:
            raise UpstreamFailure("withheld") from exc
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            raise UpstreamFailure("refused") from exc
        except TimeoutError as exc:
            raise UpstreamFailure("timeout") from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise UpstreamFailure("reset") from exc
        return Answer(response)

    async def close(self) -> None:
        """Close every connection."""
        await self._plain.close()
        await self._checked.close()
        await self._connector.close()


async def _check_may_start(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    # aiohttp calls this when it has a connection and before it writes the first byte.
    if not context.trace_request_ctx():
        raise _Withheld
