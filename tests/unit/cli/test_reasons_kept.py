"""What people give as a reason or a message: kept where it can be read again, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from controller.auth import Role
from controller.cli.main import run
from controller.errors import Unreachable
from controller.rollout.observation import CommandKind
from controller.runtime.newest_database import is_newest
from controller.settings import load_settings
from controller.store.lineage import own_mark
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import cluster
from controller.wiring import direct_rollback as direct
from controller.wiring.direct_orders import Order, carry_out_orders, keep_order
from serving.messages import DatabaseMark, SplitStatus
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.rollouts import STABLE, a_rollout
from tests.fakes.served import at_home, serving_chat

SLOW = {"stages": [{"weight": "10%", "duration": "1h"}]}


def newest(service: str) -> bool:
    return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return at_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def chat(home: Path, tmp_path: Path) -> Iterator[FakeController]:
    write_checkpoint(tmp_path / "v2", seed=7)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(SLOW))
    with serving_chat(home, write_checkpoint(tmp_path / "base"), "-m", "first") as fake:
        yield fake


def first_line(chat: FakeController) -> str:
    rows = chat.store.rollouts("chat")
    return str(json.loads(rows[0].state)["rollout"]["log"][0]["text"])


@pytest.mark.slow
@pytest.mark.sample(1)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.sample(1)
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
    orders = keep_order(settings, Order("chat", "r-00000001", "3 a.m.", 7.0))
    keep_order(settings, Order("", "r-unknown", "other", 8.0))

    store = SqlStore(settings.database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    carry_out_orders(settings, store, newest)
    carry_out_orders(settings, store, newest)  # once
    commands = store.commands("r-00000001", after_seq=0)
    store.close()

    assert [(one.kind, one.actor, one.role, one.reason, one.at_s) for one in commands] == [
        (CommandKind.ROLLBACK, "direct", Role.ADMIN, "3 a.m.", 7.0)
    ]
    assert orders.exists() is False


def test_who_asked_for_a_direct_rollback_is_told_as_of_any_other(home: Path) -> None:
    """It stood in the reason, `3 a.m. (by alice)`, beside an actor `direct`."""
    settings = load_settings()
    keep_order(settings, Order("chat", "r-00000001", "3 a.m.", 7.0, "alice"))

    store = SqlStore(settings.database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    carry_out_orders(settings, store, newest)
    [command] = store.commands("r-00000001", after_seq=0)
    store.close()

    assert (command.actor, command.reason) == ("alice via direct", "3 a.m.")


def test_an_order_waits_for_the_newest_database(home: Path) -> None:
    """A controller on an older copy, which never had the rollout, dropped it."""
    settings = load_settings()
    order = keep_order(settings, Order("chat", "r-00000001", "3 a.m.", 7.0))
    with closing(SqlStore(settings.database_url)) as store:
        carry_out_orders(settings, store, lambda service: service != "chat")
        assert order.exists()

        carry_out_orders(settings, store, newest)
        assert not order.exists()


@pytest.mark.slow
def test_an_order_that_cannot_be_read_for_a_moment_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed as malformed, and the rollback with it."""
    settings = load_settings()
    order = keep_order(settings, Order("chat", "r-00000001", "3 a.m.", 7.0))

    def refuse(path: Path) -> None:
        raise OSError(24, "Too many open files")

    with closing(SqlStore(settings.database_url)) as store, monkeypatch.context() as patch:
        for name in ("read_bytes", "read_text"):
            patch.setattr(Path, name, refuse)
        with pytest.raises(Unreachable, match="cannot be read: Too many open files"):
            carry_out_orders(settings, store, newest)

    assert order.exists()


A_MARK = DatabaseMark(7, "another", 9)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("mark", "tables", "expected"),
    [
        (A_MARK, ["chat"], False),
        ("own", ["chat"], True),
        ("none", ["chat"], True),
        (None, ["chat"], None),  # the table does not answer
        (None, [], True),
    ],
)
def test_a_database_is_the_newest_by_the_mark_in_the_services_table(
    home: Path, mark: DatabaseMark | str | None, tables: list[str], expected: bool | None
) -> None:
    with closing(SqlStore(load_settings().database_url)) as store:
        found = {"none": None, "own": own_mark(store.database, "chat")}.get(str(mark), mark)
        table = SplitStatus(1, 1, "", STABLE, None, 0, True, "acked", mark=found)  # type: ignore[arg-type]

        known = is_newest(
            store.database,
            "chat",
            lambda name: table if mark is not None else None,
            lambda: tables,
        )

    assert known is expected


def test_an_order_that_cannot_be_carried_out_holds_no_other_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    (home / "direct" / "r-00000000.json").mkdir(parents=True)
    keep_order(settings, Order("chat", "r-0", "x", 1.0)).write_text("[" * 100_000)
    kept = keep_order(settings, Order("chat", "r-00000001", "3 a.m.", 7.0))
    store = SqlStore(settings.database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    unlink = Path.unlink

    def stays(path: Path, missing_ok: bool = False) -> None:
        if path == kept:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", stays)
    for _ in range(2):
        with pytest.raises(Unreachable, match=r"r-00000000\.json, an order .*remove it"):
            carry_out_orders(settings, store, newest)
    monkeypatch.undo()
    asked = [one.reason for one in store.commands("r-00000001", after_seq=0)]
    store.close()

    assert asked == ["3 a.m."]
    assert sorted(path.name for path in kept.parent.iterdir()) == ["r-00000000.json", "r-00000001.json"]


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
    carry_out_orders(load_settings(), store, newest)
    assert [one.reason for one in store.commands("r-00000001", after_seq=0)] == ["3 a.m."]
    store.close()


@pytest.mark.slow
def test_plan_says_that_a_deploy_needs_a_retry(
    chat: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It told three times that the version was rolled back, and not that a deploy would be refused."""
    source = ["chat", "--model", str(tmp_path / "v2"), "--policy", str(tmp_path / "p.yaml")]
    assert run(["deploy", *source]) == 0
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0
    capsys.readouterr()

    assert run(["plan", *source, "--quick"]) == 3  # as the deploy
    out, err = capsys.readouterr()
    assert "a deploy is refused without --retry: v-" in out
    assert err.startswith("deploy refuses it: v-")
    assert err.endswith("or give --retry\n")
