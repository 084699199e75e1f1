"""Tick timer: what of the time between two ticks does not count."""

from __future__ import annotations

import pytest

from controller.runtime.tick_timer import MAX_TICK_S, TickTime, TickTimer

BEGAN_S, BOOTED_S = 1_800_000_000.0, 5_000.0


def ticks(*moves: tuple[float, float]) -> list[TickTime]:
    """Ticks after the first. moves: seconds by which (wall time, boot time) went on before each."""
    now_s, boot_s = BEGAN_S, BOOTED_S
    _, timer = TickTimer().tick(now_s, boot_s, ticked_at_s=now_s)
    out = []
    for wall_s, steady_s in moves:
        now_s, boot_s = now_s + wall_s, boot_s + steady_s
        time, timer = timer.tick(now_s, boot_s, ticked_at_s=0.0)
        out.append(time)
    return out


def test_time_that_passes_counts() -> None:
    assert ticks((1.0, 1.0)) == [TickTime(BEGAN_S + 1.0, 0.0, 0.0)]


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0, 0.6])
def test_a_clock_that_is_set_jumps_once(jump_s: float) -> None:
    first, second = ticks((1.0 + jump_s, 1.0), (1.0, 1.0))

    assert [first.jump_s, second.jump_s] == pytest.approx([jump_s, 0.0])


def test_a_slewed_clock_jumps_when_the_difference_has_added_up() -> None:
    jumps = [tick.jump_s for tick in ticks(*[(1.1, 1.0)] * 12)]

    assert sum(jumps) == pytest.approx(1.2, abs=0.5)
    assert max(jumps) >= 0.5


def test_a_gap_counts_up_to_what_a_tick_takes() -> None:
    [tick] = ticks((300.0, 300.0))

    assert (tick.jump_s, tick.away_s) == (0.0, 300.0 - MAX_TICK_S)


@pytest.mark.parametrize(
    ("behind_s", "jump_s", "away_s"), [(120.0, 0.0, 120.0), (-120.0, -120.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_the_next_controller_goes_on_from_the_last_committed_tick(
    behind_s: float, jump_s: float, away_s: float
) -> None:
    tick, _ = TickTimer().tick(BEGAN_S, BOOTED_S, ticked_at_s=BEGAN_S - behind_s)

    assert (tick.jump_s, tick.away_s) == (jump_s, away_s)


def test_a_state_of_an_older_release_has_no_last_tick() -> None:
    tick, _ = TickTimer().tick(BEGAN_S, BOOTED_S, ticked_at_s=0.0)

    assert tick == TickTime(BEGAN_S)
