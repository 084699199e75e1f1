"""`history` and `watch` while no controller answers: as with one, from what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.cli.main import run
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.fakes.rollouts import CANARY, STABLE, a_rollout, with_log_line

DIRECT = Identity("direct", Role.ADMIN)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlStore]:
    """A service with a rollout at 10 %, and nobody at the controller's port."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    state = replace(a_rollout(), phase=Phase.STAGE, stage=0, weight_bp=1000)
    state = with_log_line(with_log_line(state, "loading", 2.0), "stage 1 of 2: now 10 %", 3.0)
    version = VersionRow("chat", CANARY, "{}", "{}", 1.0, name="v3", actor="ada", message="ticket 7")
    store.create_rollout(state, request="{}", at_s=1.0, version=version)
    yield store
    store.close()


@pytest.mark.slow
def test_history_without_a_controller_knows_of_a_direct_rollback(
    store: SqlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` did, and `history` told that the routers would return the canary's traffic."""
    store.append_command("r-00000001", CommandKind.ROLLBACK, DIRECT, reason="3 a.m.", at_s=2.0)

    assert run(["history"]) == 4
    err = capsys.readouterr().err
    assert "rollback requested at" in err
    assert "by direct (3 a.m.)" in err
    assert "return its traffic" not in err


@pytest.mark.slow
def test_history_without_a_controller_names_versions_and_people_as_with_one(
    store: SqlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["history", "chat"]) == 4
    err = capsys.readouterr().err
    assert f"{STABLE} -> {CANARY} (v3)" in err
    assert "by ada: ticket 7" in err
    assert "at 10 %; the routers return its traffic to stable within a minute" in err
    assert err.splitlines()[-1].startswith("error: no controller answers")


@pytest.mark.slow
def test_one_rollout_is_shown_with_its_whole_log_without_a_controller(
    store: SqlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["history", "chat", "--rollout", "r-00000001"]) == 4
    err = capsys.readouterr().err
    assert "loading" in err
    assert "stage 1 of 2: now 10 %" in err
    assert "the routers return its traffic to stable within a minute" in err

    assert run(["history", "chat", "--rollout", "r-unknown"]) == 4
    assert "the database has no rollout r-unknown" in capsys.readouterr().err


@pytest.mark.slow
def test_watch_without_a_controller_says_what_the_database_knows(
    store: SqlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch"]) == 4
    err = capsys.readouterr().err
    assert f"rollout r-00000001 in stage, canary {CANARY} at 10 %" in err
