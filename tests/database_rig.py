"""Databases for tests: a SQLite file, and a real PostgreSQL server that the tests start and stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serving.loopback import free_ports

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


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new, empty database: SQLite, and in `make test` PostgreSQL too."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty_database()
