"""Whether a name is free for a new service: what cannot be read is not free."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from controller.errors import Unreachable
from controller.wiring.now_served import serving_now
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


def test_a_table_that_answers_late_is_waited_for() -> None:
    answers = [None, None, a_table("v-2")]

    assert serving_now("chat", lambda _: answers.pop(0), lambda _: (), lambda: ("chat",)) == "v-2"
