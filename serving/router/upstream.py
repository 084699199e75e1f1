"""HTTP client to engines: pooled connections, unchanged streaming bodies, failures as `UpstreamFailure`.

Rules:
1. No aiohttp exception leaves this module.
2. An external peer may close a kept-alive connection while a request is on its way. A quick reset of a reused
   connection says nothing about it, so the request is sent once more, on a new connection; only that outcome
   counts. Our engines never close an idle connection (`KEEP_ALIVE_S` there is an hour): a reset is a failure.
3. An endpoint's API key is read when a request is sent, and is in no other value; not in its answer either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from multidict import CIMultiDict

from serving.credentials import KeyFilter, KeyReference, NoKey
from serving.messages import CANARY
from serving.router.headers import RawHeaders
from serving.router.types import Attempt, Failure, Limits

# Below uvicorn's 5 s, so that the router closes an idle connection, not the engine during a request.
KEEP_ALIVE_S = 4.0
STALE_S = 1.0  # a reset that comes later than this is the failure of a request that the peer had accepted


log = logging.getLogger("canaryctl.router")

# Whether the request of this task went out on a kept-alive connection.
_is_reused: ContextVar[bool] = ContextVar("is_reused", default=False)


class UpstreamFailure(Exception):
    """The engine did not answer, or its answer broke off."""

    def __init__(self, why: Failure) -> None:
        super().__init__(why)
        self.why = why


class _Withheld(Exception):
    """`may_start` was False when the head was about to be written."""


class Answer:
    """An engine's answer whose body has not been read yet."""

    def __init__(self, response: aiohttp.ClientResponse, key: str | None) -> None:
        """key: sent with the request, and in nothing that is returned here; None: there was none."""
        self._response = response
        self._filter = KeyFilter(key or "")
        self.status = response.status
        self.headers: RawHeaders = [(name, self._filter.whole(value)) for name, value in response.raw_headers]

    async def chunk(self, within_s: float) -> bytes:
        """The next bytes as they arrive; b'' at the end. Raises UpstreamFailure 'cut' or 'timeout'."""
        try:
            async with asyncio.timeout(within_s):
                while data := await self._response.content.readany():
                    if shown := self._filter.feed(data):
                        return shown
                return self._filter.end()
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


class _Connector(aiohttp.TCPConnector):
    """Connection pool that tells a kept-alive connection from a new one."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        _is_reused.set(True)
        return await super().connect(req, traces, timeout)

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        _is_reused.set(False)
        return await super()._create_connection(req, traces, timeout)


class Upstream:
    """Connection pool to every engine of a service. Use it in one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = _Connector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._new = aiohttp.TCPConnector(limit=0, force_close=True)  # a new connection for each request
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_check_may_start)
        self._plain = self._session(self._pool, [])
        self._checked = self._session(self._pool, [trace])
        self._again = self._session(self._new, [trace])
        self._keys_missing: set[str] = set()  # logged once each
        self._keys_refused: set[str] = set()

    def _session(
        self, connector: aiohttp.BaseConnector, traces: list[aiohttp.TraceConfig]
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=traces,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s),
            read_bufsize=1 << 18,
        )

    async def open(self, attempt: Attempt, method: str, may_start: Callable[[], bool]) -> Answer:
        """Send the request and wait for the answer's head. Raises UpstreamFailure.

        may_start: called just before the head is written; False sends nothing and fails as 'withheld'.
        """
        # Checked for a canary only: tracing costs time, and stable is never withheld.
        session = self._checked if attempt.arm == CANARY else self._plain
        headers = CIMultiDict((k.decode("latin-1"), v.decode("latin-1")) for k, v in attempt.headers)
        key = None if attempt.api_key is None else self._key(attempt.api_key)
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        try:
            async with asyncio.timeout(attempt.first_byte_s):
                try:
                    response = await _send(session, attempt, method, headers, may_start)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError):
                    is_stale = attempt.may_be_stale and _is_reused.get() and loop.time() - sent_s < STALE_S
                    if not is_stale:
                        raise
                    response = await _send(self._again, attempt, method, headers, may_start)
        except _Withheld as exc:
            raise UpstreamFailure("withheld") from exc
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            raise UpstreamFailure("refused") from exc
        except TimeoutError as exc:
            raise UpstreamFailure("timeout") from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise UpstreamFailure("reset") from exc
        if attempt.api_key is not None:
            self._log_refusal(attempt.api_key, response.status)
        return Answer(response, key)

    def _log_refusal(self, reference: KeyReference, status: int) -> None:
        """Log once that an endpoint refuses this key, until it accepts it."""
        if status not in (401, 403):
            self._keys_refused.discard(str(reference))
        elif str(reference) not in self._keys_refused:
            self._keys_refused.add(str(reference))
            log.error("endpoint refuses our API key", extra={"key": str(reference), "status": status})

    def _key(self, reference: KeyReference) -> str:
        try:
            key = reference.read()
        except NoKey as exc:
            if str(reference) not in self._keys_missing:
                self._keys_missing.add(str(reference))
                log.error("no API key", extra={"error": str(exc)})
            raise UpstreamFailure("refused") from exc
        self._keys_missing.discard(str(reference))
        return key

    async def close(self) -> None:
        """Close every connection."""
        await self._plain.close()
        await self._checked.close()
        await self._again.close()
        await self._pool.close()
        await self._new.close()


async def _send(
    session: aiohttp.ClientSession,
    attempt: Attempt,
    method: str,
    headers: CIMultiDict[str],
    may_start: Callable[[], bool],
) -> aiohttp.ClientResponse:
    return await session.request(
        method,
        attempt.url,
        data=attempt.body or None,
        headers=headers,
        allow_redirects=False,
        trace_request_ctx=may_start,
    )


async def _check_may_start(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    # aiohttp calls this when it has a connection and before it writes the first byte.
    if not context.trace_request_ctx():
        raise _Withheld
