"""What people give as a reason or a message: kept where it can be read again, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controller.auth import Role
from controller.cli.main import run
from controller.rollout.observation import CommandKind
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import cluster
from controller.wiring import direct_rollback as direct
from controller.wiring.direct_orders import carry_out_orders, keep_order
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.rollouts import STABLE, a_rollout

SLOW = {"stages": [{"weight": "10%", "duration": "1h"}]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("CANARYCTL_HOME", str(home))
    monkeypatch.delenv("CANARYCTL_API_PORT", raising=False)
    return home


@pytest.fixture
def chat(home: Path, tmp_path: Path) -> Iterator[FakeController]:
    fake = FakeController(home)
    fake.serve()
    write_checkpoint(tmp_path / "v2", seed=7)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(SLOW))
    model = write_checkpoint(tmp_path / "base")
    assert run(["up", "--service", "chat", "--model", str(model), "-m", "first", "--no-wait"]) == 0
    yield fake
    fake.stop()


def first_line(chat: FakeController) -> str:
    rows = chat.store.rollouts("chat")
    return str(json.loads(rows[0].state)["rollout"]["log"][0]["text"])


@pytest.mark.parametrize("source", [["--model", "{tmp}/v2"], ["--twin"]])
def test_the_reasons_of_a_deploy_are_in_its_log(
    chat: FakeController, source: list[str], tmp_path: Path
) -> None:
    """`--reason` and `--allow-unproven` went into a column that nothing shows."""
    options = [
        "--policy",
        str(tmp_path / "p.yaml"),
        "--reason",
        "again",
        "--allow-unproven",
        "a night",
        "-m",
        "t7",
    ]
    given = [argument.format(tmp=tmp_path) for argument in source]

    assert run(["deploy", "chat", *given, *options]) == 0

    line = first_line(chat)
    for text in ("reason: again", "stages may stay unproven: a night", "t7"):
        assert text in line


def test_up_refuses_a_message_that_a_running_service_would_not_keep(
    chat: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["up", "--service", "chat", "--model", str(tmp_path / "base"), "--no-wait"]

    assert run([*again, "-m", "first"]) == 0  # idempotent
    assert run(again) == 0
    assert run([*again, "-m", "second"]) == 3
    assert "chat runs already, so message 'second' would not be kept; leave it out" in capsys.readouterr().err
    assert run([*again, "--name", "blue"]) == 3
    assert "name 'blue' would not be kept" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rollback", "undo --to base"])
def test_a_return_with_nothing_to_do_says_that_its_reason_is_not_kept(
    chat: FakeController, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *more = command.split()

    assert run([name, "chat", *more, "--reason", "bad answers"]) == 0
    err = capsys.readouterr().err
    assert "already serving" in err
    assert "the reason is not kept" in err
    assert run([name, "chat", *more]) == 0
    assert "reason" not in capsys.readouterr().err


def test_the_reason_of_a_direct_rollback_outlives_a_lost_database(home: Path) -> None:
    """The log told of a rollback in the route table, without who, when or why."""
    settings = load_settings()
    orders = keep_order(settings, "r-00000001", "3 a.m.", at_s=7.0)
    keep_order(settings, "r-unknown", "other", at_s=8.0)

    store = SqlStore(settings.database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    carry_out_orders(settings, store)
    carry_out_orders(settings, store)  # once
    commands = store.commands("r-00000001", after_seq=0)
    store.close()

    assert [(one.kind, one.actor, one.role, one.reason, one.at_s) for one in commands] == [
        (CommandKind.ROLLBACK, "direct", Role.ADMIN, "3 a.m.", 7.0)
    ]
    assert orders.exists() is False


def test_a_direct_rollback_keeps_its_order_where_the_store_takes_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "cluster.json").write_text("{}")
    table = direct._Table(direct.Reach.APPLIED, "v-1", "acked", "r-00000001")
    monkeypatch.setattr(cluster, "connect", lambda settings: None)
    monkeypatch.setattr(direct, "_tombstone", lambda service, rollout: table)
    monkeypatch.setattr(direct, "_has_replica", lambda service, version: True)

    assert run(["rollback", "chat", "--direct", "--reason", "3 a.m."]) == 0
    assert "the reason is kept for the next controller's log" in capsys.readouterr().err

    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    carry_out_orders(load_settings(), store)
    assert [one.reason for one in store.commands("r-00000001", after_seq=0)] == ["3 a.m."]
    store.close()


def test_plan_says_that_a_deploy_needs_a_retry(
    chat: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It told three times that the version was rolled back, and not that a deploy would be refused."""
    source = ["chat", "--model", str(tmp_path / "v2"), "--policy", str(tmp_path / "p.yaml")]
    assert run(["deploy", *source]) == 0
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0
    capsys.readouterr()

    assert run(["plan", *source, "--quick"]) == 0
    assert "a deploy is refused without --retry: v-" in capsys.readouterr().out
