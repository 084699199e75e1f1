"""From the router's tokens to the evidence: a pinned request is counted with its draw, never as one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.evidence.records import draw_of
from evaluation.records import check_draw
from evaluation.units.units import HELD, Assignments, Drawn, Units, kind_of, unit_hash
from serving.access import Affinity
from serving.messages import RequestRecord
from tests.fakes.routed import Routed

USERS = 800
HEADER = "x-canaryctl-affinity"


def resolved(records: list[RequestRecord]) -> tuple[Drawn, Assignments]:
    """The draws that the evaluation finds in these records."""
    draws = [draw_of(record) for record in records]
    for draw in draws:
        check_draw(draw)
    rows = Assignments(
        at_s=np.array([draw.at_s for draw in draws]),
        arm=np.array([bool(draw.arm) for draw in draws]),
        w=np.array([draw.w for draw in draws]),
        kind=np.array([kind_of(draw.assigned_by) for draw in draws]),
        unit=np.array([unit_hash(draw.unit) for draw in draws]),
        stage=np.zeros(len(draws), dtype=np.int64),
        fell_back=np.full(len(draws), math.nan),
    )
    return Units(session_requests=10, session_s=600.0).resolve(rows, np.arange(len(draws))), rows


@pytest.mark.slow
@pytest.mark.parametrize("is_named", [True, False])
def test_raising_the_weight_under_tokens_leaves_every_draw_at_its_own_probability(is_named: bool) -> None:
    routed = Routed().use(affinity=Affinity(b"k" * 32), weight_bp=500)
    bodies = [{"user": f"u-{n}"} if is_named else {} for n in range(USERS)]
    records, tokens = [], []
    for body in bodies:
        served = routed.served(body)
        records.append(served.record)
        tokens.append(served.token)
    routed.use(weight_bp=5000)
    for after_s in (600.0, 9000.0):  # within the token's time, and long after it
        for body, token in zip(bodies, tokens, strict=True):
            records.append(routed.served(body, headers={HEADER: token}, after_s=after_s).record)
    drawn, rows = resolved(records)
    first = drawn.position == 1
    later, w = slice(2 * USERS, None), drawn.w

    assert {record.assigned_by for record in records[USERS : 2 * USERS]} == {"pinned"}
    assert not first[rows.kind == HELD].any()
    assert first[:USERS].all()
    for part in (slice(0, USERS), later):
        bet = first[part]
        surplus = (rows.arm[part] - w[part])[bet].sum()
        assert abs(surplus) < 4.5 * math.sqrt((w[part] * (1 - w[part]))[bet].sum())
    expected = (0.5 - 0.05) / 0.95 if is_named else 0.5
    assert set(np.round(w[later][first[later]], 9)) == {round(expected, 9)}


@pytest.mark.slow
def test_what_was_not_drawn_is_no_evidence_of_either_arm() -> None:
    routed = Routed().use(weight_bp=5000, burst_cap=25.0)
    records = [routed.served({"user": f"u-{n}"}, after_s=n * 0.001).record for n in range(400)]
    drawn, _ = resolved(records)
    capped = np.array([record.assigned_by == "capped" for record in records])

    assert capped.sum() == 350
    assert not drawn.position[capped].any()
    assert (drawn.position[~capped] == 1).all()
