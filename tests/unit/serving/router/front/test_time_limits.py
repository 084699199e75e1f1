"""How long a request may take in all, on a clock that jumps."""

from __future__ import annotations

from typing import Any

import pytest

from serving.router.types import Limits
from tests.fakes.virtual_wire import Behaviour, Habit, Piece, Seen, ask, chunked, head, virtual_time

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "q"}]}
TOOLS: dict[str, Any] = {"stream": True, "tools": [{"type": "function", "function": {"name": "f"}}]}
LIMITS = Limits(
    settle_s=4.0, canary_stream_s=4.0, canary_whole_s=10.0, stable_s=12.0, stall_s=3.0, idle_s=6.0
)
WORD = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def asked(behaviour: Behaviour, *, arm: int, replicas: int = 1, **fields: Any) -> tuple[Seen, float]:
    """What came of one request, and the seconds until its client had the end of its answer."""
    with virtual_time() as loop:
        began_s = loop.time()
        seen = loop.run_until_complete(
            ask(
                behaviour,
                Habit(),
                arm=arm,
                path=CHAT,
                body={**ASKED, **fields},
                replicas=replicas,
                limits=LIMITS,
            )
        )
        return seen, loop.time() - began_s


@pytest.mark.parametrize(("arm", "limit_s"), [(0, 12.0), (1, 10.0 + 12.0)])
def test_engines_that_never_answer_have_one_limit_an_arm_however_often_they_are_asked(
    arm: int, limit_s: float
) -> None:
    seen, took_s = asked(lambda path, body: (), arm=arm, replicas=3)

    assert b" 503 " in seen.answer.split(b"\r\n")[0]
    assert limit_s <= took_s <= limit_s + 0.5


def test_a_repeat_has_what_is_left_of_the_limit() -> None:
    broken: list[Piece] = [(7.0, "reset")]

    seen, took_s = asked(lambda path, body: broken, arm=1, replicas=2)

    assert seen.asked == {"stable": 2, "canary": 2}
    assert took_s <= 10.0 + 12.0 + 0.5


def test_a_canary_that_only_pings_in_mid_answer_is_replaced_after_the_stall() -> None:
    asked_before: list[str] = []

    def behave(path: str, body: object) -> list[Piece]:
        if not path:
            return []
        asked_before.append(path)
        if len(asked_before) > 1:
            return [(0.1, head() + chunked(WORD + FINISH) + b"0\r\n\r\n")]
        return [(0.1, head()), (0.1, chunked(WORD)), *[(0.5, chunked(b": ping\n\n"))] * 60]

    seen, took_s = asked(behave, arm=1, **TOOLS)
    (record,) = seen.records

    assert (record.error, record.cause, record.outcome) == (True, "stalled", "fallback")
    assert seen.answer.count(b'"x"') == 1
    assert took_s <= 4.0
