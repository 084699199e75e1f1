"""The key of a rollout's units: random, never with an engine, and gone when it is destroyed."""

from __future__ import annotations

import itertools
import json

import pytest

from serving.credentials import ControlSecret, DataSecret, UnitKey
from serving.fleet.types import Launch
from serving.messages import Arm, Replica, RouteTable
from serving.router.assignment.assignment import unit_key_of, unit_of
from serving.table.orders import Split, StaleFencingToken, UnitKeyInUse
from serving.table.route_table import TableCore
from serving.table.unit_keys import KEYS_LIMIT, UnitKeys

NOW_S = 10.0
SECRET = "root-of-the-service"


def table_with(rollout: str = "r-1", *, weight_bp: int = 500) -> TableCore:
    core = TableCore("chat", epoch=1, now_s=NOW_S)
    core.open(SECRET, token=5)
    core.set_replicas(Arm("v-1", (Replica("http://s"),)))
    core.set_replicas(Arm("v-2", (Replica("http://c"),)))
    set_split(core, rollout, weight_bp)
    return core


def set_split(core: TableCore, rollout: str, weight_bp: int) -> None:
    canary = "v-2" if weight_bp else None
    core.set_split(Split(rollout, "salt", "v-1", canary, weight_bp, 1), token=5, now_s=NOW_S)


def unit(table: RouteTable, user: str = "alice") -> str:
    return unit_of(unit_key_of(table), table.rollout, user)


def test_a_unit_is_the_same_at_every_router_through_a_rollout_and_another_in_the_next() -> None:
    core = table_with()
    first = unit(core.table())
    set_split(core, "r-1", 2000)
    raised = unit(core.table())
    set_split(core, "r-2", 500)
    other = unit(core.table())
    set_split(core, "r-1", 0)

    assert first == raised == unit(core.table())
    assert first != other


def test_what_an_engine_holds_computes_no_unit() -> None:
    """Two services of one secret and one rollout have nothing in common; the launch holds no key."""
    one, other = table_with().table(), table_with().table()
    held = [SECRET, DataSecret.of(SECRET).text, ControlSecret.of(SECRET).text, ""]
    launch = Launch("chat", "v-2", SECRET, model_dir="/m").to_json()

    assert unit(one) != unit(other)
    assert unit(one) not in [unit_of(key, "r-1", "alice") for key in held]
    assert one.unit_key is not None
    assert one.unit_key.text not in launch
    assert len(bytes.fromhex(one.unit_key.text)) == 32


def test_after_it_is_destroyed_nothing_computes_a_unit_of_the_rollout_again() -> None:
    core = table_with()
    recorded = unit(core.table())
    set_split(core, "r-1", 0)
    change = core.publication

    assert core.destroy_unit_key("r-1", token=5)

    stored = json.dumps(core.to_store())
    set_split(core, "r-1", 500)
    later = unit(core.table())
    restarted = TableCore("chat", epoch=2, now_s=NOW_S, stored=json.loads(stored))
    restarted.set_split(Split("r-1", "salt", "v-1", None, 0, 1), token=5, now_s=NOW_S)
    assert core.publication > change  # routers are told
    assert recorded not in {later, unit(restarted.table())}
    for length, text in itertools.product((64,), (stored, json.dumps(restarted.to_store()))):
        keys = [word for word in text.replace('"', " ").replace(",", " ").split() if len(word) == length]
        assert recorded not in [unit_of(key, "r-1", "alice") for key in keys]
    assert not core.destroy_unit_key("unknown", token=5)


def test_the_key_of_a_running_rollout_is_kept() -> None:
    core = table_with()
    with pytest.raises(UnitKeyInUse, match="rollout r-1 has canary v-2 in the table; end it first"):
        core.destroy_unit_key("r-1", token=5)

    before = unit(core.table())
    with pytest.raises(StaleFencingToken):
        core.destroy_unit_key("r-0", token=4)
    assert unit(core.table()) == before


def test_keys_survive_a_restart_and_the_oldest_is_destroyed_at_the_limit() -> None:
    core = table_with()
    stored = json.loads(json.dumps(core.to_store()))
    restarted = TableCore("chat", epoch=2, now_s=NOW_S, stored=stored)
    restarted.set_split(Split("r-1", "salt", "v-1", "v-2", 500, 1), token=5, now_s=NOW_S)
    keys = UnitKeys()
    for index in range(KEYS_LIMIT + 1):
        keys.of(f"r-{index}")

    assert unit(restarted.table()) == unit(core.table())
    assert "r-0" not in keys.to_store()
    assert len(keys.to_store()) == KEYS_LIMIT


def test_no_key_is_in_a_text_of_a_table() -> None:
    table = table_with().table()

    assert table.unit_key is not None
    assert table.unit_key.text not in repr(table)
    assert repr(UnitKey("k")) == "UnitKey()"


def test_a_table_that_names_no_key_gets_a_random_one_of_the_router_process() -> None:
    table = RouteTable("chat", 1, 1, 1, "file-s", "s", 0, None, None)

    assert unit(table) == unit(table)
    assert unit(table) not in [unit_of(key, "file-s", "alice") for key in ("", "s")]
