"""Contract of the fleet clients, in memory and on Ray. The Ray runs are marked `integration`.

The versions are an endpoint that answers (a plain HTTP server), one that does not, and a missing checkpoint:
all phases of a version without an engine. Engines are in tests/integration.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.actor_names import judge_service
from serving.fleet.types import FleetClient, Launch, VersionStatus
from serving.table.orders import StaleFencingToken
from tests.fakes.fleet_memory import MemoryFleet

DEAD = "http://127.0.0.1:9"


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@dataclass
class Rig:
    fleet: FleetClient
    service: str
    url: str
    token: Callable[[], int]  # not older than any before

    def launch(self, version: str = "v-1", **changes: object) -> Launch:
        values: dict[str, object] = {"url": self.url, "service": self.service, "version": version}
        return Launch(**{"secret": "s", **values, **changes})  # type: ignore[arg-type]

    def broken(self, version: str = "v-bad") -> Launch:
        return self.launch(version, url=None, model_dir="/no/such/checkpoint")

    def ensure(self, launch: Launch) -> None:
        self.fleet.ensure(launch, token=self.token())

    def status(self, version: str = "v-1", service: str | None = None) -> VersionStatus | None:
        statuses = self.fleet.observe(service or self.service)
        assert statuses is not None
        return {one.version: one for one in statuses}.get(version)

    def until(self, phase: str, version: str = "v-1", service: str | None = None) -> VersionStatus:
        deadline_s = time.time() + 60
        while (status := self.status(version, service)) is None or status.phase != phase:
            assert time.time() < deadline_s, status
            time.sleep(0.05)
        return status


@pytest.fixture(params=["memory", pytest.param("ray", marks=pytest.mark.integration)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    service = f"f{uuid.uuid4().hex[:8]}"
    url = f"http://127.0.0.1:{server.server_address[1]}"
    if request.param == "memory":
        memory = MemoryFleet(time.time)
        memory.unreachable.add(DEAD)
        one = Rig(memory, service, url, lambda: 5)
    else:
        one = Rig(request.getfixturevalue("fleet"), service, url, request.getfixturevalue("token"))
    yield one
    for name in (service, judge_service(service)):
        for status in one.fleet.observe(name) or ():
            one.fleet.stop(name, status.version, token=one.token())
    server.shutdown()


def test_an_unknown_service_has_no_versions(rig: Rig) -> None:
    assert rig.fleet.observe("nobody") == ()


def test_an_endpoint_that_answers_becomes_ready(rig: Rig) -> None:
    rig.ensure(rig.launch())

    status = rig.until("ready")
    assert (status.urls, status.ready_replicas, status.external) == ((rig.url,), 1, True)


def test_an_endpoint_that_does_not_answer_stays_loading_with_its_error(rig: Rig) -> None:
    rig.ensure(rig.launch(url=DEAD))

    deadline_s = time.time() + 20
    while (status := rig.status()) is None or status.last_error is None:
        assert time.time() < deadline_s
        time.sleep(0.05)
    assert status.phase == "loading"
    assert status.last_error.startswith(f"{DEAD} does not answer")


def test_a_second_ensure_changes_nothing(rig: Rig) -> None:
    rig.ensure(rig.launch())
    before = rig.until("ready")

    rig.ensure(rig.launch())

    assert rig.status() == before


def test_ensure_makes_a_drained_version_ready_again(rig: Rig) -> None:
    rig.ensure(rig.launch())
    rig.until("ready")
    rig.fleet.drain(rig.service, "v-1", token=rig.token())
    rig.until("draining")

    rig.ensure(rig.launch())

    assert rig.until("ready").urls == (rig.url,)


def test_a_stopped_version_is_gone_and_stop_is_idempotent(rig: Rig) -> None:
    rig.ensure(rig.launch())
    rig.until("ready")
    rig.fleet.stop(rig.service, "v-1", token=rig.token())

    status = rig.until("gone")
    assert (status.urls, status.memory_bytes) == ((), 0)
    rig.fleet.stop(rig.service, "v-1", token=rig.token())
    assert rig.until("gone") == status


def test_a_missing_checkpoint_fails_with_one_line_and_other_versions_stay_ready(rig: Rig) -> None:
    rig.ensure(rig.launch())
    rig.until("ready")

    rig.ensure(rig.broken())

    error = rig.until("failed", "v-bad").last_error
    assert error == ("no checkpoint at /no/such/checkpoint: not a directory; give the folder of config.json")
    assert rig.until("ready").urls == (rig.url,)


def test_a_failed_version_stays_failed_until_it_is_stopped(rig: Rig) -> None:
    rig.ensure(rig.broken())
    rig.until("failed", "v-bad")
    rig.ensure(rig.broken())
    assert rig.until("failed", "v-bad").phase == "failed"

    rig.fleet.stop(rig.service, "v-bad", token=rig.token())

    assert rig.until("gone", "v-bad").memory_bytes == 0


@pytest.mark.parametrize("command", ["drain", "cancel", "stop"])
def test_a_command_for_an_unknown_version_does_nothing(rig: Rig, command: str) -> None:
    getattr(rig.fleet, command)(rig.service, "v-none", token=rig.token())

    assert rig.status("v-none") is None


def test_an_older_token_is_refused(rig: Rig) -> None:
    rig.ensure(rig.launch())

    with pytest.raises(StaleFencingToken):
        rig.fleet.stop(rig.service, "v-1", token=rig.token() - 1)

    assert rig.until("ready").phase == "ready"


def test_a_judge_is_loaded_and_stopped_under_a_name_of_its_own(rig: Rig) -> None:
    """Without a route table: neither its load nor its end waits for one."""
    judge = judge_service(rig.service)
    rig.ensure(rig.launch())
    rig.ensure(rig.launch("v-judge", service=judge))

    assert rig.until("ready", "v-judge", judge).urls == (rig.url,)
    assert rig.status("v-judge") is None
    assert rig.until("ready").urls == (rig.url,)

    rig.fleet.stop(judge, "v-judge", token=rig.token())

    assert rig.until("gone", "v-judge", judge).urls == ()
    assert rig.until("ready").urls == (rig.url,)
