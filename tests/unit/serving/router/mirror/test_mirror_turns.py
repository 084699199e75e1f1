"""Copies read their two answers in turns: the router's loop serves everybody else in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from aiohttp import web

from serving.router.mirror import mirror, mirror_copy
from serving.router.turns import Turns, take_in_turns
from tests.fakes.router_rig import CHUNKS
from tests.unit.serving.router.mirror.test_mirror_wire import MirrorRig, rig

__all__ = ["rig"]


@pytest.mark.slow
async def test_both_answers_are_read_in_steps_that_leave_the_loop_to_others(
    rig: MirrorRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 KiB of comments took 0.3 s at once."""
    taken: list[str] = []

    def counted(turns: Turns, steps: Iterator[None]) -> None:
        name = steps.__name__  # type: ignore[attr-defined]

        def told() -> Iterator[None]:
            for _ in steps:
                taken.append(name)
                yield

        take_in_turns(turns, told())

    for module in (mirror, mirror_copy):
        monkeypatch.setattr(module, "take_in_turns", counted)

    async def comments(request: web.Request) -> web.StreamResponse:
        return await rig.stable.stream(request, [b":\n\n" * 20_000, *CHUNKS])

    rig.stable.behave = rig.canary.behave = comments
    answer = await rig.ask(stream=True)
    (pair,) = await rig.pairs()

    assert answer.content.endswith(CHUNKS[-1])
    assert (pair.outcome, pair.same_text) == ("ok", True)
    assert Counter(taken) == {"_scanning": -(-len(answer.content) // mirror.SCANNED), "_comparing": 40_008}
