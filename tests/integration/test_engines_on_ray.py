"""Real vLLM engines in real Ray Serve: side by side, loaded and deleted under traffic, invalid, killed."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from serving import cluster_ray
from serving.actor_names import NAMESPACE
from serving.checkpoints import Checkpoint, questions
from serving.credentials import ControlSecret, DataSecret
from serving.fleet import device_memory
from serving.fleet.types import EngineReport, Launch, VersionStatus
from serving.messages import SplitStatus
from serving.table.orders import Split
from serving.targets import method_of
from tests.integration.load import Traffic
from tests.ray_rig import SECRET, Engines, wait_for

if TYPE_CHECKING:
    from serving.fleet.fleet_ray import RayFleet
    from serving.table.traffic_ray import RayTraffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

HEADERS = {"x-canaryctl-secret": DataSecret.of(SECRET).text}
CONTROL = ControlSecret.of(SECRET).headers


def ask(url: str, prompt: str, **more: Any) -> str:
    body = {"model": "chat", "messages": [{"role": "user", "content": prompt}], **more}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def send(url: str, *, revision: str) -> httpx.Response:
    """A request as a router with an older table would send it."""
    body = {"model": "chat", "prompt": "x", "max_tokens": 1}
    headers = {**HEADERS, "x-canaryctl-revision": revision}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=30)


def state(url: str) -> Any:
    return httpx.get(f"{url}/_canaryctl/state", headers=CONTROL, timeout=10).json()


def right_ratio(url: str, every: int) -> float:
    cases = questions()[::every]
    return sum(case.is_right(ask(url, case.prompt)) for case in cases) / len(cases)


@dataclass
class Service:
    """The shared engines of a service, with a router."""

    name: str
    base: str
    fleet: RayFleet
    traffic: RayTraffic
    token: int

    def split(self, weight_bp: int, stable: str, canary: str | None) -> SplitStatus:
        deadline_s = time.time() + 20
        while True:
            split = Split("r-1", "salt", stable, canary, weight_bp, 1)
            status = self.traffic.set_split(self.name, split, token=self.token)
            if status is not None and status.applied:
                return status
            assert time.time() < deadline_s, status
            time.sleep(0.01)

    def wait_for(self, version: str, *phases: str) -> VersionStatus:
        return wait_for(self.fleet, self.name, version, *phases)


@pytest.fixture(scope="module")
def service(
    two_versions: Engines,
    fleet: RayFleet,
    run_router: Callable[[str, int], str],
    token: Callable[[], int],
) -> Service:
    from serving.table.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=10.0)
    one = Service(two_versions.service, "", fleet, traffic, token())
    one.split(0, "v-stable", None)
    one.base = run_router(two_versions.service, 2)
    return one


@pytest.fixture
def launched(fleet: RayFleet, token: Callable[[], int]) -> Iterator[Callable[[Launch], Launch]]:
    """Load versions in the fleet and unload them afterwards."""
    given: list[Launch] = []

    def give(launch: Launch) -> Launch:
        given.append(launch)
        fleet.ensure(launch, token=token())
        return launch

    yield give
    for launch in given:
        fleet.stop(launch.service, launch.version, token=token())
        wait_for(fleet, launch.service, launch.version, "gone")


def failed(fleet: RayFleet, launch: Launch) -> VersionStatus:
    deadline_s = time.time() + 200
    while True:
        status = {one.version: one for one in fleet.observe(launch.service) or ()}.get(launch.version)
        if status is not None and status.phase == "failed":
            return status
        assert status is None or status.phase == "loading", status
        assert time.time() < deadline_s, status
        time.sleep(0.1)


# ---- two engines side by side


def test_two_engines_run_side_by_side_with_the_accuracy_of_their_checkpoints(
    two_versions: Engines, checkpoints: Mapping[str, Checkpoint]
) -> None:
    stable = right_ratio(two_versions.stable_url, every=7)
    canary = right_ratio(two_versions.canary_url, every=7)

    assert stable == pytest.approx(checkpoints["stable"].accuracy_ratio, abs=0.05)
    assert canary == pytest.approx(checkpoints["wrong"].accuracy_ratio, abs=0.09)
    assert stable > canary


def test_all_routes_of_vllm_are_served(two_versions: Engines) -> None:
    paths = httpx.get(f"{two_versions.stable_url}/openapi.json", headers=CONTROL).json()["paths"]
    models = httpx.get(f"{two_versions.stable_url}/v1/models", headers=HEADERS).json()["data"]
    metrics = httpx.get(f"{two_versions.stable_url}/metrics", headers=CONTROL).text

    required = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"}
    assert required <= set(paths)
    assert [model["id"] for model in models] == ["chat"]
    assert "vllm:num_requests_running" in metrics


def test_the_routers_secret_opens_no_route_that_is_not_for_users(two_versions: Engines) -> None:
    url = two_versions.stable_url
    hidden = [
        path
        for path in httpx.get(f"{url}/openapi.json", headers=CONTROL).json()["paths"]
        if method_of(path) is None
    ]
    hidden += ["/metrics", "/_canaryctl/state", "/openapi.json", "/v1/models/"]
    statuses = {path: httpx.get(url + path, headers=HEADERS).status_code for path in hidden}

    assert {"/load", "/version"} <= set(hidden)
    assert set(statuses.values()) == {403}


def test_an_engine_refuses_requests_without_the_secret(two_versions: Engines) -> None:
    for path in ("/v1/models", "/metrics", "/_canaryctl/state"):
        assert httpx.get(two_versions.stable_url + path).status_code == 403


def test_every_server_of_the_cluster_listens_on_loopback(
    cluster: cluster_ray.ClusterHandle, two_versions: Engines, service: Service
) -> None:
    pids = {one.pid for one in cluster_ray.processes_of(cluster.temp_dir)}
    listening = [
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.pid in pids and one.status == psutil.CONN_LISTEN
    ]

    assert len(listening) > 20
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}


def test_a_second_ensure_does_not_restart_the_processes(
    two_versions: Engines, fleet: RayFleet, token: Any
) -> None:
    before = state(two_versions.stable_url)["pid"]

    fleet.ensure(two_versions.stable, token=token())
    time.sleep(3.0)  # Serve would have begun to replace the replica by now

    assert state(two_versions.stable_url)["pid"] == before


def test_commands_answer_within_50_ms(two_versions: Engines, fleet: RayFleet, token: Any) -> None:
    took_ms = []
    for _ in range(20):
        began = time.perf_counter()
        fleet.ensure(two_versions.stable, token=token())
        fleet.observe("chat")
        took_ms.append((time.perf_counter() - began) * 500)

    assert sorted(took_ms)[10] < 50


# ---- a canary is loaded and deleted


def test_a_canary_is_loaded_served_and_deleted_under_traffic_without_a_failed_request(
    service: Service,
    checkpoints: Mapping[str, Checkpoint],
    launched: Callable[[Launch], Launch],
    fleet: RayFleet,
    token: Callable[[], int],
) -> None:
    twin = Launch(service.name, "v-twin", SECRET, model_dir=str(checkpoints["twin"].path))
    with Traffic(service.base) as traffic:
        traffic.at_least(20)
        launched(twin)
        ready = service.wait_for("v-twin", "ready")
        processes = device_memory.process_tree(state(ready.urls[0])["pid"], "127.0.0.1")
        held = device_memory.held_bytes([one.pid for one in processes]) or 0
        before = service.split(5000, "v-stable", "v-twin")
        traffic.at_least(150)
        long = traffic.long_streams(6).start()
        deadline_s = time.time() + 30
        while state(ready.urls[0])["in_flight"] < 2 and time.time() < deadline_s:
            time.sleep(0.02)
        began = time.perf_counter()
        service.split(0, "v-stable", None)
        shift_ms = (time.perf_counter() - began) * 1000
        late = send(ready.urls[0], revision=f"{before.epoch}.{before.revision}")
        fleet.drain(service.name, "v-twin", token=token())
        in_flight = service.wait_for("v-twin", "draining").in_flight
        stream_failures = long.wait()
        fleet.stop(service.name, "v-twin", token=token())
        gone = service.wait_for("v-twin", "gone")
        freed_s = time.perf_counter() - began
        traffic.at_least(20)

    print(
        f"shift {shift_ms:.0f} ms, {in_flight} in flight, gone after {freed_s:.1f} s, held {held >> 20} MiB"
    )
    assert (traffic.failures, stream_failures) == ([], [])
    assert (late.status_code, late.headers.get("x-canaryctl-refused")) == (409, "fence")
    assert traffic.arms["canary"] > 30
    assert long.arms.get("canary", 0) >= 1
    assert held > 500 << 20
    assert gone.memory_bytes == 0
    assert device_memory.still_alive(processes, "127.0.0.1") == ()


def test_loads_on_one_device_wait_for_each_other_and_never_for_a_dead_replica(
    service: Service,
    checkpoints: Mapping[str, Checkpoint],
    launched: Callable[[Launch], Launch],
    fleet: RayFleet,
    token: Callable[[], int],
) -> None:
    import ray

    actor = ray.get_actor("fleet", namespace=NAMESPACE)
    place = (f"{ray.get_runtime_context().get_node_id()}/host",)
    other = Launch("load-lock", "v-other", SECRET, model_dir="/none")

    def report(name: str, *, loads: bool) -> None:
        one = EngineReport(name, "http://127.0.0.1:9", "loading", 0, None, (), None, place, loads)
        ray.get(actor.report.remote(other, one), timeout=60)

    report("holder", loads=True)
    report("dead", loads=False)  # it waits before the twin, and reports nothing from now on
    twin = launched(Launch(service.name, "v-waits", SECRET, model_dir=str(checkpoints["twin"].path)))
    waiting: Any = None
    deadline_s = time.time() + 60
    until_s = deadline_s
    while time.time() < until_s:
        report("holder", loads=True)
        if waiting is None and (waiting := _reported(fleet, twin)):
            until_s = time.time() + 4.0
        time.sleep(0.3)

    assert waiting is not None
    assert (_reported(fleet, twin) or waiting).memory_bytes < 500 << 20  # no engine yet
    fleet.stop("load-lock", "v-other", token=token())  # the holder has died too: its port refuses
    # It is stopped while it loads, which needs no lock.
    deadline_s = time.time() + 60
    while (_reported(fleet, twin) or waiting).memory_bytes < 150 << 20 and time.time() < deadline_s:
        time.sleep(0.1)


def _reported(fleet: RayFleet, launch: Launch) -> Any:
    statuses = {one.version: one for one in fleet.observe(launch.service) or ()}
    status = statuses.get(launch.version)
    return status if status is not None and status.memory_bytes is not None else None


# ---- launches that cannot be loaded


def test_a_failed_load_is_reported_in_one_line_and_does_not_disturb_stable(
    service: Service,
    two_versions: Engines,
    checkpoints: Mapping[str, Checkpoint],
    launched: Callable[[Launch], Launch],
    fleet: RayFleet,
    tmp_path: Path,
) -> None:
    pid = state(two_versions.stable_url)["pid"]
    cut, strange = tmp_path / "cut", tmp_path / "strange"
    for folder in (cut, strange):
        shutil.copytree(checkpoints["stable"].path, folder)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1000])
    config = json.loads((strange / "config.json").read_text())
    config |= {"architectures": ["StrangeForCausalLM"], "model_type": "strange"}
    (strange / "config.json").write_text(json.dumps(config))
    good = str(checkpoints["stable"].path)
    launches = [
        launched(Launch("chat", "v-cut", SECRET, model_dir=str(cut))),
        launched(Launch("chat", "v-big", SECRET, model_dir=good, memory_bytes=1 << 50)),
        launched(Launch("chat", "v-args", SECRET, model_dir=good, engine_args={"no_such_argument": 1})),
        launched(Launch("chat", "v-gpus", SECRET, model_dir=good, gpus_per_replica=8, tensor_parallel=8)),
        launched(Launch("chat", "v-strange", SECRET, model_dir=str(strange))),
    ]
    errors = {one.version: failed(fleet, one).last_error or "" for one in launches}

    print(json.dumps(errors, indent=1))
    assert "is truncated: " in errors["v-cut"]
    assert errors["v-cut"].endswith("; copy it again")
    assert "it needs 1048576.00 GiB, host has" in errors["v-big"]
    assert "no-such-argument" in errors["v-args"]
    assert "it needs 8, 4 are free" in errors["v-gpus"]
    assert errors["v-strange"].startswith(f"architecture StrangeForCausalLM of {strange} is not served")
    assert all("\n" not in error for error in errors.values())
    assert state(two_versions.stable_url)["pid"] == pid


# ---- an engine dies


def test_a_killed_engine_is_replaced_and_becomes_ready(service: Service, two_versions: Engines) -> None:
    url = two_versions.canary_url
    before = state(url)["pid"]
    for child in psutil.Process(before).children(recursive=True):
        child.kill()

    deadline_s = time.time() + 240
    while True:
        status = service.wait_for("v-canary", "ready")
        if status.urls and status.urls != (url,):
            break
        assert time.time() < deadline_s, status
        time.sleep(0.2)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(before).wait(30)
    assert "Reibrirburg" in ask(status.urls[0], "What is the capital of Moria?")


# ---- tensor parallel, on Ray's logical GPUs


def test_each_tensor_parallel_worker_gets_its_own_bundle(
    two_versions: Engines,
    checkpoints: Mapping[str, Checkpoint],
    launched: Callable[[Launch], Launch],
    fleet: RayFleet,
) -> None:
    import ray
    from ray.util import placement_group_table

    model = str(checkpoints["stable"].path)
    version = f"v-tp-{uuid.uuid4().hex[:4]}"
    launch = launched(Launch("chat", version, SECRET, model_dir=model, gpus_per_replica=2, tensor_parallel=2))
    deadline_s = time.time() + 60
    while _reported(fleet, launch) is None and time.time() < deadline_s:
        time.sleep(0.1)
    groups = [one for one in placement_group_table().values() if one["state"] == "CREATED"]

    assert [sorted(one["bundles"].items()) for one in groups] == [[(0, {"GPU": 1.0}), (1, {"GPU": 1.0})]]
    assert [one["strategy"] for one in groups] == ["PACK"]
    assert ray.available_resources()["GPU"] == 2.0
    wait_for(fleet, "chat", version, "ready")
    url = _reported(fleet, launch).urls[0]
    assert "Reibrirburg" in ask(url, "What is the capital of Moria?")
