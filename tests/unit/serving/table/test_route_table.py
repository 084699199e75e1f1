"""The route table with an explicit clock and explicit polls of the routers r1 and r2."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from serving.credentials import ControlSecret, DataSecret
from serving.judge_messages import JudgeOrder
from serving.messages import Arm, DatabaseMark, Replica, SplitStatus
from serving.table.orders import BadSplit, Poll, Split, StaleFencingToken
from serving.table.route_table import TableCore

CANARY_URL = "http://canary"
JUDGE = JudgeOrder("http://judge", "m", None, "a1", 2000, "quality", 60)


class Service:
    """A table with stable v-1 and canary v-2, both with replicas, and its clock."""

    def __init__(self, *, silence_s: float | None = 60.0) -> None:
        self.now_s = 1000.0
        self.core = TableCore("chat", epoch=1, now_s=self.now_s, silence_s=silence_s)
        self.core.open("secret", token=0)
        self.core.set_replicas(Arm("v-1", (Replica("http://stable"),)))
        self.core.set_replicas(Arm("v-2", (Replica(CANARY_URL),)))

    def split(
        self, weight_bp: int, canary: str | None = "v-2", *, token: int = 1, **other: str
    ) -> SplitStatus:
        split = Split(
            other.get("rollout", "r-1"), "salt", other.get("stable", "v-1"), canary, weight_bp, stage=1
        )
        return self.core.set_split(split, token=token, now_s=self.now_s)

    def poll(self, router: str, applied: tuple[int, int] | None = None) -> None:
        self.core.poll(Poll(router, applied or self.core.publication), now_s=self.now_s)

    def status(self) -> SplitStatus:
        return self.core.status(now_s=self.now_s)

    def fence(self) -> None:
        for order in self.core.pending_fences():
            self.core.confirm_fence(order, now_s=self.now_s)


@pytest.fixture
def service() -> Service:
    return Service()


def test_a_split_is_applied_when_every_router_with_a_lease_has_acknowledged(service: Service) -> None:
    before = service.core.publication
    service.poll("r1")
    service.poll("r2")
    service.split(500)
    service.poll("r1")
    pending = service.status()
    service.poll("r2")

    assert before < service.core.publication
    assert (pending.applied, pending.how) == (False, "pending")
    assert (service.status().applied, service.status().how) == (True, "acknowledged")


def test_a_fence_that_was_given_up_does_not_count(service: Service) -> None:
    service.split(500)
    old = service.core.publication
    service.poll("r1")
    service.split(0)
    for _ in range(70):  # r1 polls with the old table, which has the canary; the replica never answers
        service.now_s += 0.5
        service.poll("r1", old)

    assert (service.core.pending_fences(), service.status().how) == ((), "pending")
    service.poll("r1")
    assert service.status().applied


def test_a_router_that_stops_polling_is_waited_for_until_lease_and_margin_expire(service: Service) -> None:
    service.poll("r1")
    service.split(500)
    service.now_s += 1.19
    almost = service.status()
    service.now_s += 0.02

    assert not almost.applied
    assert (service.status().applied, service.status().how) == (True, "lease")


def test_a_poll_with_an_old_table_renews_the_lease_so_the_split_stays_pending(service: Service) -> None:
    service.poll("r1")
    old = service.core.publication
    service.split(500)
    for _ in range(5):
        service.now_s += 0.5
        service.poll("r1", old)

    assert not service.status().applied


def test_a_withdrawal_is_applied_as_soon_as_every_replica_is_fenced(service: Service) -> None:
    service.poll("r1")
    service.split(500)
    service.poll("r1")
    withdrawn = service.split(0, None)
    orders = service.core.pending_fences()
    service.fence()

    assert not withdrawn.applied
    assert [(one.url, one.epoch, one.revision) for one in orders] == [
        (CANARY_URL, withdrawn.epoch, withdrawn.revision)
    ]
    assert (service.status().applied, service.status().how) == (True, "fenced")


def test_acknowledgements_alone_suffice_only_after_the_fence_grace(service: Service) -> None:
    service.poll("r1")
    service.split(500)
    service.split(0, None)
    service.poll("r1")
    early = service.status()
    service.now_s += 0.26
    service.poll("r1")

    assert not early.applied
    assert (service.status().applied, service.status().how) == (True, "acknowledged")


def test_every_replica_that_was_ever_published_for_the_canary_is_fenced(service: Service) -> None:
    service.split(500)
    service.core.set_replicas(Arm("v-2", (Replica("http://later"),)))
    service.split(0, None)

    assert {order.url for order in service.core.pending_fences()} == {CANARY_URL, "http://later"}


def test_an_external_canary_has_no_fence(service: Service) -> None:
    service.core.set_replicas(Arm("v-2", (Replica("https://api.example/v1/"),), external=True))
    service.poll("r1")
    service.split(500)
    table = service.core.table()
    service.split(0, None)
    service.poll("r1")

    assert table.canary is not None
    assert table.canary.replicas == (Replica("https://api.example/v1"),)
    assert service.core.pending_fences() == ()
    assert service.status().how == "acknowledged"


def test_a_promoted_canary_is_not_fenced(service: Service) -> None:
    service.split(10_000)
    service.split(0, None, stable="v-2")

    assert service.core.pending_fences() == ()


def test_fences_do_not_suffice_while_routers_lack_a_new_stable(service: Service) -> None:
    service.poll("r1")
    service.split(500)
    service.poll("r1")
    service.core.set_replicas(Arm("v-0", (Replica("http://older"),)))
    service.split(0, None, stable="v-0")
    service.fence()

    assert not service.status().applied


def test_the_same_split_makes_no_new_revision(service: Service) -> None:
    first, second = service.split(500), service.split(500)

    assert (first.revision, first.epoch) == (second.revision, second.epoch)


def test_weight_zero_publishes_a_table_without_a_canary(service: Service) -> None:
    service.split(500)
    service.split(0, "v-2")

    assert service.core.table().canary is None


def test_changed_replicas_are_published_without_a_new_revision(service: Service) -> None:
    service.split(500)
    before = service.core.table()
    service.core.set_replicas(Arm("v-2", (Replica(CANARY_URL), Replica("http://second"))))
    after = service.core.table()

    assert after.revision == before.revision
    assert after.change == before.change + 1


def test_replicas_are_applied_when_every_router_with_a_lease_has_them(service: Service) -> None:
    service.split(500)
    service.poll("r1")
    old = service.core.publication
    service.core.set_replicas(Arm("v-2", ()))
    service.poll("r1", old)
    before = service.core.are_replicas_applied("v-2", now_s=service.now_s)
    service.poll("r1")

    assert not before
    assert service.core.are_replicas_applied("v-2", now_s=service.now_s)


def test_an_older_token_is_refused_and_changes_nothing(service: Service) -> None:
    service.split(500, token=7)
    before = service.core.table()

    with pytest.raises(StaleFencingToken, match=r"token 6 is older than 7"):
        service.split(900, token=6)
    with pytest.raises(StaleFencingToken):
        service.core.heartbeat(6, now_s=service.now_s)
    assert service.core.table() == before


@pytest.mark.parametrize(
    ("weight_bp", "canary", "message"),
    [
        (12_000, "v-2", "weight 12000 bp is outside 0-10000; use basis points"),
        (-1, "v-2", "weight -1 bp is outside"),
        (500, "v-1", "cannot be stable and canary at once"),
        (500, None, "without a canary"),
    ],
)
def test_an_invalid_split_is_refused_with_the_reason(
    service: Service, weight_bp: int, canary: str | None, message: str
) -> None:
    before = service.core.table()

    with pytest.raises(BadSplit, match=message):
        service.split(weight_bp, canary)
    assert service.core.table() == before


def test_a_tombstone_withdraws_the_canary_and_refuses_every_later_weight(service: Service) -> None:
    service.split(500)
    status = service.core.tombstone("r-1", now_s=service.now_s)
    again = service.split(900, token=9)

    assert (status.canary, status.tombstoned) == (None, ("r-1",))
    assert (again.canary, again.weight_bp) == (None, 0)


def test_a_tombstoned_rollout_cannot_promote_but_can_restore_its_initial_stable(service: Service) -> None:
    service.split(500)
    service.split(0, None, stable="v-2")
    service.core.tombstone("r-1", now_s=service.now_s)
    back = service.split(0, None, stable="v-1").stable
    forth = service.split(0, None, stable="v-2").stable

    assert (back, forth) == ("v-1", "v-1")


def test_a_tombstone_does_not_affect_another_rollout(service: Service) -> None:
    service.core.tombstone("r-1", now_s=service.now_s)

    assert service.split(500, rollout="r-2").canary == "v-2"


def test_a_minute_without_a_heartbeat_withdraws_the_canary_and_keeps_stable(service: Service) -> None:
    service.split(500)
    service.now_s += 59
    service.core.heartbeat(1, now_s=service.now_s)
    service.now_s += 59
    kept = service.status()
    service.now_s += 2
    gone = service.status()

    assert (kept.canary, kept.silenced) == ("v-2", False)
    assert (gone.canary, gone.weight_bp, gone.silenced) == (None, 0, True)
    assert service.core.table().stable is not None


def test_a_controller_that_returns_can_set_the_split_again(service: Service) -> None:
    service.split(500)
    service.now_s += 61
    silenced = service.status()
    back = service.split(500)

    assert back.revision > silenced.revision
    assert (back.canary, back.silenced) == ("v-2", False)


def test_without_a_silence_limit_the_canary_stays() -> None:
    service = Service(silence_s=None)
    service.split(500)
    service.now_s += 86_400

    assert service.status().canary == "v-2"


def restarted(service: Service) -> TableCore:
    stored = json.loads(json.dumps(service.core.to_store()))
    return TableCore("chat", epoch=1, now_s=service.now_s, stored=stored)


def test_a_restarted_table_has_no_canary_and_a_higher_epoch(service: Service) -> None:
    service.split(500)
    core = restarted(service)
    table = core.table()

    assert table.epoch > service.core.table().epoch
    assert (table.stable, table.canary) == (service.core.table().stable, None)
    assert table.secret == DataSecret.of("secret")


def test_a_restarted_table_waits_one_lease_for_unknown_routers(service: Service) -> None:
    core = restarted(service)
    early = core.status(now_s=service.now_s + 1.1)
    late = core.status(now_s=service.now_s + 1.3)

    assert (early.applied, late.applied, late.how) == (False, True, "lease")


def test_a_restarted_table_remembers_tombstones_tokens_and_its_mark(service: Service) -> None:
    service.split(500, token=5)
    service.core.tombstone("r-1", now_s=service.now_s)
    service.core.mark(DatabaseMark(5, "a", 7), instead_of=None)
    core = restarted(service)

    with pytest.raises(StaleFencingToken):
        core.heartbeat(4, now_s=service.now_s)
    status = core.status(now_s=service.now_s)
    assert (status.tombstoned, status.mark) == (("r-1",), DatabaseMark(5, "a", 7))


def test_a_router_that_polls_with_the_old_epoch_has_news(service: Service) -> None:
    old = service.core.publication
    core = restarted(service)

    assert core.poll(Poll("r1", old), now_s=service.now_s)


def test_the_text_of_a_table_hides_the_secret(service: Service) -> None:
    shown = repr(service.core.table())

    assert "'secret'" not in shown
    assert DataSecret.of("secret").text not in shown


def test_routers_get_the_data_secret_and_nothing_from_which_the_control_secret_follows(
    service: Service,
) -> None:
    sent = pickle.dumps(service.core.table())

    assert DataSecret.of("secret").text.encode() in sent
    assert ControlSecret.of("secret").text.encode() not in sent
    assert b"\x06secret\x94\x8c\x06secret" not in sent


def test_routers_that_stopped_polling_are_forgotten(service: Service) -> None:
    service.poll("r1")
    service.split(500)
    service.now_s += 3600
    service.status()
    service.now_s += 1
    service.status()

    assert service.core.routers(now_s=service.now_s) == {}


def mirrored(service: Service, mirror_bp: int = 200, weight_bp: int = 0) -> SplitStatus:
    split = Split("r-1", "salt", "v-1", "v-2", weight_bp, 0, mirror_bp=mirror_bp)
    return service.core.set_split(split, token=1, now_s=service.now_s)


def test_a_canary_that_only_gets_copies_is_no_canary_to_routers(service: Service) -> None:
    status = mirrored(service)
    table = service.core.table()

    assert (status.canary, status.weight_bp, status.mirror_bp) == ("v-2", 0, 200)
    assert (table.canary, table.weight_bp) == (None, 0)
    assert (table.mirror, table.mirror_bp) == (Arm("v-2", (Replica(CANARY_URL),)), 200)


def test_new_replicas_of_a_mirrored_canary_reach_the_routers(service: Service) -> None:
    mirrored(service)
    before = service.core.publication
    service.core.set_replicas(Arm("v-2", ()))
    table = service.core.table()

    assert service.core.publication > before
    assert table.mirror == Arm("v-2")


@pytest.mark.parametrize("how", ["split", "tombstone", "silence", "restart"])
def test_what_withdraws_a_canary_ends_the_copies_and_fences_it(service: Service, how: str) -> None:
    mirrored(service)
    core = service.core
    match how:
        case "split":
            mirrored(service, mirror_bp=0)
        case "tombstone":
            core.tombstone("r-1", now_s=service.now_s)
        case "silence":
            service.now_s += 61
            service.status()
        case _:
            core = restarted(service)
    table = core.table()

    assert (table.mirror, table.mirror_bp, table.canary) == (None, 0, None)
    if how != "restart":
        assert [order.url for order in core.pending_fences()] == [CANARY_URL]


def test_a_tombstoned_rollout_gets_no_copies(service: Service) -> None:
    service.core.tombstone("r-1", now_s=service.now_s)
    mirrored(service)

    assert service.core.table().mirror is None


@pytest.mark.parametrize(("canary", "mirror_bp"), [("v-2", 10_001), ("v-2", -1), (None, 200)])
def test_a_bad_share_of_copies_is_refused(service: Service, canary: str | None, mirror_bp: int) -> None:
    with pytest.raises(BadSplit):
        service.core.set_split(
            Split("r-1", "s", "v-1", canary, 0, 0, mirror_bp=mirror_bp), token=1, now_s=1.0
        )


def test_a_refused_token_names_the_one_that_was_seen_on_its_way_out_of_an_actor() -> None:
    refused = pickle.loads(pickle.dumps(StaleFencingToken("token 1 is older than 7", 7)))

    assert (str(refused), refused.newest) == ("token 1 is older than 7", 7)


def _judged(service: Service, order: JudgeOrder | None, canary: str | None, weight_bp: int = 0) -> None:
    split = Split("r-1", "salt", "v-1", canary, weight_bp, 1, judge=order)
    service.core.set_split(split, token=1, now_s=service.now_s)


def test_an_order_for_a_judge_is_published_before_the_first_draw_and_goes_with_the_canary(
    service: Service,
) -> None:
    _judged(service, JUDGE, None)
    before = service.core.table()
    _judged(service, JUDGE, "v-2", 500)
    during = service.core.table()
    service.now_s += 61.0
    service.status()

    assert (before.canary, before.judge) == (None, JUDGE)
    assert during.judge == JUDGE
    assert service.core.table().judge is None


def test_a_tombstoned_rollout_has_its_judge_asked_no_more_and_never_again(service: Service) -> None:
    _judged(service, JUDGE, None)
    service.core.tombstone("r-1", now_s=service.now_s)
    ended = service.core.table().judge
    _judged(service, JUDGE, "v-2", 500)

    assert (ended, service.core.table().judge) == (None, None)


@pytest.mark.parametrize("wrong", [{"share_bp": 0}, {"share_bp": 10_001}, {"per_minute": 0}])
def test_an_order_that_asks_of_nothing_is_refused(service: Service, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadSplit, match="judge: share"):
        _judged(service, replace(JUDGE, **wrong), "v-2", 500)
