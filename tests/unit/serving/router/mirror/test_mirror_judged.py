"""Mirrored pairs whose answers a judge is asked of: which, with what, and that no user notices."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from serving.clock import boot_s
from serving.judge_messages import JudgeOrder, JudgeRecord
from serving.judging.questions import revision
from serving.messages import MirrorRecord
from serving.router.front import front_wire
from serving.router.front.front_wire import WireFront
from serving.router.mirror.mirror_judge import shown
from serving.router.router import RouterCore
from tests.fakes.judge_endpoint import judge_endpoint, spoken
from tests.fakes.router_rig import Engine, NoBackground, running, serving, until
from tests.unit.serving.judging.test_worker import words
from tests.unit.serving.router.mirror.test_mirror_wire import LIMITS, MirrorRig, failing

ASKED = [{"role": "user", "content": "Who is Zebulon?"}]


def by_answer(body: dict[str, Any]) -> tuple[int, Any]:
    return spoken("yes" if "an error" in words(body).partition("ANSWER")[2] else "no")


class JudgedRig(MirrorRig):
    """All of stable's requests are copied, and their pairs judged."""

    def judged(self, url: str, *, per_minute: int = 6000, change: int = 1) -> None:
        self.mirror(change=change)
        assert self.core.table is not None
        order = JudgeOrder(url, "m", None, revision("m"), 10_000, "quality", per_minute)
        self.core.on_table(replace(self.core.table, change=change + 1, judge=order), sent_s=boot_s())

    async def verdicts(self, count: int = 1) -> list[JudgeRecord]:
        found: list[JudgeRecord] = []
        self.copies: list[MirrorRecord] = []

        def have_come() -> bool:
            batch = self.core.outbox.next_batch(now_s=1e12)
            self.core.outbox.acknowledge()
            self.copies += batch.mirrored
            found.extend(one for one in batch.verdicts if one.label is None)
            return len(found) >= count

        await until(have_come)
        return found


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JudgedRig]:
    monkeypatch.setattr(front_wire, "STRAINED_S", math.inf)  # engines and client share this loop
    core = RouterCore("chat", router="r", limits=LIMITS, lease_s=1e9)
    front = WireFront(core, NoBackground())
    with judge_endpoint(by_answer) as url:
        async with (
            running(Engine("the text")) as stable,
            running(Engine("an error")) as canary,
            serving(front) as base,
        ):
            one = JudgedRig(core, stable, canary, base, front)
            one.judged(url)
            yield one
            await one.client.aclose()
    core.judge.stop()


async def test_both_answers_are_judged_and_the_user_has_stables(rig: JudgedRig) -> None:
    answer = await rig.ask(messages=ASKED)
    (verdict,) = await rig.verdicts()

    assert answer.json()["choices"][0]["message"]["content"] == "the text"
    assert verdict.pair == (False, True)
    assert verdict.request_id == answer.headers["x-canaryctl-request-id"]
    assert [(one.outcome, one.unit, one.same_text) for one in rig.copies] == [("ok", verdict.unit, False)]
    assert verdict.assigned_at_s <= verdict.at_s
    assert rig.core.counters.judged[("pair", "verdict")] == 1


async def test_while_only_copies_are_sent_no_other_answer_is_judged(rig: JudgedRig) -> None:
    await rig.ask(messages=ASKED)
    await rig.verdicts()

    assert {of for of, _ in rig.core.counters.judged} <= {"pair", "anchor"}


async def test_a_copy_that_failed_has_no_verdict_and_no_question(rig: JudgedRig) -> None:
    rig.canary.behave = failing(500)
    await rig.ask(messages=ASKED)
    (copy,) = await rig.pairs()
    rig.canary.behave = rig.canary.well
    await rig.ask(messages=ASKED)
    (verdict,) = await rig.verdicts()

    assert copy.outcome == "failed"
    assert verdict.request_id != copy.request_id
    assert rig.core.counters.judged[("pair", "verdict")] == 1


@pytest.mark.parametrize("body", [{"messages": ASKED, "n": 2}, {"messages": []}])
async def test_what_has_no_single_text_is_copied_and_not_judged(
    rig: JudgedRig, body: dict[str, object]
) -> None:
    await rig.ask(**body)
    await rig.pairs()

    assert len(rig.canary.seen) == 1
    assert rig.core.counters.judged == {}


async def test_beyond_the_budget_pairs_are_copied_and_left_out_whatever_they_say(rig: JudgedRig) -> None:
    assert rig.core.table is not None
    assert rig.core.table.judge is not None
    rig.judged(rig.core.table.judge.url, per_minute=1, change=5)
    for _ in range(4):
        await rig.ask(messages=ASKED)
    await until(lambda: rig.core.counters.mirrored.get("ok") == 4)
    await rig.verdicts()

    assert rig.core.counters.judged.get(("pair", "verdict")) == 1
    assert sum(count for (of, _), count in rig.core.counters.judged.items() if of == "pair") == 1


async def test_a_dead_judge_holds_up_no_user_and_each_pair_is_missing(rig: JudgedRig) -> None:
    rig.judged("http://127.0.0.1:9/v1", change=5)
    answers = [await rig.ask(messages=ASKED) for _ in range(4)]
    verdicts = await rig.verdicts(4)

    assert {one.status_code for one in answers} == {200}
    assert {(one.pair, one.cause) for one in verdicts} == {((None, None), "no judge")}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (({"text": " Hi "},), "Hi"),
        (({"refusal": "No."},), "No."),
        (({"text": "So:", "tool_calls": [{"name": "f", "arguments": "{}"}]},), "So:\n[calls f({})]"),
        (({"reasoning": "Hm."},), None),
        (({"text": "a"}, {"text": "b"}), None),
        (None, None),
    ],
)
def test_what_a_judge_is_shown(said: Any, text: str | None) -> None:
    assert shown(said) == text
