"""The controller's process on signals: it finishes its ticks, and the next controller acts at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controller.store.sql import SqlStore
from tests.database_rig import sqlite_url

_CONTROLLER = """
import sys
from pathlib import Path
from controller.settings import Config, Settings
from controller.wiring import controller
from serving.loopback import free_ports
from tests.fakes.controller import FakeController

home = Path(sys.argv[1])
fake = FakeController(home)
controller.build = lambda settings: controller.Controller(fake.store, fake.runner, fake.app)
api, ingress = free_ports(2)
database = f"sqlite:///{home / 'canaryctl.db'}"
config = Config(api_port=api, ingress_port=ingress)
controller.run_controller(Settings(home=home, database_url=database, config=config))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_stopped_controller_releases_its_lease(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _CONTROLLER, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    assert process.stderr is not None
    log = ""
    while "lease acquired" not in log or "controller started" not in log:
        line = process.stderr.readline()
        assert line, log
        log += line

    process.send_signal(number)
    _, rest = process.communicate(timeout=30.0)

    assert (process.returncode, "controller stopped" in rest) == (0, True)
    store = SqlStore(sqlite_url(tmp_path / "canaryctl.db"))
    next_lease = store.acquire_lease("next", ttl_s=5.0)
    store.close()
    assert next_lease is not None
