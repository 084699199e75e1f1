"""A shell that names the wrong state folder is told where canaryctl runs on this host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.errors import UnknownService, Unreachable
from controller.settings import Settings
from controller.wiring import cluster, elsewhere
from controller.wiring.direct_rollback import roll_back_directly
from controller.wiring.elsewhere import ProcessSeen, no_service
from serving.cluster_ray import OWNER_ENV
from tests.database_rig import sqlite_url

REAL_TABLE = elsewhere.process_table
PYTHON = ("/usr/bin/python3", "-m", "controller.cli")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=sqlite_url(tmp_path / "canaryctl.db"))


def seen(*words: str, environment: dict[str, str] | None = None, user: str = "ops") -> ProcessSeen:
    return ProcessSeen(12, user, words, environment, None if environment is None else "/etc/canaryctl")


def on_this_host(monkeypatch: pytest.MonkeyPatch, *processes: ProcessSeen) -> None:
    monkeypatch.setattr(elsewhere, "process_table", lambda: iter(processes))


CONTROLLER = seen(*PYTHON, "controller", environment={"CANARYCTL_HOME": "/var/lib/one"})
DEFAULT = seen(*PYTHON, "controller", environment={"HOME": "/home/ops"})
CLUSTER = seen("raylet", environment={OWNER_ENV: "/var/lib/two"})
FOREIGN = seen(*PYTHON, "controller")
FOREIGN_CLUSTER = seen("gcs_server", "--session-dir=/tmp/canaryctl-ab12/r/session", user="root")
ROUTER = seen("python3", "/usr/local/bin/canaryctl", "router", "--table", "table.yaml", environment={})
OTHERS = [
    seen("python3", "/usr/local/bin/canaryctl", "status", environment={"CANARYCTL_HOME": "/var/lib/no"}),
    seen("python3", "/usr/local/bin/canaryctl", "router", "--table=t.yaml", "--check", environment={}),
    seen("vim", "controller", environment={"CANARYCTL_HOME": "/var/lib/no"}),
    seen("raylet", environment={OWNER_ENV: ""}),
]


@pytest.mark.parametrize(
    ("process", "told"),
    [
        (CONTROLLER, "canaryctl runs on this host for /var/lib/one: set CANARYCTL_HOME=/var/lib/one"),
        (DEFAULT, "canaryctl runs on this host for /home/ops/.canaryctl: set CANARYCTL_HOME="),
        (CLUSTER, "canaryctl runs on this host for /var/lib/two: set CANARYCTL_HOME=/var/lib/two"),
        (FOREIGN, "canaryctl runs on this host for user ops, process 12, whose state folder only that user"),
        (FOREIGN_CLUSTER, "canaryctl runs on this host for user root, process 12, whose state folder"),
        (
            ROUTER,
            "canaryctl router of /etc/canaryctl/table.yaml (process 12) runs on this host",
        ),
    ],
)
def test_what_runs_for_another_folder_is_named_in_place_of_start_one(
    process: ProcessSeen, told: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_this_host(monkeypatch, process)

    line = no_service(settings)

    assert line.startswith(f"no service yet in the state folder {settings.home} (CANARYCTL_HOME); {told}")
    assert "start one" not in line


def test_this_folders_own_and_other_programs_are_not_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = seen(*PYTHON, "controller", environment={"CANARYCTL_HOME": f"{settings.home}/."})
    on_this_host(monkeypatch, own, *OTHERS)

    assert no_service(settings).endswith(
        "(CANARYCTL_HOME); start one: canaryctl up --service NAME --model DIR (an endpoint: "
        "--url URL; a file: --file FILE)"
    )


@pytest.fixture
def started() -> Iterator[None]:
    environment = {**os.environ, OWNER_ENV: "/var/lib/of-a-test"}
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)
    yield
    process.kill()
    process.communicate()


def test_the_process_table_of_the_host_is_read(started: None, settings: Settings) -> None:
    assert Path("/var/lib/of-a-test") in elsewhere.elsewhere(settings, REAL_TABLE()).folders


def test_a_direct_rollback_in_a_folder_of_nothing_names_the_one_that_serves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that a database which never was is gone, and to begin anew."""
    on_this_host(monkeypatch, CONTROLLER)

    for service in ("chat", None):
        with pytest.raises(UnknownService, match="canaryctl runs on this host for /var/lib/one"):
            roll_back_directly(settings, service, reason="")


def test_a_cluster_that_runs_for_another_folder_is_not_said_to_be_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_this_host(monkeypatch, CLUSTER)

    with pytest.raises(Unreachable, match=r"no Ray cluster runs for the state .* for /var/lib/two: set"):
        cluster.connect(settings)
