"""Of which mirrored pairs a judge is asked, and with what.

Rules:
1. Of each copied request, while there is room in the judge's budget: decided, and the room taken, before
   either answer exists. So what is left out is so whatever the answers are, and for both alike.
2. Both answers are shown in the same form. A pair whose copy was not answered has nothing to judge: it counts
   as a failed copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.judging.conversation import CALLS_LIMIT, called, conversation
from serving.judging.pairs import MirroredPair
from serving.router.answers.answer_text import Said
from serving.router.bodies.continuable import fields_of
from serving.router.exchange.context import Start
from serving.router.router import RouterCore

_ONE = (b"1", b"null")


def takes_pair(core: RouterCore, start: Start) -> bool:
    """Whether the judge is asked of the pair of this copied request, whose answer does not exist yet."""
    order = start.table.judge
    return (
        order is not None
        and _asks_one_text(bytes(start.request.body))
        and core.judge.takes_pair(start.table.rollout)
    )


def _asks_one_text(body: bytes) -> bool:
    """Whether one answer is asked for, and what was said before it can be read."""
    try:
        fields = fields_of(body)
    except (ValueError, RecursionError):
        return False
    return bytes(fields.get("n", b"1")) in _ONE and conversation(body) is not None


def pair_of(start: Start, stable: Sequence[Said] | None, canary: Sequence[Said] | None) -> MirroredPair:
    """The question of this request's pair."""
    return MirroredPair(
        rollout=start.table.rollout,
        request_id=start.request_id,
        unit=start.assignment.unit,
        assigned_at_s=start.at_s,
        body=bytes(start.request.body),
        stable=shown(stable),
        canary=shown(canary),
        via=start.via,
    )


def shown(said: Sequence[Said] | None) -> str | None:
    """What a judge is shown of an answer, its calls of tools too; None: it has no text, or several choices.

    Check: ({'text': ' Hi '},) gives 'Hi'.
    """
    if said is None or len(said) != 1:
        return None
    choice = said[0]
    calls = [called(one["name"], one["arguments"]) for one in choice.get("tool_calls", ())[:CALLS_LIMIT]]
    parts = (str(choice.get("text") or choice.get("refusal") or "").strip(), *calls)
    return "\n".join(part for part in parts if part) or None
