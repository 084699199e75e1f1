"""Contract of the traffic clients, in memory and on Ray. The Ray runs are marked `integration`.

`wait_s` advances the fake's clock; on Ray it sleeps.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from serving.access import Access, ClientKey, ClientRules, digest_of
from serving.messages import DatabaseMark, Replica, ScoreRecord, SplitStatus
from serving.table.orders import BadSplit, Split, StaleFencingToken, UnitKeyInUse
from tests.fakes.traffic_memory import MemoryTraffic


@dataclass
class Rig:
    traffic: MemoryTraffic  # or RayTraffic, which has the same methods
    wait_s: Callable[[float], None]
    service: str

    def split(self, weight_bp: int, *, token: int = 1, canary: str | None = "v-2", rollout: str = "r-1"):  # type: ignore[no-untyped-def]
        return self.traffic.set_split(
            self.service, Split(rollout, "salt", "v-1", canary, weight_bp, 3), token=token
        )


@pytest.fixture(params=["memory", pytest.param("ray", marks=pytest.mark.integration)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    service = f"c{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        clock = [time.time()]

        def jump(duration_s: float) -> None:
            clock[0] += duration_s

        one = Rig(MemoryTraffic(lambda: clock[0]), jump, service)
    else:
        from serving.table.traffic_ray import RayTraffic

        request.getfixturevalue("ray_cluster")
        one = Rig(RayTraffic(timeout_s=5.0), time.sleep, service)  # type: ignore[arg-type]
    one.traffic.open(service, "s3cret", token=1)
    one.wait_s(1.3)  # a table without stored state waits for a lease of routers that it may not know
    yield one
    one.traffic.close(service, token=99)


def test_a_mark_replaces_only_the_one_that_was_read(rig: Rig) -> None:
    """Of two controllers with a database each, one is told that the other was first."""
    first, second, other = DatabaseMark(1, "a", 5), DatabaseMark(1, "a", 6), DatabaseMark(1, "b", 9)

    assert rig.traffic.mark(rig.service, first, instead_of=None)
    assert rig.traffic.mark(rig.service, second, instead_of=first)
    assert not rig.traffic.mark(rig.service, other, instead_of=first)
    status = rig.traffic.observe(rig.service)
    assert status is not None
    assert status.mark == second
    assert not rig.traffic.mark("nobody", other, instead_of=None)


def test_a_split_without_routers_is_applied_at_once(rig: Rig) -> None:
    status = rig.split(500)

    assert isinstance(status, SplitStatus)
    assert (status.canary, status.weight_bp, status.stable, status.applied) == ("v-2", 500, "v-1", True)


def test_the_clients_of_a_service_are_published_with_the_key_of_its_tokens(rig: Rig) -> None:
    access = Access({digest_of("sk-1"): ClientKey("staff", ("staff",))}, audience_bp={"staff": 5000})
    answers = [
        rig.traffic.set_clients(rig.service, ClientRules(access, burst_cap=cap), token=1)
        for cap in (5.0, 6.0)
    ]
    rig.split(500)
    table = rig.traffic.table(rig.service)

    assert answers == [True, True]
    assert table is not None
    assert (table.access, table.burst_cap) == (access, 6.0)
    assert table.affinity is not None
    assert table.generation.startswith(f"{table.epoch}.")


def test_clients_of_an_older_controller_are_refused(rig: Rig) -> None:
    rig.split(500, token=5)
    with pytest.raises(StaleFencingToken):
        rig.traffic.set_clients(rig.service, ClientRules(), token=4)


def test_the_clients_of_no_service_cannot_be_set(rig: Rig) -> None:
    assert rig.traffic.set_clients("nowhere", ClientRules(), token=1) is False


def test_the_same_split_again_makes_no_new_revision(rig: Rig) -> None:
    first, second, third = rig.split(500), rig.split(500), rig.split(501)

    assert first.revision == second.revision < third.revision


def test_an_older_token_is_refused(rig: Rig) -> None:
    rig.split(500, token=4)

    with pytest.raises(StaleFencingToken, match="token 3 is older than 4"):
        rig.split(900, token=3)
    with pytest.raises(StaleFencingToken):
        rig.traffic.heartbeat(rig.service, 3)
    assert rig.traffic.observe(rig.service).weight_bp == 500  # type: ignore[union-attr]


def test_an_invalid_split_is_refused_and_changes_nothing(rig: Rig) -> None:
    rig.split(500)

    with pytest.raises(BadSplit, match="weight 10001 bp is outside"):
        rig.split(10_001)
    assert rig.traffic.observe(rig.service).weight_bp == 500  # type: ignore[union-attr]


def test_opening_again_keeps_the_split(rig: Rig) -> None:
    rig.split(500)
    rig.traffic.open(rig.service, "s3cret", token=1)

    assert rig.traffic.observe(rig.service).weight_bp == 500  # type: ignore[union-attr]


def test_a_tombstone_needs_no_token_and_is_permanent(rig: Rig) -> None:
    rig.split(500, token=9)
    status = rig.traffic.tombstone(rig.service, "r-1")
    again = rig.split(900, token=10)

    assert status is not None
    assert (status.canary, status.tombstoned) == (None, ("r-1",))
    assert (again.canary, again.weight_bp) == (None, 0)
    assert rig.split(100, token=10, rollout="r-2").weight_bp == 100


def test_replicas_are_added_to_and_removed_from_the_table(rig: Rig) -> None:
    rig.split(500)
    rig.traffic.set_replicas(rig.service, "v-2", [Replica("http://127.0.0.1:1/")])
    there = rig.traffic.table(rig.service)
    rig.traffic.set_replicas(rig.service, "v-2", [])
    gone = rig.traffic.table(rig.service)

    assert there is not None
    assert gone is not None
    assert there.canary is not None
    assert there.canary.replicas == (Replica("http://127.0.0.1:1"),)
    assert gone.canary is not None
    assert gone.canary.replicas == ()
    assert rig.traffic.are_replicas_applied(rig.service, "v-2")


def test_an_unanswered_fence_does_not_keep_the_split_pending(rig: Rig) -> None:
    rig.traffic.set_replicas(rig.service, "v-2", [Replica("http://127.0.0.1:9")])
    rig.split(500)
    rig.split(0, canary=None)
    rig.wait_s(0.5)
    status = rig.traffic.observe(rig.service)

    assert status is not None
    assert (status.applied, status.how) == (True, "acknowledged")


def test_the_key_of_a_rollouts_units_is_destroyed_when_its_canary_is_out_of_the_table(rig: Rig) -> None:
    rig.split(500)
    with pytest.raises(UnitKeyInUse, match="rollout r-1 has canary v-2 in the table; end it first"):
        rig.traffic.destroy_unit_key(rig.service, "r-1", token=1)
    rig.split(0, canary=None)
    before = rig.traffic.table(rig.service)
    done = [rig.traffic.destroy_unit_key(rig.service, name, token=1) for name in ("r-1", "r-unknown")]
    after = rig.traffic.table(rig.service)

    assert before is not None
    assert after is not None
    assert done == [True, False]
    assert before.unit_key is not None
    assert before.unit_key != after.unit_key
    assert rig.traffic.destroy_unit_key("nobody", "r-1", token=1) is None
    with pytest.raises(StaleFencingToken):
        rig.traffic.destroy_unit_key(rig.service, "r-1", token=0)


def test_scores_are_read_in_order_with_rising_sequence_numbers(rig: Rig) -> None:
    scores = [ScoreRecord(0, f"req-{index}", "quality", 0.5, 100.0) for index in range(5)]
    rig.traffic.append_scores(rig.service, scores[:2])
    rig.traffic.append_scores(rig.service, scores[2:])
    first = rig.traffic.read_records(rig.service, 0, 3)
    assert first is not None
    second = rig.traffic.read_records(rig.service, first.next_seq, 3)
    assert second is not None
    events = [*first.events, *second.events]

    assert [event.id for event in events if isinstance(event, ScoreRecord)] == [s.id for s in scores]
    assert [event.seq for event in events] == list(range(events[0].seq, events[0].seq + 5))
    assert (first.lost, second.lost) == ((), ())


def test_an_unknown_service_gives_none_or_false(rig: Rig) -> None:
    assert rig.traffic.observe("nobody") is None
    assert rig.traffic.read_records("nobody", 0) is None
    assert rig.traffic.heartbeat("nobody", 1) is False
    assert rig.traffic.append_scores("nobody", []) is False


def test_a_closed_service_is_unknown(rig: Rig) -> None:
    rig.split(500)
    rig.traffic.close(rig.service, token=1)

    assert rig.traffic.observe(rig.service) is None


def test_an_older_token_neither_opens_nor_closes_a_service(rig: Rig) -> None:
    rig.split(500, token=2)

    with pytest.raises(StaleFencingToken):
        rig.traffic.open(rig.service, "another", token=1)
    with pytest.raises(StaleFencingToken):
        rig.traffic.close(rig.service, token=1)

    assert rig.traffic.observe(rig.service).weight_bp == 500  # type: ignore[union-attr]


def test_a_service_that_was_opened_anew_is_not_closed_by_an_older_token(rig: Rig) -> None:
    rig.traffic.close(rig.service, token=2)
    rig.traffic.open(rig.service, "s3cret", token=2)

    with pytest.raises(StaleFencingToken):
        rig.traffic.close(rig.service, token=1)

    assert rig.traffic.observe(rig.service) is not None
