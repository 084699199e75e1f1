"""Units and their draws: revealed bucket intervals, tokens, sessions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import snapshot as snapshots
from evaluation.records import EvidenceError
from evaluation.units.later_blocks import (
    BLOCKS,
    BUCKETS,
    PARTS,
    STAGES,
    Place,
    bucket_of,
    judged_block,
    stands_for,
)
from evaluation.units.units import (
    HELD,
    LEFT_OUT,
    REQUEST,
    STICKY,
    Assignments,
    Drawn,
    Units,
    kind_of,
    next_probability,
    unit_hash,
)


def resolve(units: Units, *rows: tuple[float, int, float, int, int], first_seq: int = 0) -> Drawn:
    """Rows of (at_s, arm, w, kind, unit)."""
    at_s, arm, w, kind, unit = (np.array(column) for column in zip(*rows, strict=True))
    requests = Assignments(
        at_s.astype(float), arm == 1, w.astype(float), kind, unit, unit * 0, np.full(len(rows), np.nan)
    )
    return units.resolve(requests, np.arange(first_seq, first_seq + len(rows)))


def new_units() -> Units:
    return Units(session_requests=3, session_s=600.0)


def test_a_unit_last_seen_on_stable_returns_at_the_conditional_probability() -> None:
    drawn = resolve(new_units(), (0, 0, 0.05, STICKY, 7), (9000, 1, 0.25, STICKY, 7))

    assert drawn.w.tolist() == pytest.approx([0.05, 0.2 / 0.95])


def test_a_unit_seen_on_the_canary_is_not_bet_again_at_a_higher_weight() -> None:
    drawn = resolve(new_units(), (0, 1, 0.05, STICKY, 7), (9000, 1, 0.25, STICKY, 7))

    assert drawn.position.tolist() == [1, 0]


def test_a_unit_counts_once_at_one_weight_and_its_requests_join_its_session() -> None:
    drawn = resolve(new_units(), *[(at, 0, 0.1, STICKY, 7) for at in (0, 10, 20, 30)])

    assert (drawn.position.tolist(), drawn.draw.tolist()[:3]) == ([1, 2, 3, 1], [0, 0, 0])
    assert drawn.round.tolist() == [0, 0, 0, 1]


HOUR = 3600.0  # six sessions: a round


def judged_at(unit: int, number: int, part: int) -> int:
    """The block of this part that is judged."""
    return (1 << part) - 1 + judged_block(bucket_of(unit), number, part)


def test_what_a_unit_asks_after_its_session_is_judged_once_a_round_and_part() -> None:
    at_s = (0, 700, 710, 720, 730, 2000, HOUR + 1, HOUR + 2, 5 * HOUR)
    drawn = resolve(new_units(), *[(at, 0, 0.1, STICKY, 7) for at in at_s])
    second = [2 - judged_at(7, 1, 1), judged_at(7, 1, 1) - 1]  # of the blocks 1 and 2, one is judged

    assert drawn.round.tolist() == [0, 1, 1, 1, *second, 2, 2, 6]
    assert drawn.part.tolist() == [0, 0, 0, 0, *second, 0, 0, 0]
    assert drawn.position.tolist() == [1, 1, 2, 3, *second, 1, 2, 1]  # three requests a session
    assert drawn.draw.tolist()[:8] == [0, 1, 1, 1, 4, 5, 6, 6]
    assert drawn.fresh.tolist() == [False, True, False, False, *(x == 1 for x in second), *[False] * 3]


def test_each_part_of_a_long_conversation_has_one_judged_block_in_a_round() -> None:
    """Blocks of three requests: 0; 1 and 2; 3 to 6; 7 to 14; 15 to 30; then none until the next round."""
    for unit in range(40):
        drawn = resolve(new_units(), *[(at, 0, 0.1, STICKY, unit) for at in range(3 + 3 * 40)])
        blocks = np.arange(3 * 40) // 3
        is_judged = drawn.position[3:] > 0

        expected = [judged_at(unit, 1, part) for part in range(PARTS)]
        assert np.unique(blocks[is_judged]).tolist() == expected
        assert drawn.part[3:][is_judged][::3].tolist() == list(range(PARTS))
        assert int(is_judged.sum()) == 3 * PARTS
        assert drawn.fresh[3:][is_judged].tolist() == [True, False, False] * PARTS


def test_the_judged_block_is_drawn_for_each_unit_and_round_and_stands_for_the_others() -> None:
    for part in range(PARTS):
        drawn = [judged_block(bucket, number, part) for bucket in range(BUCKETS) for number in range(1, 17)]
        counts = np.bincount(drawn, minlength=2**part)
        expected = 16.0 * BUCKETS / np.array([stands_for(block, part) for block in range(2**part)])

        assert len(counts) == 2**part
        assert expected.sum() == pytest.approx(16.0 * BUCKETS)
        assert np.abs((counts - expected) / expected**0.5).max() < 4.5
    again = [
        judged_block(bucket, number, 3) == judged_block(bucket, number + 1, 3)
        for bucket in range(BUCKETS)
        for number in range(1, 14)
    ]
    assert 0.21 < sum(again) / len(again) < 0.33  # by chance, 1/4 + 7 / 14**2
    sizes = np.bincount([bucket_of(unit_hash(f"u{u}")) for u in range(100 * BUCKETS)], minlength=BUCKETS)
    assert np.abs(sizes - 100).max() < 45  # 4.5 standard deviations


def test_a_part_is_judged_for_the_first_time_once_a_stage_however_many_rounds_it_has() -> None:
    units = new_units()
    rows = [(at, 0, 0.1, STICKY, 7) for at in (*range(12), *(int(HOUR) + at for at in range(9)))]
    at_s, arm, w, kind, unit = (np.array(column) for column in zip(*rows, strict=True))
    stage = np.array([0] * 15 + [1] * 6)
    nowhere = np.full(len(rows), np.nan)
    requests = Assignments(at_s.astype(float), arm == 1, w, kind, unit, stage, nowhere)
    drawn = units.resolve(requests, np.arange(len(rows)))

    first_of = {(int(s), int(p)) for s, p in zip(stage[drawn.fresh], drawn.part[drawn.fresh], strict=True)}
    assert int(drawn.fresh.sum()) == len(first_of)
    assert {(0, 0), (0, 1)} <= first_of
    assert (1, 0) not in first_of  # block 0 of the second round is of the first stage


@pytest.mark.slow
def test_a_long_conversation_takes_no_more_memory_than_one_that_came_back_once() -> None:
    units = new_units()
    resolve(units, *[(at, 0, 0.1, STICKY, unit) for at in range(0, 8000, 2) for unit in (7, 8, 9)])
    resolve(units, *[(20_000, 0, 0.1, REQUEST, 0), *[(20_000, 0, 0.1, HELD, 10)] * 5000])

    assert set(units.last_later) == {7, 8, 9}
    assert not units.open_later


def test_a_place_is_what_its_number_says() -> None:
    place = Place(round=70_000, stage=STAGES - 1, block=BLOCKS - 1, judged=2**PARTS - 1)

    assert Place.of(place.number) == place
    assert place.number < 2**63
    assert place.next_block(70_000, STAGES - 1) == place  # beyond the last part there is nothing to count
    assert place.next_block(70_001, 0) == Place(70_001, STAGES - 1, 0, 2**PARTS - 1)  # a late row
    assert Place(3, 0, 1, 5).next_block(4, 1) == Place(4, 1, 0, 0)
    assert Place.of(-1).next_block(3, 1) == Place(3, 1, 0, 0)


def test_a_later_session_is_bet_at_the_whole_weight_on_both_arms_alike() -> None:
    """After a raise both wait for as long as a session, although one of them reveals nothing."""
    rows = [(at, arm, w, STICKY, 7 + arm) for at, w in ((0, 0.1), (900, 0.3), (1700, 0.3)) for arm in (0, 1)]
    drawn = resolve(new_units(), *rows)

    assert drawn.position.tolist() == [1, 1, 1, 0, 1, 1]
    assert drawn.round.tolist() == [0, 0, 0, 0, 1, 1]
    assert drawn.w.tolist()[4:] == [0.3, 0.3]


def test_a_raise_ends_the_open_sessions_of_both_arms_alike() -> None:
    """Three requests a session. A canary's unit went on with its own, so that stable's alone were cut short:
    identical versions differed in length."""
    at_s = ((0, 0.1), (1, 0.1), (2, 0.3), (3, 0.3), (4, 0.3), (5, 0.3))
    rows = [(at, arm, w, STICKY, 7 + arm) for at, w in at_s for arm in (0, 1)]
    drawn = resolve(new_units(), *rows)

    assert drawn.draw.tolist()[:4] == [0, 1, 0, 1]
    assert drawn.position.tolist()[0::2] == [1, 2, 1, 2, 3, 1]
    assert drawn.position.tolist()[1::2] == [1, 2, 0, 0, 0, 1]  # its toss reveals nothing
    assert drawn.round.tolist() == [0] * 10 + [1, 1]


def test_later_sessions_survive_a_restart() -> None:
    units, again = new_units(), new_units()
    resolve(units, *[(at, 0, 0.1, STICKY, 7) for at in (0, 700, 701)])
    snapshots.read(again, snapshots.write(units, digest="d"), digest="d")

    for one in (units, again):
        drawn = resolve(one, *[(at, 0, 0.1, STICKY, 7) for at in (702, 703, HOUR)], first_seq=3)
        second = 2 - judged_at(7, 1, 1)  # of the blocks 1 and 2
        assert (drawn.round.tolist(), drawn.position.tolist()) == ([1, second, 2], [3, second, 1])


def test_a_session_ends_with_its_time() -> None:
    drawn = resolve(new_units(), (0, 0, 0.1, STICKY, 7), (600, 0, 0.1, STICKY, 7), (601, 0, 0.1, STICKY, 7))

    assert (drawn.position.tolist(), drawn.round.tolist()) == ([1, 2, 1], [0, 0, 1])


def test_a_request_under_a_token_belongs_to_the_draw_of_the_token() -> None:
    drawn = resolve(new_units(), (0, 0, 0.05, STICKY, 7), (60, 0, 0.05, HELD, 7))

    assert (drawn.position.tolist(), drawn.draw.tolist(), drawn.w.tolist()) == ([1, 2], [0, 0], [0.05, 0.05])


def test_a_token_reveals_nothing_new_of_its_bucket() -> None:
    units = new_units()
    resolve(units, (0, 0, 0.05, STICKY, 7))
    resolve(units, (60, 0, 0.25, HELD, 7))  # carries the stage's weight by mistake

    drawn = resolve(units, (9000, 1, 0.25, STICKY, 7), first_seq=2)

    assert drawn.w.tolist() == pytest.approx([0.2 / 0.95])


def test_a_request_under_a_token_of_an_unknown_draw_is_not_evidence() -> None:
    assert resolve(new_units(), (0, 1, 0.05, HELD, 7)).position.tolist() == [0]


def test_a_request_that_was_not_drawn_is_not_evidence() -> None:
    assert resolve(new_units(), (0, 1, 0.5, LEFT_OUT, 7), (1, 0, 0.5, LEFT_OUT, 8)).position.tolist() == [
        0,
        0,
    ]


def test_a_unit_seen_before_the_canary_is_still_bet_at_its_first_weight() -> None:
    drawn = resolve(new_units(), (0, 0, 0.0, STICKY, 7), (9000, 0, 0.1, STICKY, 7))

    assert drawn.w.tolist() == [0.0, 0.1]


def test_an_arm_that_contradicts_the_bucket_is_counted_and_left_out() -> None:
    units = new_units()
    drawn = resolve(units, (0, 1, 0.05, STICKY, 7), (9000, 0, 0.25, STICKY, 7))

    assert (drawn.position.tolist(), units.contradictions) == ([1, 0], 1)


def test_a_unit_keeps_its_interval_whatever_the_source_of_its_key() -> None:
    units = new_units()
    key = unit_hash("user-1")
    resolve(units, (0, 1, 0.05, kind_of("sticky"), key))

    assert resolve(units, (9000, 1, 0.25, kind_of("user"), key), first_seq=1).position.tolist() == [0]


@pytest.mark.parametrize(
    ("word", "kind"),
    [("request", REQUEST), ("heavy", REQUEST), ("sticky", STICKY), ("fallback", STICKY), ("pin", HELD)]
    + [(word, STICKY) for word in ("unit", "user", "session", "conversation", "bucket")]
    + [(word, HELD) for word in ("pinned", "affinity", "token")]
    + [
        (word, LEFT_OUT)
        for word in ("force", "header", "no-capacity", "no-lease", "fenced", "excess", "mirror")
    ],
)
def test_only_requests_assigned_without_the_coin_are_left_out(word: str, kind: int) -> None:
    assert kind_of(word) == kind


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 0.9), min_size=1, max_size=6))
def test_conditional_probabilities_multiply_to_the_revealed_interval(
    bucket: int, weights: list[float]
) -> None:
    """At any sequence of weights, a unit's coins multiply to the width of its revealed interval."""
    position = bucket / 10_001
    low, high, chance = 0.0, 1.0, 1.0
    for w in sorted(weights):
        p = next_probability(w, low, high)
        is_canary = position < w
        chance *= p if is_canary else 1 - p
        low, high = (low, min(high, w)) if is_canary else (max(low, w), high)

    assert low <= position < high
    assert chance == pytest.approx(high - low)


@pytest.mark.slow
def test_forgetting_closed_sessions_changes_no_answer() -> None:
    rows = [(float(at), 0, 0.1, STICKY, at // 2) for at in range(9000)]
    swept, unswept = new_units(), new_units()
    unswept._sweep = lambda now_s: None  # type: ignore[method-assign]

    assert np.array_equal(resolve(swept, *rows).position, resolve(unswept, *rows).position)
    assert len(swept.open_draws) < len(unswept.open_draws)


@pytest.mark.parametrize("word", ["zzz", "", "none", "None", "Request", "0.0"])
def test_an_unknown_word_is_refused_not_taken_for_a_sticky_key(word: str) -> None:
    with pytest.raises(EvidenceError, match=rf"assigned_by '{word}' is unknown; use request, sticky"):
        kind_of(word)


@pytest.mark.slow
def test_weights_that_change_with_every_row_cost_no_search() -> None:
    units, rows = new_units(), 20_000
    weights = np.linspace(0.1, 0.5, rows)
    units.intervals = Unsearchable()
    arms = (np.arange(rows) % 7 == 0).astype(int)

    resolve(units, *zip(range(rows), arms, weights, [STICKY] * rows, range(rows), strict=True))

    assert len(units.intervals) == rows
    assert units.intervals[units.interval_of[7]] == (0.0, weights[7], weights[7])


def test_an_interval_is_stored_once_even_after_a_restart() -> None:
    units = new_units()
    resolve(units, (0, 0, 0.1, STICKY, 7), (1, 0, 0.1, STICKY, 8))
    again = new_units()
    again.book, again.intervals = units.book, list(units.intervals)

    resolve(again, (2, 0, 0.1, STICKY, 9))

    assert again.intervals == [(0.1, 1.0, 0.1)]


def test_open_draws_survive_a_restart() -> None:
    units, again = new_units(), new_units()
    resolve(units, (0, 1, 0.1, STICKY, 7), (1, 0, 0.1, STICKY, 8), (2, 1, 0.1, HELD, 7))
    snapshots.read(again, snapshots.write(units, digest="d"), digest="d")
    later = [(3, 1, 0.1, HELD, 7), (4, 0, 0.1, STICKY, 8)]

    expected, drawn = (resolve(u, *later, first_seq=3) for u in (units, again))

    assert drawn.position.tolist() == expected.position.tolist() == [3, 2]
    assert drawn.draw.tolist() == expected.draw.tolist() == [0, 1]


class Unsearchable(list[tuple[float, float, float]]):
    """A list that refuses to be searched from its beginning."""

    def __contains__(self, item: object) -> bool:
        raise AssertionError("searched")

    def index(self, *args: object) -> int:
        raise AssertionError("searched")
