"""A database URL that cannot be parsed: bad input, in one line without its password."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.cli.main import run
from controller.errors import BadInput
from controller.store.database import Database
from controller.store.database_url import parsed_url
from controller.store.sqlite_files import sqlite_file

URLS = {
    "a password that is not encoded": "postgresql+psycopg://u:pw@part:TAIL@host/db",
    "a port of several": "postgresql+psycopg://u:TAIL@h1:5432,host:54x2/db",
    "a port": "postgresql+psycopg://u:TAIL@host:54x2/db",
    "no URL": "TAIL",
    # PostgREST/postgrest #2658 and others: the rest of the password was shown as the host's name.
    "a password with a plain @": "postgresql+psycopg://u:pw@TAIL@host/db",
    "an @ in front": "postgresql+psycopg://u:@TAIL@host:5432/db",
    "an @ and a slash": "postgresql+psycopg://u:pw@TA/TAIL@host/db",
    "an @ and a question mark": "postgresql+psycopg://u:pw@TA?TAIL=x@host/db",
    "an @ before several hosts": "postgresql+psycopg://u:pw@TAIL@h1:5432,h2:5432/db",
    "a user with a slash": "postgresql+psycopg://u/x:TAIL@host/db",
    "a user of the options": "postgresql://db:5432/c?user=me@corp&password=TAIL",
    "an option right after the host": "postgresql+psycopg://host?user=u&password=pw@TAIL",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_no_part_of_the_url_is_shown(url: str) -> None:
    with pytest.raises(BadInput, match=r"use sqlite:///FILE or postgresql") as caught:
        parsed_url(url)

    assert [part for part in ("TAIL", "54x2") if part in str(caught.value)] == []
    assert caught.value.__suppress_context__  # nor in a traceback's first part
    assert sqlite_file(url) is None


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("postgresql+psycopg://u:p%40ss@h1:5432,h2:5433/db", ("h1,h2", "5432,5433")),
        ("postgresql+psycopg://u@h1,h2:5433/db?sslmode=require", ("h1,h2", "5432,5433")),
        ("postgresql+psycopg://[::1]:5432,[::2]:5432/db", ("::1,::2", "5432,5432")),
        ("postgresql+psycopg://u@/db?host=h1:5432&host=h2:5433", ("h1,h2", "5432,5433")),
    ],
)
def test_several_hosts_are_named_as_for_psql(url: str, asked: tuple[str, str]) -> None:
    parsed = parsed_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)

    assert (arguments["host"], str(arguments["port"])) == asked
    assert arguments["dbname"] == "db"
    assert arguments.get("sslmode") == ("require" if "sslmode" in url else None)
    assert arguments.get("password") == ("p@ss" if "p%40ss" in url else None)
    assert parsed_url(parsed.render_as_string(hide_password=False)) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u@corp:p%40ss@host:5432/d%40b",  # Azure's form of a user
        "postgresql+psycopg://u@host/db?application_name=a@b",
        "sqlite:////var/lib/u@host/a:b@c.db",
    ],
)
def test_an_at_that_is_of_no_password_stays(url: str) -> None:
    assert parsed_url(url) == sa.make_url(url)


@pytest.mark.parametrize("option", ["pgbouncer=true", "statement_cache_mode=describe"])
def test_an_option_of_another_client_is_named(option: str) -> None:
    """It was told as tables of another release."""
    with pytest.raises(BadInput) as caught:
        Database(f"postgresql+psycopg://u:TAIL@127.0.0.1:1/db?sslmode=require&{option}")

    name = option.partition("=")[0]
    what = "the database URL has an option that PostgreSQL does not know"
    assert str(caught.value) == f"{what}: {name}; leave it out"


@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize("command", [["backup", "copy.db"], ["rollback", "--direct"], ["status"]])
def test_a_command_ends_with_2_or_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    output: str,
) -> None:
    """The rest of a password with @ and : was printed in a traceback, exit 1."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")
    monkeypatch.setenv("CANARYCTL_DATABASE_URL", URLS["a password that is not encoded"])

    code = run([*command, "-o", output])

    shown = "".join(capsys.readouterr())
    assert code == (2 if command[0] == "backup" else 4)
    assert "TAIL" not in shown
    assert "Traceback" not in shown
