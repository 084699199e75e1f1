"""Messages between processes of different releases."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from serving.access import Access, Affinity
from serving.answer_signals import Signals
from serving.credentials import DataSecret, KeyReference
from serving.fleet.types import VersionStatus
from serving.judge_messages import JudgeOrder, JudgeRecord
from serving.messages import (
    Arm,
    AttemptRecord,
    RecordBatch,
    RecordPage,
    RequestRecord,
    RouteTable,
    unfrozen,
)
from serving.table.orders import Split
from serving.table.records_log import RecordLog

RECORD = RequestRecord(
    *(0, "req-1", "a1", "u", 5, 1, 0.1, "sticky", 0, "r-1", 1.0, 2.0, 200, "fallback", 0, True, "cut"),
    *(5.0, 1.0, 1.0, 3, 9, "stop", False, "/v1/chat/completions", "r", 1, 1),
    attempts=(AttemptRecord(1, "http://c", "cut", 4), AttemptRecord(0, "http://s", None)),
    takeover_at=4,
    taken_over_by=0,
    covered=True,
    connect_ms=2.0,
    signals=Signals(5, None, None, leaked=False, refused=False, other_language=False, invalid=False),
    version="v2",
)
TABLE = RouteTable(
    *("chat", 1, 1, 1, "r", "s", 100, None, None),
    late_commit="stream",
    access=Access(keys_required=True),
    affinity=Affinity(b"k"),
    generation="1.1",
    heavy=frozenset({"u"}),
    burst_cap=5.0,
    mirror=Arm("v-2", (), takes_priority=True),
    mirror_bp=200,
)


def of_older_release(message: Any, names: set[str]) -> Any:
    """The message as a release without these fields, which are the last ones, pickled it."""
    state = message.__getstate__()
    made = object.__new__(type(message))
    made.__setstate__(state[: len(fields(message)) - len(names)])
    return made


def test_a_message_without_the_newest_fields_gets_their_defaults() -> None:
    newest = ("takeover_at", "taken_over_by", "covered", "connect_ms", "signals", "version", "cached_tokens")
    names = {"attempts", "judged", *newest}
    record = of_older_release(RECORD, names)

    older: dict[str, Any] = dict.fromkeys(newest)
    assert record == replace(RECORD, attempts=(), **older)
    copies: dict[str, Any] = {"mirror": None, "mirror_bp": 0, "judge": None}
    assert of_older_release(TABLE, set(copies)) == replace(TABLE, **copies)
    clients: dict[str, Any] = copies | dict.fromkeys(("access", "affinity", "burst_cap"))
    clients |= {"generation": "", "heavy": frozenset()}
    assert of_older_release(TABLE, set(clients)) == replace(TABLE, **clients)
    oldest = of_older_release(TABLE, {"late_commit", *clients})
    assert oldest == replace(TABLE, late_commit="hold", **clients)


def test_arms_splits_and_batches_of_older_releases_have_no_copies() -> None:
    batch = RecordBatch("r", 1, (RECORD,), 3.0, 0, False, ())
    split = Split("r-1", "s", "v-1", "v-2", 100, 0)

    assert of_older_release(Arm("v-2", takes_priority=True), {"takes_priority"}) == Arm("v-2")
    assert of_older_release(batch, {"mirrored", "verdicts"}) == batch
    assert of_older_release(replace(split, mirror_bp=200), {"mirror_bp", "judge"}) == split
    assert Arm.from_json(Arm("v-2", takes_priority=True).to_json()) == Arm("v-2", takes_priority=True)


def test_pages_and_versions_of_older_releases_have_dropped_and_drained_nothing() -> None:
    page = RecordPage((RECORD,), 1, (), 3.0)
    version = VersionStatus("v-1", "ready", 1, 0, None, ("http://c",), None, 1.0)

    assert of_older_release(replace(page, dropped_s=2.0), {"dropped_s"}) == page
    assert of_older_release(replace(version, drained_replicas=3), {"drained_replicas"}) == version


def test_a_whole_message_is_the_same_after_a_copy() -> None:
    assert copy.deepcopy(RECORD) == RECORD
    assert copy.deepcopy(TABLE) == TABLE


def test_the_records_log_keeps_the_attempts() -> None:
    log = RecordLog()
    log.append_batch(RecordBatch("r", 1, (RECORD,), 3.0), now_s=1.0, wall_s=4.0)
    (read,) = log.read(0, 10, now_s=2.0, wall_s=9.0).events

    assert read == replace(RECORD, seq=1)


def test_a_record_that_was_made_unfrozen_is_as_good_as_any_and_frozen() -> None:
    values = {one.name: getattr(RECORD, one.name) for one in fields(RECORD) if one.name != "covered"}
    record = unfrozen(RequestRecord)(**values)
    record.__class__ = RequestRecord

    assert record == replace(RECORD, covered=None)  # a field that was left out has its default
    assert copy.deepcopy(record) == record
    with pytest.raises(FrozenInstanceError):
        record.seq = 1  # type: ignore[misc]


def test_an_order_for_a_judge_and_what_came_of_it_reach_another_process() -> None:
    order = JudgeOrder("http://judge", "m", KeyReference("env", "KEY"), "a1", 2000, "quality", 60)
    verdict = JudgeRecord(0, "r", "a1", 1.0, "req-1", None, True, None, 9, "router")
    table, batch = replace(TABLE, judge=order), RecordBatch("r", 1, (RECORD,), 3.0, verdicts=(verdict,))

    assert pickle.loads(pickle.dumps((table, batch))) == (table, batch)
    assert JudgeOrder.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_an_order_keeps_the_secret_of_its_engine_and_shows_it_nowhere() -> None:
    secret = DataSecret.of("root")
    order = JudgeOrder("http://10.0.0.1:1", "m", None, "a1", 2000, "quality", 60, secret)

    assert JudgeOrder.from_json(json.loads(json.dumps(order.to_json()))) == order
    assert pickle.loads(pickle.dumps(order)) == order
    assert secret.text not in repr(order)


def test_an_order_of_an_earlier_release_has_no_engine() -> None:
    order = JudgeOrder("http://10.0.0.1:1", "m", None, "a1", 2000, "quality", 60)
    older = order.to_json()
    del older["secret"]
    restored = JudgeOrder.__new__(JudgeOrder)
    restored.__setstate__(["http://10.0.0.1:1", "m", None, "a1", 2000, "quality", 60])

    assert JudgeOrder.from_json(older) == restored == order
