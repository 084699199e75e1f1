"""Direct rollback: the table before the store, and every fault of the store or of Ray as one line."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.errors import UnknownService, Unreachable
from controller.rollout.observation import CommandKind
from controller.rollout.state import Departure, DepartureStep, Phase
from controller.settings import Settings, load_settings
from controller.store.lineage import own_mark
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import cluster, direct_rollback, takedown
from controller.wiring.direct_rollback import roll_back_directly
from serving.messages import DatabaseMark
from serving.table import traffic_ray
from tests.database_rig import PostgresServer, make_old_database, sqlite_url
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

UNDO_REQUEST = json.dumps({"undo": CANARY})


class Split:
    def __init__(
        self,
        rollout: str,
        weight_bp: int,
        applied: bool,
        *,
        stable: str | None = STABLE,
        canary: str | None = CANARY,
    ) -> None:
        self.rollout, self.weight_bp, self.applied, self.how = rollout, weight_bp, applied, "acknowledged"
        self.stable, self.canary = stable, canary if weight_bp else None
        self.silenced = False
        self.tombstoned: tuple[str, ...] = ()
        self.mark: DatabaseMark | None = None


class Table:
    """Stands for the client of the route table: one service, `chat`, whose canary has weight."""

    def __init__(self) -> None:
        self.split: Split | None = Split("r-00000001", 1000, applied=True)
        self.calls: list[str] = []
        self.acknowledges = True

    def observe(self, service: str) -> Split | None:
        return self.split

    def tombstone(self, service: str, rollout: str) -> Split | None:
        self.calls.append(rollout)
        before = self.split
        self.split = Split(
            rollout, 0, self.acknowledges, stable=before.stable if before is not None else None
        )
        self.split.mark = before.mark if before is not None else None
        return self.split


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()
    monkeypatch.setattr(cluster, "connect", lambda settings: None)
    monkeypatch.setattr(traffic_ray, "RayTraffic", lambda timeout_s: table)
    monkeypatch.setattr(direct_rollback, "ACK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(direct_rollback, "_has_replica", lambda service, version: True)
    return table


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """State folder with one service and one running rollout."""
    settings = Settings(home=tmp_path, database_url=sqlite_url(tmp_path / "state.db"))
    store = SqlStore(settings.database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    store.close()
    return settings


def test_beside_a_controller_that_runs_none_is_to_be_started(table: Table, settings: Settings) -> None:
    result = roll_back_directly(settings, "chat", reason="", is_led=lambda: True)

    assert (result.problem, result.next_step) == (
        None,
        "next: the controller that runs completes it and frees the memory: canaryctl status",
    )


@pytest.mark.parametrize("is_led", [True, False])
@pytest.mark.parametrize("has_cluster", [True, False])
def test_without_the_table_it_is_said_who_moves_the_traffic(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch, has_cluster: bool, is_led: bool
) -> None:
    """The last line said that traffic has not moved, when a controller moved it 3 s later."""

    def unreachable(_settings: Settings) -> None:
        raise Unreachable("no cluster")

    table.split = None
    if not has_cluster:
        monkeypatch.setattr(cluster, "connect", unreachable)

    problem = roll_back_directly(settings, "chat", reason="", is_led=lambda: is_led).problem

    if is_led:
        assert problem == (
            "the route table could not be reached from here, but a controller runs and ends r-00000001: it "
            "moves the traffic; see that it did: canaryctl watch chat"
        )
    else:
        assert problem == (
            "traffic has not moved: the route table could not be reached; run this where Ray runs"
        )


def test_a_command_that_was_not_stored_is_not_the_controllers(table: Table, settings: Settings) -> None:
    table.split = None
    full(settings.home / "state.db")

    problem = roll_back_directly(settings, "chat", reason="", is_led=lambda: True).problem

    assert problem is not None
    assert problem.startswith("traffic has not moved: the route table could not be reached")


def test_table_and_store_get_the_rollback(table: Table, settings: Settings) -> None:
    result = roll_back_directly(settings, "chat", reason="3 a.m.")

    assert (table.calls, result.problem is None, result.failed) == (["r-00000001"], True, ())
    assert result.succeeded == (
        "route table: r-00000001 is ended for good and gets no traffic (acknowledged)",
        "store: rollback of r-00000001 requested; the next controller completes it",
    )
    assert result.next_step == "next: canaryctl up, whose controller completes it and frees the memory"


def test_a_canary_that_has_no_weight_yet_is_tombstoned_by_the_stores_word(
    table: Table, settings: Settings
) -> None:
    table.split = Split("", 0, applied=True)

    result = roll_back_directly(settings, None, reason="")

    assert (table.calls, result.problem is None) == (["r-00000001"], True)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_canary_that_silence_withdrew_is_tombstoned_though_nothing_can_be_stored(
    table: Table, settings: Settings, is_named: bool
) -> None:
    """A full disk: the controller cannot commit, its silence takes the weight, and it would give it back."""
    full(settings.home / "state.db")
    table.split = Split("r-00000001" if is_named else "", 0, applied=True)
    table.split.silenced = is_named

    result = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem) == (["r-00000001"], None)
    assert ["disk is full" in line for line in result.failed] == [True]


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_stable_version_without_a_ready_replica_is_said(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """Traffic has moved as asked, but nobody is answered: a success alone would hide an outage."""
    monkeypatch.setattr(direct_rollback, "_has_replica", lambda service, version: False)
    if is_broken:
        full(settings.home / "state.db")

    result = roll_back_directly(settings, "chat", reason="")

    assert table.calls == ["r-00000001"]
    assert result.problem is not None
    assert f"all requests go to {STABLE}, but none of its replicas is ready" in result.problem


def test_a_fleet_that_does_not_answer_changes_nothing(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(service: str, version: str) -> bool:
        raise RuntimeError("no fleet")

    monkeypatch.setattr(direct_rollback, "_has_replica", fails)

    assert roll_back_directly(settings, "chat", reason="").problem is None


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE canaryctl_schema_version SET version_num = '99'")


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE rollouts")


def no_database(path: Path) -> None:
    path.write_text("no database" * 1000)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def full(path: Path) -> None:
    """As on a full disk: the file cannot grow. Every word of the command needs a page."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON asks BEGIN SELECT RAISE(FAIL, 'disk is full'); END")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (newer, "schema 99"),
        (other_tables, "no such table: rollouts; restore the database"),
        (no_database, "file is not a database; restore the database"),
        (a_folder, "is a folder"),
        (full, "disk is full; free disk space"),
    ],
)
def test_a_broken_store_does_not_keep_the_traffic_from_moving(
    table: Table, settings: Settings, damage: Callable[[Path], None], words: str
) -> None:
    damage(settings.home / "state.db")

    result = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem is None, len(result.failed)) == (["r-00000001"], True, 1)
    assert result.failed[0].startswith("store: ")
    assert words in result.failed[0]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"sqlite:////srv/\xff.db"), Path.mkdir])
def test_a_broken_memory_of_the_database_does_not_keep_the_traffic_from_moving(
    table: Table, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """It ended the command before the route table was asked, with a traceback or with bad input."""
    damage(tmp_path / "database.url")
    settings = load_settings({"CANARYCTL_HOME": str(tmp_path)}, needs_files=False)

    result = roll_back_directly(settings, "chat", reason="3 a.m.")

    assert (table.calls, result.problem) == (["r-00000001"], None)
    (line,) = result.failed
    assert line.startswith(f"store: not reached ({tmp_path}/database.url cannot be read (")


@pytest.mark.slow
def test_a_locked_database_does_not_keep_the_traffic_from_moving(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.store.database.BUSY_TIMEOUT_MS", 50)
    writer = sqlite3.connect(settings.home / "state.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    result = roll_back_directly(settings, "chat", reason="")
    writer.close()

    assert (table.calls, result.problem is None) == (["r-00000001"], True)
    assert "database is locked; another process keeps it busy; try again" in result.failed[0]


@pytest.mark.slow
def test_an_unreachable_server_is_named_without_its_password(table: Table, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, database_url="postgresql+psycopg://ann:s3cret@127.0.0.1:9/x?sslpassword=hidden"
    )

    result = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem is None) == (["r-00000001"], True)
    assert "ann:***@127.0.0.1:9/x" in result.failed[0]
    assert not {word for word in ("s3cret", "hidden") if word in result.failed[0] + repr(settings)}


@pytest.mark.integration
def test_a_stopped_postgresql_does_not_keep_the_traffic_from_moving(
    table: Table, tmp_path: Path, postgres: PostgresServer
) -> None:
    settings = Settings(home=tmp_path, database_url=postgres.empty_database())
    SqlStore(settings.database_url).close()
    postgres.stop()

    result = roll_back_directly(settings, "chat", reason="")
    postgres.start()

    assert (table.calls, result.problem is None) == (["r-00000001"], True)
    assert "does not answer: connection failed" in result.failed[0]


@pytest.mark.slow
@pytest.mark.parametrize("schema", [1, 2])
def test_a_database_of_an_earlier_release_gets_its_command(table: Table, tmp_path: Path, schema: int) -> None:
    settings = Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path / 'old.db'}")
    engine = sa.create_engine(settings.database_url)
    make_old_database(engine, schema)
    engine.dispose()

    result = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem is None, result.failed) == (["r-00000001"], True, ())
    assert result.succeeded[1].startswith("store: rollback of r-00000001 requested")


def test_a_state_of_another_release_still_gets_its_command(table: Table, settings: Settings) -> None:
    with sqlite3.connect(settings.home / "state.db") as db:
        db.execute("""UPDATE rollouts SET state = '{"format": 99}'""")

    result = roll_back_directly(settings, "chat", reason="")

    assert (result.problem is None, result.failed) == (True, ())


def test_a_bug_in_ray_does_not_keep_the_command_from_the_store(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: Settings) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cluster, "connect", broken)

    result = roll_back_directly(settings, "chat", reason="")

    assert result.failed == ("route table: not reached (ZeroDivisionError: a bug)",)
    store = SqlStore(settings.database_url)
    kinds = [command.kind for command in store.commands("r-00000001", after_seq=0)]
    store.close()
    assert (kinds, result.problem is None) == ([CommandKind.ROLLBACK], False)


UNSURE = {
    "published": "r-00000001 is ended for good in the route table of chat, but not every router has "
    "acknowledged it, so some users may still get its canary",
    "sent": "the end of r-00000001 was sent to the route table of chat, but not answered, so it may not be "
    "there",
}


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize("store", ["works", "full", "gone"])
@pytest.mark.parametrize("reach", UNSURE)
def test_a_tombstone_that_is_not_confirmed_says_what_is_known_and_keeps_the_reason(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch, reach: str, store: str
) -> None:
    """It said "not reached" of a canary that had lost its traffic for good, or "in the table" of what nobody
    knew, and who had ended it and why was in no log."""
    table.acknowledges = False
    if reach == "sent":
        monkeypatch.setattr(table, "tombstone", lambda service, rollout: None)
    if store == "full":
        full(settings.home / "state.db")
    if store == "gone":
        no_database(settings.home / "state.db")

    result = roll_back_directly(settings, "chat", reason="3 a.m.")

    assert result.problem == f"{UNSURE[reach]}; run this again"
    assert result.failed[0] == f"route table: {UNSURE[reach]}"
    kept = [json.loads(path.read_text())["reason"] for path in settings.home.glob("direct/*.json")]
    assert kept == ([] if store == "works" else ["3 a.m."])


@pytest.mark.parametrize("is_older", [False, True])
def test_the_reason_is_kept_where_the_store_is_an_older_copy(
    table: Table, settings: Settings, is_older: bool
) -> None:
    """The command is lost with the copy when the newest database is restored."""
    store = SqlStore(settings.database_url)
    assert table.split is not None
    table.split.mark = DatabaseMark(7, "another", 9) if is_older else own_mark(store.database, "chat")

    result = roll_back_directly(settings, "chat", reason="3 a.m.")

    asked = [one.reason for one in store.commands("r-00000001", after_seq=0)]
    store.close()
    kept = [json.loads(path.read_text()) for path in settings.home.glob("direct/*.json")]
    orders = [(one["service"], one["rollout"], one["reason"]) for one in kept]
    order = ("chat", "r-00000001", "3 a.m.")
    assert (asked, orders) == (([], [order]) if is_older else (["3 a.m."], []))
    assert result.problem is None


def test_an_older_copy_says_nothing_of_what_users_get(table: Table, settings: Settings) -> None:
    """It said "traffic has not moved" of a canary that it had taken off, and led to the copy's stable."""
    table.split = Split("r-2", 1000, applied=True, stable="v-newer")
    table.split.mark = DatabaseMark(7, "another", 9)

    result = roll_back_directly(settings, "chat", reason="")
    again = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem) == (["r-2"], None)
    assert result.failed == ("store: not used, the database is an older copy, or a second one",)
    assert str(result.next_step).startswith("next: restore the newest database, then: canaryctl up")
    assert "no canary gets any, and the database is an older copy" in str(again.problem)


@pytest.mark.slow
def test_a_tombstone_that_is_not_answered_is_sent_again(
    table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tombstone = table.tombstone
    monkeypatch.setattr(
        table,
        "tombstone",
        lambda *given: tombstone(*given) if len(table.calls) > 1 else table.calls.append("-"),
    )

    result = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem) == (["-", "-", "r-00000001"], None)


def test_without_a_running_rollout_stable_serves_already(table: Table, settings: Settings) -> None:
    table.split = Split("", 0, applied=True)
    store = SqlStore(settings.database_url)
    store.commit(replace(a_rollout(), phase=Phase.FAILED), (), expected_version=0, evidence=None)
    store.close()

    result = roll_back_directly(settings, None, reason="")

    assert (table.calls, result.problem is None) == ([], True)
    assert result.succeeded == (f"store: chat: no rollout runs, {STABLE} serves",)


def test_without_a_service_the_message_says_what_to_do(table: Table, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=sqlite_url(tmp_path / "state.db"))

    with pytest.raises(UnknownService, match=r"no service yet in the state folder .*; start one"):
        roll_back_directly(settings, None, reason="")


def test_several_services_are_named(table: Table, settings: Settings) -> None:
    store = SqlStore(settings.database_url)
    store.put_service(ServiceRow("code", "{}", STABLE, "s", 1.0), VersionRow("code", STABLE, "{}", "{}", 1.0))
    store.close()

    with pytest.raises(UnknownService, match="there are 2 services; name one of chat, code"):
        roll_back_directly(settings, None, reason="")


def test_a_service_that_neither_knows_is_refused(table: Table, settings: Settings) -> None:
    table.split = None

    with pytest.raises(UnknownService, match=r"service caht does not exist; there are: chat"):
        roll_back_directly(settings, "caht", reason="")


def test_without_a_name_and_a_store_the_name_is_asked_for(table: Table, settings: Settings) -> None:
    no_database(settings.home / "state.db")

    result = roll_back_directly(settings, None, reason="")

    assert (result.problem is None, result.succeeded) == (False, ())
    assert result.failed[0].endswith("; name the service")


def test_forgetting_the_services_of_a_broken_store_ends_in_one_of_our_errors(settings: Settings) -> None:
    other_tables(settings.home / "state.db")

    with pytest.raises(Unreachable, match="no such table: rollouts"):
        takedown.forget_services(settings)


def test_an_undo_under_way_is_left_alone(table: Table, settings: Settings) -> None:
    """A tombstone would return all traffic to the version that somebody wanted to be rid of."""
    store = SqlStore(settings.database_url)
    stored = store.load("r-00000001")
    assert stored is not None
    ended = replace(stored.state, phase=Phase.ROLLED_BACK)
    store.commit(ended, (), expected_version=stored.version, evidence=None)
    store.create_rollout(a_rollout("u-00000001"), request=UNDO_REQUEST, at_s=2.0)
    table.split = Split("u-00000001", 10_000, applied=True)

    result = roll_back_directly(settings, "chat", reason="3 a.m.")

    assert (table.calls, result.problem is None, result.failed) == ([], True, ())
    assert result.succeeded == ("store: undo u-00000001 is stored; a controller completes it",)
    assert store.commands("u-00000001", after_seq=0) == ()
    store.close()


def test_a_promoted_version_is_not_said_to_be_rolled_back(table: Table, settings: Settings) -> None:
    """The version before must be loaded, and only a controller does that."""
    table.split = Split("", 0, applied=True)
    store = SqlStore(settings.database_url)
    store.put_version(VersionRow("chat", CANARY, "{}", "{}", 1.0))
    departure = Departure(STABLE, CANARY, DepartureStep.UNLOAD, 2.0, 2.0)
    ended = replace(a_rollout(), phase=Phase.SUCCEEDED, departure=departure)
    store.commit(ended, (), expected_version=0, evidence=None)
    store.close()

    result = roll_back_directly(settings, "chat", reason="it rambles")

    assert table.calls == []
    assert result.problem is not None
    assert result.problem.startswith(f"traffic has not moved: chat serves {CANARY}, which was promoted")
    assert result.problem.endswith("start it: canaryctl up, then: canaryctl undo chat")
    beside = roll_back_directly(settings, "chat", reason="it rambles", is_led=lambda: True)
    assert str(beside.problem).endswith("needs a controller; one runs: canaryctl undo chat")


@pytest.mark.slow
@pytest.mark.parametrize("weight_bp", [0, 9_000])
def test_an_undo_that_no_controller_carries_out_is_not_said_to_be_done(
    table: Table, settings: Settings, weight_bp: int
) -> None:
    store = SqlStore(settings.database_url)
    store.commit(replace(a_rollout(), phase=Phase.ROLLED_BACK), (), expected_version=0, evidence=None)
    store.create_rollout(a_rollout("u-00000001"), request="{}", at_s=2.0)
    store.close()
    table.split = Split("u-00000001" if weight_bp else "", weight_bp, applied=True)

    result = roll_back_directly(settings, "chat", reason="")

    assert table.calls == []
    assert result.problem == (
        "traffic has not moved: undo u-00000001 is stored, but needs a controller; start it: canaryctl up, "
        "then: canaryctl watch chat"
    )


def test_an_undo_whose_version_is_the_tables_stable_has_moved_the_traffic(
    table: Table, settings: Settings
) -> None:
    store = SqlStore(settings.database_url)
    store.commit(replace(a_rollout(), phase=Phase.ROLLED_BACK), (), expected_version=0, evidence=None)
    store.create_rollout(a_rollout("u-00000001"), request=UNDO_REQUEST, at_s=2.0)
    store.close()
    table.split = Split("u-00000001", 0, applied=True, stable=CANARY)

    result = roll_back_directly(settings, "chat", reason="")

    assert (table.calls, result.problem) == ([], None)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.UNLOADING, Phase.PROMOTING])
def test_a_rollout_whose_version_is_the_tables_stable_is_not_said_to_be_rolled_back(
    table: Table, settings: Settings, phase: Phase
) -> None:
    """The bake is over and the old version is being unloaded: only a controller restores it."""
    store = SqlStore(settings.database_url)
    departure = Departure(STABLE, CANARY, DepartureStep.DRAIN, 2.0, 2.0)
    unloading = replace(a_rollout(), phase=phase, departure=departure, exposed=True, launched=True)
    store.commit(unloading, (), expected_version=0, evidence=None)
    store.close()
    table.split = Split("r-00000001", 0, applied=True, stable=CANARY)

    result = roll_back_directly(settings, "chat", reason="3 a.m.")

    assert result.problem == (
        f"traffic has not moved: all requests go to {CANARY}, and to restore {STABLE} needs a controller; "
        "start it: canaryctl up, then: canaryctl watch chat"
    )
    assert result.succeeded[-1] == (
        f"route table: r-00000001 is ended for good but {CANARY} has all traffic (acknowledged)"
    )


def test_without_a_canary_and_a_store_nothing_is_said_to_be_done(table: Table, settings: Settings) -> None:
    table.split = Split("", 0, applied=True)
    no_database(settings.home / "state.db")

    result = roll_back_directly(settings, "chat", reason="")

    assert result.problem is not None
    assert "the store could not be read" in result.problem
