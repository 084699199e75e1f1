"""Databases for tests: a SQLite file, and a real PostgreSQL server that the tests start and stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from controller.rollout.serialization import state_to_json
from controller.store.sql import SqlStore
from serving.loopback import free_ports
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

# A server that loses its data with its folder need not wait for the disk.
FAST = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


def binary(name: str) -> Path | None:
    """PostgreSQL's program of this name, from PATH or where Debian keeps it (the newest); None: missing."""
    if found := shutil.which(name):
        return Path(found)
    folders = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    return max(folders, key=lambda path: float(path.parent.parent.name), default=None)


class PostgresServer:
    """A server on a free port of 127.0.0.1, with its files in a folder of its own."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        # Not pytest's folder: root's is closed to the user that the server must run as.
        self.folder = Path(tempfile.mkdtemp(prefix="canaryctl-postgres-"))
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._data = self.folder / "data"
        self._run(
            "initdb", "-D", str(self._data), "-U", "canaryctl", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} {FAST}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", log, "-w", "-t", "30", "start")

    def stop(self) -> None:
        """Stop the server, ending all connections."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While this lasts, the server's processes stand still; its host still takes packets."""
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                process.resume()

    def close(self) -> None:
        """Stop the server and delete its files."""
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """URL of the server's one database."""
        return f"postgresql+psycopg://canaryctl@127.0.0.1:{self.port}/postgres"

    def empty_database(self) -> str:
        """URL of the database, after everything in it was deleted and all its connections were ended.

        Not a database for each test: its 300 files take longer to delete than the test to run.
        """
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with engine.connect() as connection:
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {others}"))
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        engine.dispose()
        return self.url

    def _run(self, program: str, *arguments: str) -> None:
        path = binary(program)
        assert path is not None
        subprocess.run(
            [str(path), *arguments],
            check=True,
            cwd=self.folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            # Not pipes: the server inherits them, and reading to their end would wait for it to stop.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    if binary("initdb") is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgresServer()
    yield server
    server.close()


@cache
def _migrated_file() -> bytes:
    """A SQLite database with today's tables and nothing in them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        SqlStore(f"sqlite:///{path}").close()
        return path.read_bytes()


def sqlite_url(path: Path) -> str:
    """URL of a SQLite database at `path`; a new one is a copy, in a tenth of the migrations' time."""
    if not path.exists():
        path.write_bytes(_migrated_file())
    return f"sqlite:///{path}"


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)]


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database with nothing stored in it: SQLite, and in `make test` PostgreSQL too."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "state.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty_database()


@pytest.fixture(params=DATABASES)
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty_database()


# The tables of the first two schemas, as the releases before Alembic made them.
OLD_TABLES = (
    "CREATE TABLE canaryctl_meta (name VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL)",
    "CREATE TABLE services (name VARCHAR NOT NULL PRIMARY KEY, spec TEXT NOT NULL, stable VARCHAR NOT NULL, "
    "secret VARCHAR NOT NULL, created_at_s FLOAT NOT NULL, removing BOOLEAN NOT NULL)",
    "CREATE TABLE versions (service VARCHAR NOT NULL, id VARCHAR NOT NULL, spec TEXT NOT NULL, "
    "fingerprint TEXT NOT NULL, created_at_s FLOAT NOT NULL, PRIMARY KEY (service, id))",
    "CREATE TABLE rollouts (id VARCHAR NOT NULL PRIMARY KEY, service VARCHAR NOT NULL, "
    "version INTEGER NOT NULL, state TEXT NOT NULL, pending TEXT NOT NULL, request TEXT NOT NULL, "
    "evidence {bytes}, log_count INTEGER NOT NULL, is_final BOOLEAN NOT NULL, "
    "created_at_s FLOAT NOT NULL, ended_at_s FLOAT{canary})",
    "CREATE UNIQUE INDEX one_rollout_a_service ON rollouts (service) WHERE NOT is_final",
    "CREATE INDEX rollouts_of_a_service ON rollouts (service, created_at_s)",
    "CREATE TABLE leases (name VARCHAR NOT NULL PRIMARY KEY, holder VARCHAR NOT NULL, "
    "token INTEGER NOT NULL, expires_at_s FLOAT NOT NULL)",
    "CREATE TABLE tokens (digest VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, role VARCHAR NOT NULL, "
    "created_at_s FLOAT NOT NULL)",
)


def make_old_database(engine: sa.Engine, schema: int) -> None:
    """A database of schema 1 or 2 with a service, a lease and two rollouts: the clock was set back between
    them, and the second runs."""
    column_types = {
        "bytes": "BYTEA" if engine.dialect.name == "postgresql" else "BLOB",
        "canary": ", canary VARCHAR DEFAULT '' NOT NULL" if schema == 2 else "",
    }
    with engine.begin() as db:
        for text in OLD_TABLES:
            db.execute(sa.text(text.format(**column_types)))
        if schema == 2:
            db.execute(
                sa.text("CREATE INDEX attempts_of_a_version ON rollouts (service, canary, created_at_s)")
            )
        db.execute(sa.text(f"INSERT INTO canaryctl_meta VALUES ('schema', '{schema}')"))
        db.execute(sa.text("INSERT INTO leases VALUES ('controller', 'host/1/2', 7, 1900000000.0)"))
        db.execute(
            sa.text("INSERT INTO services VALUES ('chat', '{}', :stable, 's', 1.0, :no)"),
            {"stable": STABLE, "no": False},
        )
        for id, is_final, at_s in (("r-00000002", True, 9000.0), ("r-00000001", False, 5000.0)):
            values = {"id": id, "final": is_final, "at": at_s, "state": state_to_json(a_rollout(id))}
            columns = "id, service, version, state, pending, request, log_count, is_final, created_at_s"
            row = ":id, 'chat', 0, :state, '[]', '{}', 1, :final, :at"
            if schema == 2:
                columns, row = f"{columns}, canary", f"{row}, '{CANARY}'"
            db.execute(sa.text(f"INSERT INTO rollouts ({columns}) VALUES ({row})"), values)
