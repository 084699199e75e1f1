"""Properties of table files: whatever is written in one is a table, or one line that says what is wrong."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.access import digest_of
from serving.messages import FULL_BP, RouteTable
from serving.router.standalone.table_reader import TableFileError, read_tables

SECRET = "sk-do-not-show-this"
GOOD: dict[str, Any] = {
    "service": "chat",
    "stable": {"url": "http://127.0.0.1:8001"},
    "canary": {"url": "http://127.0.0.1:8002", "model": "m", "version": "v"},
    "weight_bp": 500,
    "salt": "s",
    "keys": [
        {"name": "a", "sha256": digest_of("k"), "audiences": ["staff"], "categories": ["c"], "force": True}
    ],
    "keys_required": True,
    "audience_bp": {"staff": 10_000},
    "category_bp": {"c": 1},
    "trust": {"audience_header": "x-a", "category_header": "x-c", "from": ["10.0.0.0/8"]},
    "affinity": {"cookie": True},
    "burst_cap": 5,
    "late_commit": "stream",
}
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 20_000)
    | st.floats()
    | st.text(max_size=8)
    | st.just(SECRET)
    | st.sampled_from(["10.0.0.1/8", "http://u:p@h", "authorization", "..", "staff", "a b", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested lists and mappings."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(one for key, item in inner for one in places(item, (*path, key)))]


@st.composite
def files(draw: st.DrawFn) -> object:
    """A good file with up to two values replaced, removed or added; alone or among several services."""
    data: Any = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(places(data)))
        if not path:
            continue
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            del holder[path[-1]]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = draw(values)
        else:
            holder[path[-1]] = draw(values)
    if draw(st.booleans()):
        return data
    shared: dict[str, Any] = {"keys": []} if draw(st.booleans()) else {}
    return {"services": draw(st.lists(st.just(data) | values, max_size=2)), **shared}


@given(data=files() | values)
@settings(max_examples=250, deadline=None)
@pytest.mark.slow
def test_any_file_is_tables_or_one_line(data: object) -> None:
    tables, error = read(data)

    assert "\n" not in error
    assert "sha256" not in error or SECRET not in error
    for table in tables:
        assert 0 <= table.weight_bp <= FULL_BP
        assert table.stable is not None
        assert table.stable.replicas


def read(data: object) -> tuple[list[RouteTable], str]:
    """The tables in a file with these values, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(yaml.safe_dump(data, allow_unicode=True))
        try:
            return list(read_tables(path, change=1).values()), ""
        except TableFileError as exc:
            return [], str(exc)
