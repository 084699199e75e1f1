"""Validation of records: invalid values of any type are refused by field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from evaluation.evaluator import Evaluator
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, EvidenceError, Pair, Score
from tests.fakes.evidence_maker import ONE_STAGE

GOOD: dict[str, Any] = {
    "request_id": "x",
    "unit": "u",
    "at_s": 1.0,
    "arm": 0,
    "w": 0.05,
    "assigned_by": "request",
}


def evaluator() -> Evaluator:
    return Evaluator.start(GatePolicy.default(), stages=ONE_STAGE, seed_latency_ms={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at_s": math.nan}, "at_s nan"),
        ({"at_s": None}, "at_s None"),
        ({"at_s": 10**400}, "at_s 1000"),
        ({"arm": 2}, "arm 2"),
        ({"arm": "canary"}, "arm 'canary'"),
        ({"w": -0.1}, "w -0.1"),
        ({"w": math.nan}, "w nan"),
        ({"w": "a"}, "w 'a'"),
        ({"w": 1e-300}, "w 1e-300"),
        ({"w": 1.0}, "w 1.0"),
        ({"w": 0.0, "arm": 1}, "w 0.0"),
        ({"latency_ms": -1.0}, "latency_ms -1.0"),
        ({"latency_ms": math.inf}, "latency_ms inf"),
        ({"latency_ms": "5"}, "latency_ms '5'"),
        ({"tokens": -1.0}, "tokens -1.0"),
        ({"error": 5}, "error 5"),
        ({"error": math.nan}, "error nan"),
        ({"error": 0.5}, "error 0.5"),
        ({"flags": {"truncated": 7}}, "flag truncated 7"),
        ({"flags": {"fell_back": -1}}, "flag fell_back -1"),
        ({"unit": None}, "unit None"),
        ({"unit": ""}, "unit ''"),
        ({"unit": 3}, "unit 3"),
        ({"request_id": None}, "request_id None"),
        ({"assigned_by": "zzz"}, "assigned_by 'zzz'"),
        ({"assigned_by": None}, "assigned_by None"),
        ({"assigned_by": ["request"]}, r"assigned_by \['request'\]"),
    ],
)
def test_an_invalid_draw_is_refused_by_its_field(change: dict[str, Any], message: str) -> None:
    gate = evaluator()

    with pytest.raises(EvidenceError, match=message):
        gate.add(Draw(**{**GOOD, **change}))
    assert not gate.settlement.waiting


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": math.nan}, "quality nan"),
        ({"value": 80.0}, "quality 80.0"),
        ({"value": "1"}, "quality '1'"),
        ({"value": None}, "quality None"),
        ({"metric": "nope"}, "metric 'nope' of x is not scored; use one of error"),
        ({"metric": "latency_ms"}, "metric 'latency_ms'"),
        ({"metric": "hallucinated"}, "hallucinated 0.5 of x is neither 0 nor 1"),
        ({"at_s": math.nan}, "at_s nan"),
        ({"at_s": "now"}, "at_s 'now'"),
        ({"request_id": None}, "request_id None"),
    ],
)
def test_an_invalid_score_is_refused_by_its_field(change: dict[str, Any], message: str) -> None:
    gate = evaluator()
    given: dict[str, Any] = {"request_id": "x", "metric": "quality", "value": 0.5, "at_s": 1.0}

    with pytest.raises(EvidenceError, match=message):
        gate.add(Score(**(given | change)))
    assert not gate.settlement.scores


@pytest.mark.parametrize("change", [{"stable": 1.5}, {"canary": "1"}, {"at_s": None}])
def test_an_invalid_pair_is_refused_by_its_field(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "conversation": "c",
        "metric": "quality",
        "stable": 0.6,
        "canary": 0.5,
        "at_s": 1.0,
    }

    with pytest.raises(EvidenceError, match="at_s" if "at_s" in change else "quality"):
        evaluator().add(Pair(**(good | change)))


@pytest.mark.parametrize(
    "change", [{"error": True}, {"error": 1}, {"flags": {"truncated": False}}, {"arm": 1}]
)
def test_boolean_fields_are_accepted(change: dict[str, Any]) -> None:
    gate = evaluator()

    gate.add(Draw(**{**GOOD, **change}))

    assert len(gate.settlement.waiting) == 1
