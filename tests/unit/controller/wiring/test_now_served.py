"""Whether a name is free for a new service: what cannot be read is not free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from controller.errors import Unreachable
from controller.wiring import now_served
from controller.wiring.now_served import Served, read_tables, serving_now
from serving.fleet.types import VersionStatus
from serving.messages import SplitStatus


def a_table(stable: str | None) -> SplitStatus:
    return SplitStatus(1, 1, "", stable, None, 0, applied=True, how="acknowledged")


def a_version(phase: str) -> VersionStatus:
    return VersionStatus("v-1", phase, 1, 0, None, (), None, 0.0)  # type: ignore[arg-type]


def no_answer() -> Sequence[str]:
    raise RuntimeError("Ray does not answer")


def asked(
    table: SplitStatus | None,
    versions: Sequence[VersionStatus] | None,
    tables: Callable[[], Sequence[str]] = tuple,
) -> str | None:
    return serving_now("chat", lambda _: table, lambda _: versions, tables, wait_s=0.0)


def test_what_the_table_names_or_the_fleet_has_is_served() -> None:
    assert asked(a_table("v-2"), ()) == "v-2"
    assert asked(a_table("v-2"), None) == "v-2"
    assert asked(None, (a_version("ready"),)) == "v-1"
    assert asked(a_table(None), (a_version("loading"),)) == "v-1"


def test_a_name_without_table_and_versions_is_free() -> None:
    assert asked(None, ()) is None
    assert asked(a_table(None), (a_version("gone"),)) is None


@pytest.mark.parametrize(
    ("table", "versions", "tables", "who"),
    [
        (None, (), lambda: ("chat",), "the route table of chat"),
        (None, (), no_answer, "the route table of chat"),
        (None, None, tuple, "the fleet"),
        (a_table(None), None, tuple, "the fleet"),
    ],
    ids=["table is silent", "Ray is silent", "fleet is silent", "fleet is silent, table empty"],
)
def test_what_cannot_be_read_is_not_free(
    table: SplitStatus | None,
    versions: Sequence[VersionStatus] | None,
    tables: Callable[[], Sequence[str]],
    who: str,
) -> None:
    with pytest.raises(
        Unreachable, match=f"{who} does not answer, so it is not known whether chat is served"
    ):
        asked(table, versions, tables)


@pytest.mark.slow
def test_a_table_that_answers_late_is_waited_for() -> None:
    answers = [None, None, a_table("v-2")]

    assert serving_now("chat", lambda _: answers.pop(0), lambda _: (), lambda: ("chat",)) == "v-2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wait_s", "expected"),
    [(20.0, (Served("chat", a_table("v-1")),)), (0.0, None)],
    ids=["patient", "at once"],
)
def test_tables_are_asked_again_until_all_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_s: float, expected: object
) -> None:
    """On a busy host `up` after a crash said that the tables do not answer, after one question."""
    (tmp_path / "cluster").touch()
    settings: Any = type("S", (), {"cluster_path": tmp_path / "cluster"})
    answers = iter([None, (Served("chat", None),), (Served("chat", a_table("v-1")),)])
    monkeypatch.setattr(now_served, "_read_once", lambda settings, service: next(answers))

    assert read_tables(settings, None, wait_s=wait_s) == expected


def test_without_a_cluster_no_table_is_waited_for(tmp_path: Path) -> None:
    settings: Any = type("S", (), {"cluster_path": tmp_path / "cluster"})

    assert read_tables(settings, None, wait_s=60.0) is None
