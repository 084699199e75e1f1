"""A failure of both arms: one hold for as long as it goes on, one page an hour."""

from __future__ import annotations

import pytest

from controller.rollout.observation import GuardStatus
from controller.rollout.state import HoldKind, Phase
from evaluation.report import Verdict
from tests.fakes.driven import Driven, evidence

BOTH = GuardStatus("errors", "both arms fail", True)


def failing(driven: Driven, seconds: int, *, quiet_every: int = 20) -> set[str]:
    """Keys of the pages of an outage of both arms, with a look in between that sees none."""
    pages: set[str] = set()
    for second in range(seconds):
        driven.seen = evidence(guards=() if second % quiet_every == quiet_every - 1 else (BOTH,))
        driven.tick()
        pages |= {one.key for one in driven.state.outbox if "/hold-" in one.key}
    return pages


@pytest.mark.slow
def test_nothing_rises_between_two_bursts_of_errors_and_the_outage_is_paged_once() -> None:
    driven = Driven()
    driven.until(Phase.STAGE)
    weight_bp = driven.state.weight_bp

    pages = failing(driven, 600)

    assert (driven.state.phase, driven.state.weight_bp, len(pages)) == (Phase.STAGE, weight_bp, 1)
    assert driven.lines.count("held (both_arms)") == 1


def test_the_hold_ends_a_minute_after_the_last_burst() -> None:
    driven = Driven()
    driven.until(Phase.STAGE)
    failing(driven, 100)
    driven.seen = evidence()

    assert [hold.kind for hold in driven.ticks(58).holds] == [HoldKind.BOTH_ARMS]
    assert driven.ticks(5).phase is not Phase.STAGE


def test_evidence_that_cannot_be_read_is_no_quiet_minute() -> None:
    driven = Driven()
    driven.until(Phase.STAGE)
    failing(driven, 90)
    for _ in range(3):
        driven.seen = evidence()
        driven.ticks(30)
        driven.seen = None
        driven.ticks(10)

    assert [hold.kind for hold in driven.state.holds] == [HoldKind.BOTH_ARMS]


@pytest.mark.slow
def test_bursts_minutes_apart_are_paged_once_an_hour() -> None:
    driven = Driven()
    driven.until(Phase.STAGE)
    pages: set[str] = set()
    for second in range(2 * 3600):
        driven.seen = evidence(Verdict.UNDECIDED, guards=(BOTH,) if second % 120 == 0 else ())
        driven.tick()
        pages |= {one.key for one in driven.state.outbox if "both_arms" in one.text}

    assert len(pages) == 2
