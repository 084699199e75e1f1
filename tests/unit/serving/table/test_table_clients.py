"""What a route table publishes beside the split: clients, the generation of tokens, heavy keys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serving.access import Access, ClientKey, ClientRules, TrustedHeaders, digest_of
from serving.messages import Arm, Replica, UnitCounts
from serving.table.orders import BadSplit, Poll, Split, StaleFencingToken
from serving.table.route_table import TableCore

RULES = ClientRules(
    Access(
        {digest_of("sk-1"): ClientKey("staff", ("staff",), ("code",), may_force=True)},
        keys_required=True,
        trusted=TrustedHeaders("x-audience", None, ("10.0.0.0/8",)),
        audience_bp={"staff": 10_000},
        category_bp={"code": 1},
    ),
    cookie=True,
    burst_cap=50.0,
    late_commit="stream",
)


def table_core(*, epoch: int = 1, stored: dict[str, object] | None = None) -> TableCore:
    core = TableCore("chat", epoch=epoch, now_s=1.0, stored=stored)
    core.open("secret", token=1)
    for version in ("v-1", "v-2", "v-3"):
        core.set_replicas(Arm(version, (Replica(f"http://{version}"),)))
    return core


def split(core: TableCore, weight_bp: int, *, rollout: str = "r-1", canary: str = "v-2") -> None:
    core.set_split(Split(rollout, rollout, "v-1", canary, weight_bp, 1), token=1, now_s=1.0)


def test_the_clients_of_a_service_are_published_once() -> None:
    core = table_core()
    before = core.publication
    core.set_clients(RULES, token=1, now_s=1.0)
    first = core.publication
    core.set_clients(RULES, token=1, now_s=2.0)
    table = core.table()

    assert before < first == core.publication
    assert (table.access, table.burst_cap, table.late_commit) == (RULES.access, 50.0, "stream")
    assert table.affinity is not None
    assert table.affinity.cookie


def test_the_clients_survive_a_restart_so_that_required_keys_stay_required() -> None:
    core = table_core()
    core.set_clients(RULES, token=1, now_s=1.0)
    stored = json.loads(json.dumps(core.to_store()))

    after = table_core(epoch=2, stored=stored).table()
    assert (after.access, after.late_commit) == (RULES.access, "stream")
    assert "sk-1" not in json.dumps(stored)


def test_clients_that_an_older_release_stored_are_held_as_by_default() -> None:
    stored = json.loads(json.dumps({**RULES.to_json()}))
    del stored["late_commit"]

    assert ClientRules.from_json(stored) == replace(RULES, late_commit="hold")


def test_a_stale_controller_cannot_change_the_clients() -> None:
    core = table_core()
    core.heartbeat(5, now_s=1.0)
    with pytest.raises(StaleFencingToken):
        core.set_clients(RULES, token=4, now_s=1.0)

    assert core.table().access is None


def test_tokens_are_signed_with_a_key_that_engines_cannot_compute() -> None:
    # Engines hold the service's root secret, and what can be derived from it and from the table's names.
    keys = set()
    for _ in range(2):
        core = table_core()
        split(core, 100)
        table = core.table()
        assert table.affinity is not None
        assert table.unit_key is not None
        assert table.affinity.key.hex() != table.unit_key.text
        assert table.affinity.key.hex() not in repr(table)
        keys.add(table.affinity.key)

    assert len(keys) == 2


def test_an_audience_has_the_larger_weight_of_the_split_and_the_rules() -> None:
    core = table_core()
    core.set_clients(RULES, token=1, now_s=1.0)
    found = []
    for audience_bp, weight_bp in (
        ((("staff", 5), ("beta", 7)), 100),
        ((("beta", 9),), 200),
        ((("beta", 9),), 0),
    ):
        core.set_split(
            Split("r-1", "r-1", "v-1", "v-2", weight_bp, 1, audience_bp=audience_bp), token=1, now_s=1.0
        )
        access = core.table().access
        assert access is not None
        found.append(dict(access.audience_bp))

    assert found == [{"staff": 10_000, "beta": 7}, {"staff": 10_000, "beta": 9}, {"staff": 10_000}]
    assert core.to_store()["clients"]["access"]["audience_bp"] == {"staff": 10_000}


def test_a_service_without_clients_has_no_audiences_whatever_the_split_says() -> None:
    core = table_core()
    core.set_split(Split("r-1", "r-1", "v-1", "v-2", 100, 1, (("staff", 5),)), token=1, now_s=1.0)

    assert core.table().access is None


def test_a_weight_of_an_audience_outside_its_range_changes_nothing() -> None:
    core = table_core()
    before = core.publication
    with pytest.raises(BadSplit, match="weight 10001 bp of audience staff is outside 0-10000"):
        core.set_split(Split("r-1", "r-1", "v-1", "v-2", 100, 1, (("staff", 10_001),)), token=1, now_s=1.0)

    assert core.publication == before


def test_a_raised_weight_keeps_the_generation_and_a_withdrawn_canary_ends_it() -> None:
    core = table_core()
    generations = []
    for weight_bp in (100, 500, 0, 500):
        split(core, weight_bp)
        generations.append(core.table().generation)
    split(core, 500, rollout="r-2")
    generations.append(core.table().generation)

    assert generations[0] == generations[1]
    assert len({generations[0], *generations[2:]}) == 4


def test_a_restart_begins_another_generation() -> None:
    core = table_core()
    split(core, 100)
    before = core.table().generation
    restarted = table_core(epoch=1, stored=core.to_store())
    split(restarted, 100)

    assert restarted.table().generation != before


def test_a_unit_that_is_heavy_over_all_routers_is_published_for_its_rollout() -> None:
    core = table_core()
    split(core, 100)
    change = core.publication
    for router in ("a", "b"):
        core.poll(Poll(router, change, UnitCounts("r-1", 500, {"unit": 60, "other": 4})), now_s=2.0)
    heavy, published = core.table().heavy, core.publication
    split(core, 100, rollout="r-2")

    assert heavy == {"unit"}
    assert published > change
    assert core.table().heavy == frozenset()
