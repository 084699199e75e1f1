"""Process that prepares large request bodies, so that none stalls the router's event loop.

Reading 64 MiB of JSON takes half a second, in which no other stream of the router would move. `BodyReader`
runs one child process and hands it one body at a time, over its standard streams; a body that takes longer
than READ_S is refused and the child replaced.

A message either way: its length (8 bytes, big-endian), then a pickle. The child is this very release, and
nothing of a client's is unpickled: a body is bytes inside the message.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
import sys
from contextlib import suppress

from serving.router.headers import RawHeaders
from serving.router.prepared import Prepared, prepare
from serving.router.types import Refusal

LARGE_BODY = 1 << 20  # bytes; from here on another process reads it
READ_S = 20.0
_LENGTH = struct.Struct(">Q")


class BodyReader:
    """Prepares bodies in a child process. Use it in one event loop."""

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def prepare(
        self,
        body: bytes,
        headers: RawHeaders,
        models: tuple[str, ...],
        *,
        route: str,
        is_eligible: bool,
        wants_model: bool = False,
    ) -> Prepared:
        """As `prepared.prepare`; with a refusal when the child needs too long or dies."""
        request = pickle.dumps((body, tuple(headers), models, route, is_eligible, wants_model), protocol=5)
        async with self._turn:
            try:
                async with asyncio.timeout(READ_S):
                    return await self._ask(request)
            except (TimeoutError, OSError, EOFError, asyncio.IncompleteReadError):
                self.close()
                text = f"the body of {route} could not be read within {READ_S:g} s; send a simpler one"
                return Prepared(refusal=Refusal(413, "body_too_complex", text))

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            # Its pipes are closed now, not when the loop has gone.
            child._transport.close()  # type: ignore[attr-defined]

    async def _ask(self, request: bytes) -> Prepared:
        if self._child is None or self._child.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__), stdin=pipe, stdout=pipe, limit=1 << 20
            )
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(_LENGTH.pack(len(request)))
        for start in range(0, len(request), LARGE_BODY):
            child.stdin.write(request[start : start + LARGE_BODY])
            await child.stdin.drain()
        (size,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        answer: Prepared = pickle.loads(await child.stdout.readexactly(size))
        return answer


def main() -> None:
    """Serve one body after the other until the standard input ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(_LENGTH.size):
        body, headers, models, route, is_eligible, wants_model = pickle.loads(
            source.read(*_LENGTH.unpack(head))
        )
        prepared = prepare(
            body, headers, models, route=route, is_eligible=is_eligible, wants_model=wants_model
        )
        answer = pickle.dumps(prepared, protocol=5)
        sink.write(_LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main()
