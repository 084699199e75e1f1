"""What reading the answers of one client costs, others do not wait for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Generator
from functools import partial
from typing import Any

import jsonschema_rs
import pytest

from serving.answer_signals import Signals
from serving.judging import forms, schema_check
from serving.judging.forms import Forms, form_of, key_of
from serving.judging.schema_check import WORK_LIMIT
from serving.judging.schema_cost import cost_of
from serving.judging.signals import asked_of, signals_of
from serving.messages import RequestRecord
from serving.router import turns as turns_of
from serving.router.exchange import answer_text_signals
from serving.router.exchange.answer_text_signals import CLIENT_WORK, TEXTS_LIMIT, UnreadTexts
from serving.router.spare_turns import SHARE_RATIO, SpareTurns
from tests.fakes.feed_maker import a_record

COSTLY = {"allOf": [{"pattern": "\\w{200}" + chr(97 + n)} for n in range(26)]}


class _Text:
    size = 100

    def __init__(self, client: str, steps: int = 0) -> None:
        self.client, self._steps = client, steps

    def in_steps(self) -> Generator[None, None, Signals]:
        for _ in range(self._steps):
            yield
        return Signals(1, None, None, leaked=False, refused=False, other_language=False, invalid=False)


def _add(unread: UnreadTexts, number: int, text: _Text, made: list[RequestRecord]) -> RequestRecord:
    record = a_record(number)
    unread.add(text, record, partial(made.append, record))  # type: ignore[arg-type]
    return record


def _body(schema: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return json.dumps({"messages": [], "response_format": form}).encode()


class _Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1.0
        for name in ("perf_counter", "thread_time"):
            monkeypatch.setattr(time, name, lambda: self.now_s)


def _busy_with(clock: _Clock, turns: SpareTurns, other_s: float, own_s: float = 0.01) -> list[float]:
    """Of 2 s in which the loop does so much else each turn: when a piece of ours ended."""
    done = list[float]()

    def ours() -> None:
        clock.now_s += own_s
        done.append(clock.now_s)
        turns.join_for(ours, "a")

    async def run() -> None:
        turns.join_for(ours, "a")
        while clock.now_s < 3.0:
            clock.now_s += other_s
            await asyncio.sleep(0)

    asyncio.run(run())
    return [one for one in done if one <= 3.0]


def test_a_busy_loop_spends_a_tenth_on_what_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _busy_with(_Clock(monkeypatch), SpareTurns(), 0.002)
    assert 0.01 * len(done) / 2.0 == pytest.approx(SHARE_RATIO, rel=0.1)


def test_short_pieces_have_a_turns_time_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tenth a loop full of usual requests left answers of theirs unread."""
    done = _busy_with(_Clock(monkeypatch), SpareTurns(), 0.004, 0.00011)
    assert 0.00011 * len(done) / 2.0 == pytest.approx(0.2, rel=0.1)


def test_an_idle_loop_spends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _busy_with(_Clock(monkeypatch), SpareTurns(), 0.00001)
    assert 0.01 * len(done) / 2.0 > 0.95


async def test_an_answer_is_read_before_the_many_that_another_client_has_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_of, "TURN_S", 1e-9)  # spent after one
    unread, turns, made = UnreadTexts(), SpareTurns(), list[RequestRecord]()
    unread.later = turns.join_for
    for number in range(200):
        _add(unread, number, _Text("hog", 3), made)
    for _ in range(20):
        await asyncio.sleep(0)
    other = _add(unread, 200, _Text("other"), made)
    for _ in range(50):
        await asyncio.sleep(0)

    assert other in made
    assert len(made) < 50


def test_of_too_many_those_go_without_signals_whose_client_has_most() -> None:
    """A client that could fill all places had the answers of all others go without signals."""
    unread, made = UnreadTexts(), list[RequestRecord]()
    unread.later = lambda _work, _client: None
    for number in range(TEXTS_LIMIT):
        _add(unread, number, _Text("hog"), made)
    others = [_add(unread, TEXTS_LIMIT + number, _Text("other"), made) for number in range(100)]
    late = _add(unread, TEXTS_LIMIT + 100, _Text("hog"), made)

    assert late in made
    assert len(made) == 101
    unread.read_all()
    assert (len(made), unread.bytes) == (TEXTS_LIMIT + 101, 0)
    assert all(other.signals is not None for other in others)


def test_a_router_that_ends_does_not_read_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """1,024 costly ones were 15 s, in one turn."""
    monkeypatch.setattr(answer_text_signals, "ALL_S", 0.0)
    unread, made = UnreadTexts(), list[RequestRecord]()
    unread.later = lambda _work, _client: None
    for number in range(3):
        _add(unread, number, _Text("a"), made)
    unread.read_all()

    assert [one.signals for one in made] == [None] * 3
    assert [vars(one)["answers"] for one in caplog.records] == [3]


def test_an_answer_that_took_long_is_checked_and_read_as_one_that_did_not() -> None:
    """Answers end in another order than their requests began, by whose times the work is counted."""
    unread, body = UnreadTexts(), _body({"pattern": "a"})
    for second in range(20, 40):
        assert unread.may_check("a", body, float(second))
        assert unread.may_check("a", body, second - 10.0)
        assert unread.wants(is_compared=False, now_s=float(second))
        assert unread.wants(is_compared=False, now_s=second - 10.0)


def test_what_a_client_asks_to_check_is_bounded_by_its_requests_alone() -> None:
    unread, body = UnreadTexts(), _body(COSTLY)
    drawn = [unread.may_check("a", body, 10.0 + number / 1000) for number in range(1000)]
    assert CLIENT_WORK / WORK_LIMIT - 1 < sum(drawn) < 2 * CLIENT_WORK / WORK_LIMIT + 1
    assert unread.may_check("b", body, 11.0)
    assert unread.may_check("a", b'{"messages": []}', 11.0)
    assert unread.may_check("a", body, 12.0)
    assert all(unread.may_check("c", _body({"type": "object"}), 12.0) for _ in range(1000))


def test_what_may_not_be_checked_has_no_form() -> None:
    unread, body = UnreadTexts(), _body({"type": "object"})
    found = [
        signals_of(asked_of(body, unread.form_by(is_checked=is_checked)), "no JSON").invalid
        for is_checked in (True, False)
    ]
    assert found == [True, False]


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made, make = list[Any](), jsonschema_rs.validator_for

    def counted(schema: Any, **how: Any) -> Any:
        made.append(schema)
        return make(schema, **how)

    monkeypatch.setattr(jsonschema_rs, "validator_for", counted)
    return made


def _invalid(known: Forms, schema: Any, text: str) -> bool:
    return signals_of(asked_of(_body(schema), known.of), text).invalid


def test_the_check_of_a_schema_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, known = _counted(monkeypatch), Forms()
    found = [_invalid(known, {"required": ["a"]}, text) for text in ('{"a": 1}', '{"b": 1}', '{"a": 2}')]
    assert (found, len(made)) == ([False, True, False], 1)


def test_a_form_costs_less_once_its_check_is_made() -> None:
    known, schema = Forms(), {"properties": {f"p{n}": {"pattern": "^ab?$"} for n in range(3)}}
    key = key_of(_body(schema))
    assert key is not None
    assert known.price(key) == WORK_LIMIT
    _invalid(known, schema, "{}")
    assert known.price(key) < WORK_LIMIT / 10


def test_what_is_kept_of_forms_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "KEPT_BYTES", 10 * schema_check.PATTERN_BYTES)
    made, known = _counted(monkeypatch), Forms()
    for number in [*range(20), *range(20)]:
        _invalid(known, {"pattern": f"a{number}"}, '"a"')
    assert len(made) == 40
    _invalid(known, {"pattern": "a19"}, '"a"')
    assert len(made) == 40


def test_a_check_for_which_there_is_no_room_costs_all_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_check, "PATTERN_BYTES", forms.FORM_BYTES + 1)
    made, known = _counted(monkeypatch), Forms()
    for _ in range(2):
        _invalid(known, {"pattern": "a"}, '"a"')
    key = key_of(_body({"pattern": "a"}))
    assert key is not None
    assert (len(made), known.price(key)) == (2, WORK_LIMIT)


def test_a_schema_that_is_too_costly_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known, counted, count = Forms(), list[Any](), cost_of

    def counting(schema: Any, *rest: Any) -> Any:
        counted.append(schema)
        return count(schema, *rest)

    monkeypatch.setattr(schema_check, "cost_of", counting)
    for _ in range(3):
        assert not _invalid(known, {"allOf": [{"pattern": "x" * 1000}] * 100}, "1")
    assert len(counted) == 1


@pytest.mark.parametrize("body", [b"", b"[1]", b"{}", b'{"tools": ', b'{"messages": []}'])
def test_a_body_without_a_form_has_no_key(body: bytes) -> None:
    assert key_of(body) is None
    assert form_of(None).tools is None
