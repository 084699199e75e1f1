"""A history is read a part at a time, as its client takes it."""

from __future__ import annotations

import json

from controller.api.history import AT_ONCE, in_parts
from controller.api.slow_calls import history_calls

NAMES = [f"r-{n}" for n in range(2 * AT_ONCE + 1)]


async def test_a_part_is_read_when_those_before_it_were_taken() -> None:
    """One who did not read held the whole: 17 MB of 500 rollouts."""
    read: list[str] = []

    def one(name: str) -> bytes:
        read.append(name)
        return json.dumps(name).encode()

    parts = in_parts(NAMES, one, history_calls())
    first = await anext(parts)
    before = len(read)
    rest = [part async for part in parts]

    assert before == AT_ONCE
    assert json.loads(b"".join([first, *rest])) == NAMES


async def test_rollouts_that_were_removed_meanwhile_are_left_out() -> None:
    async def read(*gone: str) -> list[str]:
        def one(name: str) -> bytes:
            return b"" if name in gone else json.dumps(name).encode()

        found: list[str] = json.loads(
            b"".join([part async for part in in_parts(NAMES, one, history_calls())])
        )
        return found

    assert await read(*NAMES) == []
    assert await read(*NAMES[:AT_ONCE]) == NAMES[AT_ONCE:]
    assert await read(NAMES[0], NAMES[-1]) == NAMES[1:-1]
