"""Versions on a real store: preflight, promotion times, replicas."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from controller.background import Background
from controller.errors import CanaryctlError, Conflict, NoRoom, UnknownService, Unreachable
from controller.planning.capacity import Device, fit
from controller.planning.fingerprint import Fingerprint, fingerprint_checkpoint, fingerprint_external
from controller.quantities import GIB
from controller.rollout.judge_plan import JudgeEngine, JudgeFound, JudgePlan, JudgeState
from controller.rollout.plan import VersionRef
from controller.rollout.state import Departure, DepartureStep, Phase, RolloutState
from controller.settings import Settings
from controller.spec.service import dump, parse_version
from controller.spec.version import VersionSpec
from controller.store import schema as t
from controller.store.digest_cache import read_digests
from controller.store.row_specs import (
    comparable_fingerprint,
    fingerprint_of,
    replicas_of,
    version_row,
    version_spec,
)
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from controller.wiring import launches
from controller.wiring.launches import Versions
from serving.credentials import judge_root
from serving.fleet.cluster_memory_ray import NodeDevices
from serving.fleet.device_memory import DeviceMemory
from serving.fleet.types import FleetUnreachable, VersionStatus
from tests.database_rig import sqlite_url
from tests.fakes.checkpoints import replace_keeping_time, write_checkpoint
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

READY = VersionStatus(STABLE, "ready", 3, 0, None, (), None, 0.0)

DEVICES = launches.devices


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Of a store with `chat`, which serves STABLE, on a host with room for all."""
    monkeypatch.setattr(launches, "devices", lambda: (Device("host", "host", 64 * GIB, 64 * GIB),))
    settings = Settings(home=tmp_path, database_url=sqlite_url(tmp_path / "canaryctl.db"))
    versions = Versions(settings, SqlStore(settings.database_url))
    spec = parse_version({"model": str(write_checkpoint(tmp_path / "model")), "replicas": 3})
    row = version_row("chat", spec, versions.fingerprint(spec), 1.0)
    versions._store.put_service(ServiceRow("chat", "{}", STABLE, "s3cret", 1.0), replace(row, id=STABLE))
    versions._store.put_version(row)
    return versions


def rollout_of(versions: Versions, tmp_path: Path) -> RolloutState:
    """A rollout whose canary is the stored checkpoint."""
    spec = parse_version({"model": str(tmp_path / "model"), "replicas": 3})
    return replace(a_rollout(), canary=VersionRef(versions.fingerprint(spec).version_id))


def preflight(versions: Versions, rollout: RolloutState, *fleet: VersionStatus) -> None:
    """fleet: what is observed of every service."""
    versions._observe = lambda service: fleet
    versions.preflight(rollout)


def test_preflight_passes_for_unchanged_files(versions: Versions, tmp_path: Path) -> None:
    preflight(versions, rollout_of(versions, tmp_path), READY)


def test_preflight_refuses_files_that_changed_since_the_plan(versions: Versions, tmp_path: Path) -> None:
    rollout = rollout_of(versions, tmp_path)
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "2.0"}')

    with pytest.raises(CanaryctlError, match="changed since the plan was made; deploy it again"):
        preflight(versions, rollout, READY)


@pytest.mark.parametrize("is_replaced", [True, False])
def test_preflight_refuses_other_weights_of_the_same_size_and_time(
    versions: Versions, tmp_path: Path, is_replaced: bool
) -> None:
    rollout = rollout_of(versions, tmp_path)
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    data = weights.read_bytes()
    replace_keeping_time(weights, data[:-1] + bytes([data[-1] ^ 1]), is_replaced=is_replaced)

    with pytest.raises(CanaryctlError, match="changed since the plan was made; deploy it again"):
        preflight(versions, rollout, READY)


def test_preflight_of_an_undo_accepts_another_engine_release_and_a_dead_stable(
    versions: Versions, tmp_path: Path
) -> None:
    rollout = rollout_of(versions, tmp_path)
    versions._release = "vllm 99"

    with pytest.raises(CanaryctlError, match="changed since"):
        preflight(versions, rollout, READY)
    preflight(versions, replace(rollout, plan=replace(rollout.plan, undo=True)))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", "{{ 'ANOTHER PROMPT' }}"),
        ("generation_config.json", '{"eos_token_id": [1, 2, 3]}'),
        ("generation_config.json", '{"max_new_tokens": 3}'),
        ("tokenizer.json", '{"version": "2.0"}'),
        ("", ""),
    ],
)
def test_preflight_of_an_undo_refuses_changed_files(
    versions: Versions, tmp_path: Path, file: str, text: str
) -> None:
    rollout = rollout_of(versions, tmp_path)
    rollout = replace(rollout, plan=replace(rollout.plan, undo=True))
    if file:
        (tmp_path / "model" / file).write_text(text)
    else:
        shutil.rmtree(tmp_path / "model")
        write_checkpoint(tmp_path / "model", seed=7)

    with pytest.raises(CanaryctlError, match="changed since"):
        preflight(versions, rollout)


@pytest.mark.parametrize(
    ("fleet", "phase"), [((), "missing"), ((replace(READY, phase="loading"),), "loading")]
)
def test_preflight_refuses_while_stable_is_not_ready(
    versions: Versions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fleet: tuple[VersionStatus, ...],
    phase: str,
) -> None:
    monkeypatch.setattr(launches, "STABLE_WAIT_S", 0.0)

    with pytest.raises(Conflict, match=f"stable {STABLE} is {phase}, a rollback could fail"):
        preflight(versions, rollout_of(versions, tmp_path), *fleet)


def test_a_fleet_that_does_not_answer_says_nothing_of_stable(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "STABLE_WAIT_S", 0.0)
    versions._observe = lambda service: None

    with pytest.raises(Unreachable, match="the fleet does not say whether stable"):
        versions.preflight(rollout_of(versions, tmp_path))


def test_a_version_is_promoted_since_its_newest_rollout_made_it_stable(versions: Versions) -> None:
    unloading = Departure(STABLE, CANARY, DepartureStep.UNLOAD, 5.0, 5.0)
    promoted = replace(a_rollout(), phase=Phase.SUCCEEDED, entered_at_s=7.0, departure=unloading)
    versions._store.create_rollout(promoted, request="{}", at_s=1.0)

    assert versions.promoted_at_s("chat", CANARY) == 7.0
    assert versions.promoted_at_s("chat", STABLE) == 0.0


def test_a_version_whose_rollout_another_release_wrote_is_promoted_since_that_ended(
    versions: Versions,
) -> None:
    versions._store.create_rollout(replace(a_rollout(), phase=Phase.SUCCEEDED), request="{}", at_s=1.0)
    with versions._store.database.write() as db:
        db.execute(sa.update(t.rollouts).values(state='{"format": 99}', ended_at_s=9.0))

    assert versions.promoted_at_s("chat", CANARY) == 9.0


def test_a_version_that_was_rolled_back_is_not_promoted(versions: Versions) -> None:
    versions._store.create_rollout(replace(a_rollout(), entered_at_s=7.0), request="{}", at_s=1.0)

    assert versions.promoted_at_s("chat", CANARY) == 0.0


def test_replicas_of_a_missing_version_are_one(versions: Versions) -> None:
    assert replicas_of(versions._store.version("chat", STABLE)) == 3
    assert replicas_of(versions._store.version("chat", "v-none")) == 1


def test_one_checkpoint_that_is_being_hashed_does_not_hold_up_another(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preflight has a time limit, and the other checkpoint may take minutes."""
    is_hashed, has_begun, real = threading.Event(), threading.Event(), fingerprint_checkpoint

    def slow(path: Path, **rest: Any) -> Fingerprint:
        if path.name == "large":
            has_begun.set()
            assert is_hashed.wait(20.0)
        return real(path, **rest)

    monkeypatch.setattr(launches, "fingerprint_checkpoint", slow)
    large = parse_version({"model": str(write_checkpoint(tmp_path / "large", seed=5))})
    small = parse_version({"model": str(write_checkpoint(tmp_path / "small", seed=6))})
    with ThreadPoolExecutor(2) as threads:
        pending = threads.submit(versions.fingerprint, large)
        assert has_begun.wait(5.0)
        quick = threads.submit(versions.fingerprint, small).result(timeout=5.0)
        is_hashed.set()
        late = pending.result(timeout=5.0)

    cached = read_digests(versions._settings.digests_path)
    assert quick.version_id != late.version_id
    assert {Path(key.partition("|")[0]).parent.name for key in cached} >= {"large", "small"}


def test_a_version_stored_by_older_rules_is_compared_by_computing_it_anew(
    versions: Versions, tmp_path: Path
) -> None:
    spec = parse_version({"model": str(tmp_path / "model"), "replicas": 3})
    fresh = versions.fingerprint(spec)
    older = replace(fresh, scheme=1, files=(), vocabulary=(), sampling=())
    row = version_row("chat", spec, older, 1.0)

    assert row.id != fresh.version_id
    assert comparable_fingerprint(row, versions.fingerprint) == fresh


def test_a_version_stored_by_older_rules_whose_files_are_gone_is_compared_as_stored(
    versions: Versions, tmp_path: Path
) -> None:
    spec = parse_version({"model": str(tmp_path / "model"), "replicas": 3})
    older = replace(versions.fingerprint(spec), scheme=1)
    shutil.rmtree(tmp_path / "model")

    assert comparable_fingerprint(version_row("chat", spec, older, 1.0), versions.fingerprint) == older


def test_preflight_passes_for_a_version_stored_by_older_rules(versions: Versions, tmp_path: Path) -> None:
    spec = parse_version({"model": str(tmp_path / "model"), "replicas": 3})
    older = replace(versions.fingerprint(spec), scheme=1, files=(), sampling=())
    row = version_row("chat", spec, older, 1.0)
    versions._store.put_version(row)

    preflight(versions, replace(a_rollout(), canary=VersionRef(row.id)), READY)


def test_a_checkpoint_that_is_being_read_for_long_is_not_waited_for_without_end(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "HASH_WAIT_S", 0.01)
    spec = parse_version({"model": str(tmp_path / "model")})

    with (
        versions._hashing.held(str((tmp_path / "model").resolve()), timeout_s=1.0),
        pytest.raises(Unreachable, match=r"has been read by another request for over 0\.01 s"),
    ):
        versions.fingerprint(spec)

    assert versions.fingerprint(spec).kind == "checkpoint"


def test_no_lock_stays_for_a_checkpoint_that_nobody_reads(versions: Versions, tmp_path: Path) -> None:
    for number in range(20):
        with pytest.raises(CanaryctlError):
            versions.fingerprint(parse_version({"model": str(tmp_path / f"missing-{number}")}))

    assert len(versions._hashing) == 0


def test_no_version_names_the_admin_token(versions: Versions, tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("s3cret")
    template = {"chat_template": str(tmp_path / "admin.token")}

    with pytest.raises(CanaryctlError, match="canaryctl's state folder"):
        versions.fingerprint(parse_version({"model": str(tmp_path / "model"), "engine": template}))


@pytest.fixture
def two_services(versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """`chat` and `mail`, both ready, on a host with memory for one more engine."""
    spec = parse_version({"model": str(tmp_path / "model"), "kv_cache_memory_bytes": "1GiB"})
    row = version_row("mail", spec, versions.fingerprint(spec), 1.0)
    versions._store.put_service(ServiceRow("mail", "{}", STABLE, "s3cret", 1.0), replace(row, id=STABLE))
    for service in ("chat", "mail"):
        versions._store.put_version(replace(row, service=service, id=CANARY))
    versions._observe = lambda service: (READY,)
    monkeypatch.setattr(launches, "devices", lambda: (Device("host", "host", 16 * GIB, 3 * GIB),))
    return versions


def test_of_two_rollouts_planned_into_the_same_memory_the_earlier_one_loads(
    two_services: Versions,
) -> None:
    # The clock was set back in between, and ids are random: neither says which was first.
    first = a_rollout("r-2", service="mail", now_s=1000.0)
    second = a_rollout("r-1", service="chat", now_s=940.0)
    for rollout in (first, second):
        two_services._store.create_rollout(rollout, request="{}", at_s=rollout.started_at_s)
    spec, fingerprint = load_version(two_services, "mail", CANARY)

    assert fit(spec, fingerprint, two_services.devices(rollout=first)).fits
    refused = fit(spec, fingerprint, two_services.devices(rollout=second))

    assert not refused.fits
    assert "reserved for mail v-0000000002, which has not loaded yet: wait until it has" in refused.text
    # Whoever plans now finds both reserved; once the canary is ready, its memory is measured as taken.
    assert not fit(spec, fingerprint, two_services.devices()).fits
    two_services._observe = lambda service: (READY, replace(READY, version=CANARY))
    assert fit(spec, fingerprint, two_services.devices()).fits


def test_a_canary_that_passed_its_preflight_keeps_its_memory_whoever_was_first(
    two_services: Versions,
) -> None:
    first = a_rollout("r-2", service="mail")
    second = replace(a_rollout("r-1", service="chat"), launched=True)
    for rollout in (first, second):
        two_services._store.create_rollout(rollout, request="{}", at_s=1.0)
    spec, fingerprint = load_version(two_services, "mail", CANARY)

    assert not fit(spec, fingerprint, two_services.devices(rollout=first)).fits


def test_an_unreadable_service_holds_up_no_other(two_services: Versions) -> None:
    store = two_services._store
    store.create_rollout(a_rollout(service="mail"), request="{}", at_s=1.0)
    with store.database.write() as db:
        db.execute(sa.text("update rollouts set state = '{\"format\": 99}'"))
    spec, fingerprint = load_version(two_services, "chat", CANARY)

    assert fit(spec, fingerprint, two_services.devices()).fits

    with store.database.write() as db:
        db.execute(sa.text("update versions set spec = '{\"odd\": 1}' where service = 'mail'"))
    assert fit(spec, fingerprint, two_services.devices()).fits


def test_what_a_silent_fleet_has_loaded_is_not_counted_twice(
    two_services: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "FLEET_WAIT_S", 0.0)
    two_services._observe = lambda service: None
    spec, fingerprint = load_version(two_services, "chat", CANARY)

    with pytest.raises(Unreachable, match="the fleet does not say what chat has loaded; try again"):
        two_services.devices()
    # An undo does not wait for it.
    assert fit(spec, fingerprint, two_services.devices(restoring="chat")).fits


def test_nothing_is_launched_while_the_clusters_devices_are_not_known(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch for a processor in place of a GPU would be kept as long as the process runs."""

    def silent() -> tuple[NodeDevices, ...]:
        raise FleetUnreachable("no node with a GPU answers (10.0.0.2); try again")

    monkeypatch.setattr(launches, "devices", DEVICES)
    monkeypatch.setattr(launches, "cluster_devices", silent)
    versions._measuring = Background("devices", limit_s=60.0, start=lambda work: work())
    with pytest.raises(Unreachable, match="no node with a GPU answers"):
        versions.launch("chat", STABLE, 1)

    gpu = DeviceMemory("gpu", "GPU 0", 80 * GIB, 80 * GIB)
    monkeypatch.setattr(launches, "cluster_devices", lambda: (NodeDevices("10.0.0.2", (gpu,), 1.0),))
    assert versions.launch("chat", STABLE, 1).gpus_per_replica == 1.0


def test_a_launch_never_waits_for_the_clusters_devices(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that does not answer held each tick of a controller that had just started for 8 s."""
    answers, asked, is_measured = threading.Event(), [], threading.Event()

    def silent() -> tuple[Device, ...]:
        asked.append(threading.current_thread().name)
        assert answers.wait(60.0)
        return (Device("gpu", "GPU 0", 80 * GIB, 80 * GIB),)

    def beside(work: Callable[[], None]) -> None:
        def measured() -> None:
            work()
            is_measured.set()

        threading.Thread(target=measured, name="devices", daemon=True).start()

    monkeypatch.setattr(launches, "devices", silent)
    versions._measuring = Background("devices", limit_s=60.0, start=beside)
    for _ in range(3):
        with pytest.raises(Unreachable, match="devices are not known yet"):
            versions.launch("chat", STABLE, 1)
    answers.set()
    assert is_measured.wait(60.0)

    assert versions.launch("chat", STABLE, 1).gpus_per_replica == 1.0
    assert asked == ["devices"]


def test_an_endpoint_and_a_probe_need_no_devices(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> tuple[Device, ...]:
        raise AssertionError("asked for devices")

    monkeypatch.setattr(launches, "devices", silent)
    versions._measuring = Background("devices", limit_s=60.0, start=lambda work: work())
    url = "http://127.0.0.1:9"
    spec, fingerprint = parse_version({"url": url}), fingerprint_external(url)
    row = version_row("chat", spec, fingerprint, 1.0)
    versions._store.put_version(row)

    assert versions.launch("chat", row.id, 1).url == url
    assert versions.address("chat", STABLE).secret == versions._store.service("chat").secret
    assert versions._devices_fault == ""


def test_a_canary_that_leaves_or_has_left_reserves_nothing(two_services: Versions) -> None:
    departure = Departure(CANARY, STABLE, DepartureStep.UNLOAD, 1.0, 1.0)
    leaving = replace(a_rollout(service="mail"), phase=Phase.ROLLING_BACK, departure=departure)
    two_services._store.create_rollout(leaving, request="{}", at_s=1.0)
    spec, fingerprint = load_version(two_services, "mail", CANARY)

    assert fit(spec, fingerprint, two_services.devices()).fits


def test_a_stable_version_that_is_restarted_keeps_its_memory(two_services: Versions) -> None:
    loading = (replace(READY, phase="loading", ready_replicas=0),)
    two_services._observe = lambda service: loading if service == "mail" else (READY,)
    spec, fingerprint = load_version(two_services, "mail", STABLE)

    assert not fit(spec, fingerprint, two_services.devices()).fits
    # An undo of that very service replaces it.
    assert fit(spec, fingerprint, two_services.devices(restoring="mail")).fits


def load_version(versions: Versions, service: str, version: str) -> tuple[VersionSpec, Fingerprint]:
    row = versions._store.version(service, version)
    assert row is not None
    return version_spec(row), fingerprint_of(row)


def test_devices_are_measured_once_a_thread_can_be_started(versions: Versions) -> None:
    """One tick without a thread, and nothing was launched again, also no stable version."""
    has_threads = [False]

    def start(work: Callable[[], None]) -> None:
        if not has_threads[0]:
            raise RuntimeError("can't start new thread")
        work()

    versions._measuring = Background("devices", limit_s=60.0, start=start)
    for _ in range(2):
        with pytest.raises(Unreachable, match="devices are not known yet"):
            versions.launch("chat", STABLE, 1)
    has_threads[0] = True

    assert versions.launch("chat", STABLE, 1).version == STABLE


def judged(versions: Versions, need_bytes: int = 3 * GIB, **changes: Any) -> RolloutState:
    """A rollout with a judge served here, stored."""
    sizes = {"max_model_len": 64, "kv_cache_memory_bytes": "256MiB"}
    spec = parse_version({"model": str(versions._settings.home / "model"), **sizes})
    fingerprint = versions.fingerprint(spec)
    engine = JudgeEngine(fingerprint.version_id, json.dumps(dump(spec)), need_bytes)
    judge = JudgePlan("", "judge-1", 2000, "quality", 60, engine=engine)
    rollout = a_rollout("r-1")
    rollout = replace(rollout, plan=replace(rollout.plan, judge=judge), **changes)
    versions._store.create_rollout(rollout, request="{}", at_s=1.0)
    return rollout


def test_a_judge_is_launched_as_its_rollout_planned_it_with_a_secret_of_its_own(versions: Versions) -> None:
    plan = judged(versions).plan.judge
    assert plan is not None
    assert plan.engine is not None
    versions._devices = launches.devices()
    launch = versions.launch("chat_judge", plan.engine.version, 1)

    assert launch.secret == judge_root("s3cret")
    assert (launch.service, launch.endpoint_model, launch.is_routed) == ("chat_judge", "judge-1", False)
    assert launch.engine_args == {"max_model_len": 64, "kv_cache_memory_bytes": 256 << 20}
    assert launch.memory_bytes == 3 * GIB
    with pytest.raises(UnknownService, match="no running rollout of chat has a judge v-other"):
        versions.launch("chat_judge", "v-other", 1)


@pytest.mark.parametrize(
    ("changes", "is_reserved"),
    [
        ({}, True),
        ({"launched": True}, True),
        ({"judge": JudgeState(1, JudgeFound("refused", 1, "no"))}, False),
    ],
)
def test_a_judge_that_is_not_loaded_keeps_its_memory_from_other_canaries(
    two_services: Versions, changes: dict[str, object], is_reserved: bool
) -> None:
    judged(two_services, 1 << 20, **changes)
    (two_services._settings.home / "model").rename(two_services._settings.home / "moved")  # no file is read
    names = two_services.devices()[0].reserved_for

    assert [name.startswith("chat its judge v-") for name in names if "judge" in name] == [True] * is_reserved


@pytest.mark.parametrize(("need_gib", "fits"), [(60, True), (64, False)])
def test_preflight_places_the_canary_first_and_its_judge_beside_it_as_the_plan_did(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need_gib: int, fits: bool
) -> None:
    room = (Device("host", "host", 64 * GIB, 64 * GIB),) * 2
    monkeypatch.setattr(launches, "devices", lambda: room[:1] if not fits else room)
    rollout = judged(versions, need_gib * GIB)
    spec = parse_version({"model": str(tmp_path / "model"), "replicas": 3})
    rollout = replace(rollout, canary=VersionRef(versions.fingerprint(spec).version_id))

    if fits:
        preflight(versions, rollout, READY)
        return
    with pytest.raises(NoRoom, match=r"the judge's engine needs 64.0 GiB, and .* GiB are free beside"):
        preflight(versions, rollout, READY)
