"""A table whose state was lost or whose clock is behind; routers and replicas that know a later one."""

from __future__ import annotations

import pytest

from serving.messages import Arm, Replica, RouteTable
from serving.router.router import RouterCore
from serving.table.orders import Poll, Split
from serving.table.route_table import TableCore

LOST: dict[str, object] = {}  # what a restarted table finds after its state was lost


class Restarted:
    """A router that obeys a table of epoch 100, and a table that begins anew at a lower one."""

    def __init__(self, *, epoch: int = 50) -> None:
        self.now_s = 1000.0
        self.router = RouterCore("chat", router="r1")
        old = self.table_core(100)
        for weight_bp in (500, 1000):
            old.set_split(self.split(weight_bp), token=1, now_s=self.now_s)
        self.router.on_table(old.table(), sent_s=self.now_s)
        self.table = self.table_core(epoch)

    def table_core(self, epoch: int) -> TableCore:
        core = TableCore("chat", epoch=epoch, now_s=self.now_s, stored=LOST)
        core.open("secret", token=1)
        core.set_replicas(Arm("v-1", (Replica("http://stable"),)))
        core.set_replicas(Arm("v-2", (Replica("http://canary"),)))
        return core

    def split(self, weight_bp: int) -> Split:
        return Split("r-1", "salt", "v-1", "v-2", weight_bp, 1)

    def poll(self) -> RouteTable | None:
        """One whole poll of the router; what it was answered."""
        poll = Poll("r1", self.router.applied)
        self.table.poll(poll, now_s=self.now_s)
        answer = self.table.table() if self.table.has_news(poll) else None
        self.router.on_table(answer, sent_s=self.now_s)
        return answer


@pytest.mark.parametrize("epoch", [50, 100], ids=["clock behind", "same second"])
def test_a_router_of_a_later_table_gets_the_new_one_at_its_first_poll(epoch: int) -> None:
    rig = Restarted(epoch=epoch)
    rig.table.set_split(rig.split(0), token=1, now_s=rig.now_s)
    rig.poll()

    assert rig.table.publication[0] == 101
    assert rig.router.applied == rig.table.publication
    assert rig.router.table is not None
    assert rig.router.table.canary is None


def test_a_router_that_obeys_a_later_table_has_not_acknowledged_a_lower_one() -> None:
    rig = Restarted()
    rig.table.set_split(rig.split(0), token=1, now_s=rig.now_s)
    rig.now_s += 5.0  # no lease of an unknown router is left
    before = rig.table.status(now_s=rig.now_s)
    rig.table.poll(Poll("r1", rig.router.applied), now_s=rig.now_s)
    seen = rig.table.status(now_s=rig.now_s)
    rig.poll()  # gets the table
    rig.poll()  # acknowledges it

    assert (before.applied, seen.applied) == (True, False)
    assert rig.table.status(now_s=rig.now_s).applied


def test_a_table_without_state_waits_for_one_lease_of_routers_that_it_does_not_know() -> None:
    rig = Restarted()
    early = rig.table.set_split(rig.split(0), token=1, now_s=rig.now_s)
    rig.now_s += 1.21

    assert not early.applied
    assert rig.table.status(now_s=rig.now_s).how == "lease"


def test_a_router_does_not_obey_a_table_that_went_back_and_gets_no_lease_from_it() -> None:
    rig = Restarted()
    applied = rig.router.applied
    rig.router.on_table(rig.table.table(), sent_s=rig.now_s + 5.0)

    assert rig.router.applied == applied
    assert not rig.router.has_lease(rig.now_s + 5.0)
    assert rig.router.has_lease(rig.now_s + 0.5)


def test_pending_fences_are_raised_above_the_epoch_that_a_router_still_sends() -> None:
    rig = Restarted()
    rig.table.set_split(rig.split(500), token=1, now_s=rig.now_s)
    rig.table.set_split(rig.split(0), token=1, now_s=rig.now_s)
    rig.table.poll(Poll("r1", rig.router.applied), now_s=rig.now_s)

    assert [order.epoch for order in rig.table.pending_fences()] == [101]


def test_the_fence_of_a_replica_shows_that_requests_of_this_table_would_all_be_refused() -> None:
    rig = Restarted()
    rig.table.set_split(rig.split(500), token=1, now_s=rig.now_s)
    rig.table.rise_above((100, 7), now_s=rig.now_s)
    table = rig.table.table()

    assert (table.epoch, table.revision) > (100, 7)
    assert table.canary is not None


def test_what_is_not_later_changes_nothing() -> None:
    rig = Restarted()
    before = rig.table.publication
    for seen in ((0, 0), (49, 10_000), before):
        rig.table.rise_above(seen, now_s=rig.now_s)

    assert rig.table.publication == before


def test_a_change_of_load_alone_is_published_and_not_waited_for() -> None:
    rig = Restarted()
    rig.table.set_split(rig.split(0), token=1, now_s=rig.now_s)
    rig.now_s += 2.0
    rig.poll()
    rig.poll()
    change = rig.table.publication
    rig.table.set_replicas(Arm("v-1", (Replica("http://stable", in_flight=9),)))
    loaded = rig.table.are_replicas_applied("v-1", now_s=rig.now_s)
    rig.table.set_replicas(Arm("v-1", (Replica("http://other"),)))

    assert rig.table.publication > change
    assert (loaded, rig.table.are_replicas_applied("v-1", now_s=rig.now_s)) == (True, False)
