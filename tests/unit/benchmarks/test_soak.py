"""The fault matrix finds what it looks for: a wrong byte, a wrong record, an arm that is worse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import client, fairness, on_fakes
from benchmarks.soak.answers import KINDS, answer_of, body_of, kind_of, plain
from benchmarks.soak.faults import BY_NAME

NUMBER_OF = {kind.name: next(n for n in range(1000) if kind_of(n) == kind) for kind in KINDS}


def answer(name: str, arm: str = "canary") -> tuple[bytes, list[bytes]]:
    body = body_of(NUMBER_OF[name])
    kind = kind_of(NUMBER_OF[name])
    return body, answer_of(arm, kind.path, json.loads(body))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_client_accepts_either_engines_bytes_and_no_others(kind: Any) -> None:
    body, events = answer(kind.name)
    _, others = answer(kind.name, "stable")
    data = plain(events)

    assert client.check(kind, body, data) == "canary"
    assert client.check(kind, body, plain(others)) == "stable"
    for wrong in (
        data[:-1],
        data[:40],
        data[: len(data) // 2],
        data + b"\n",
        data.replace(b"canary", b"other", 1),
    ):
        with pytest.raises(client.NotRight):
            client.check(kind, body, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", [kind.name for kind in KINDS if kind.is_continued])
def test_a_client_accepts_a_continued_stream_only_when_nothing_is_missing_or_twice(name: str) -> None:
    kind = kind_of(NUMBER_OF[name])
    body, events = answer(name)
    parts = plain(events).removesuffix(b"\n\n").split(b"\n\n")
    # Two events of text in one, as another engine may write them.
    at = next(n for n in range(2, len(parts)) if b'"finish_reason":null' in parts[n])
    first, second = json.loads(parts[at - 1][6:]), json.loads(parts[at][6:])
    shown = "delta" if "delta" in first["choices"][0] else ""
    target = first["choices"][0]["delta"] if shown else first["choices"][0]
    field = "content" if shown else "text"
    source = second["choices"][0]["delta"] if shown else second["choices"][0]
    target[field] += source[field]
    joined = b"data: " + json.dumps(first).encode()
    stitched = [*parts[: at - 1], joined, *parts[at + 1 :]]

    def data(some: list[bytes]) -> bytes:
        return b"\n\n".join(some) + b"\n\n"

    assert client.check(kind, body, data(stitched)) == "stitched"
    for index, event in enumerate(stitched):
        if b'"content":""},"logprobs":null,"finish_reason":null' in event and b"role" not in event:
            continue  # of a character that has not ended: it says nothing
        if b'"text":"","logprobs":null,"finish_reason":null' in event:
            continue
        for wrong in (
            [*stitched[:index], *stitched[index + 1 :]],
            [*stitched[: index + 1], *stitched[index:]],
        ):
            with pytest.raises(client.NotRight):
                client.check(kind, body, data(wrong))


def record(**changes: Any) -> dict[str, Any]:
    usual = {
        "request_id": "r", "arm": 1, "error": True, "rejected": False, "cause": "cut", "outcome": "fallback",
        "takeover_at": 4, "taken_over_by": 0, "served_arm": 0, "covered": True, "attempts": [],
    }  # fmt: skip
    return {**usual, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"error": False, "cause": None},
        {"rejected": True},
        {"cause": "status 500"},
        {"arm": 0},
        {"takeover_at": None},
        {"taken_over_by": 1},
        {"served_arm": 1},
        {"covered": False},
    ],
)
def test_a_record_that_is_not_what_happened_is_found(changes: dict[str, Any]) -> None:
    fault = BY_NAME["truncated"]

    def mismatches(one: dict[str, Any]) -> list[str]:
        account = on_fakes.Account()
        tally = client.Tally(by_id={"r": ("chat stream", "stitched")})
        on_fakes.settle(account, fault, tally, {"r": [(fault.name, False)]}, [one])
        return account.mismatches

    assert mismatches(record()) == []
    assert len(mismatches(record(**changes))) == 1


def test_a_request_without_a_record_or_with_two_is_found() -> None:
    fault, log = BY_NAME["truncated"], {"r": [("truncated", False)]}
    tally = client.Tally(by_id={"r": ("chat stream", "stitched"), "lost": ("chat stream", "canary")})
    account = on_fakes.Account()
    on_fakes.settle(account, fault, tally, log, [record(), record()])

    assert [one.split(":")[0] for one in account.mismatches] == ["1 requests have two records", "lost"]


@pytest.mark.calibration
def test_a_canary_that_alone_has_the_fault_is_rolled_back_and_an_identical_one_is_not() -> None:
    alone = fairness.run_once("cut", 2, 600, rates=(0.0, 0.3))
    both = fairness.run_once("cut", 2, 600, rates=(0.05, 0.05))

    assert all(alone.values()), alone
    assert Counter(both.values()) == {"": 2}


def test_a_line_of_the_engines_log_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    log = tmp_path / "canary.log"
    assert on_fakes.read_log(log) == {}
    log.write_bytes(b'["begin", "req-abc", "reset"]\n["end", "req-abc"]\n["begin", "req')
    assert on_fakes.read_log(log) == {"req-abc": [("reset", True)]}
