"""The answer with a service's history, which may have megabytes, in parts.

Invariants: a part is read from the store when the client has taken those before it, so that one who reads
slowly holds a few parts and not the whole; nothing is encoded in the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from controller.api.slow_calls import SlowCalls

AT_ONCE = 8  # rollouts in a part; each may have 40 KB


async def in_parts(
    rollouts: Sequence[str], read: Callable[[str], bytes], calls: SlowCalls
) -> AsyncIterator[bytes]:
    """A JSON array of these rollouts. read: one of them as JSON, b"" for one that was removed meanwhile.

    An error ends it without the end of the array, so that nobody takes it for the whole.
    """

    def part_of(names: Sequence[str]) -> bytes:
        return b",".join(found for name in names if (found := read(name)))

    before = b"["
    for at in range(0, len(rollouts), AT_ONCE):
        names = rollouts[at : at + AT_ONCE]
        part = await calls.run(partial(part_of, names))
        if part:
            yield before + part
            before = b","
    yield b"[]" if before == b"[" else b"]"
