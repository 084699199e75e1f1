"""The engine of a served judge: its name, its size on each kind of device, and its room beside the canary."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.planning.capacity import Device
from controller.planning.fingerprint import Fingerprint, fingerprint_checkpoint
from controller.planning.judge_engine import ServedJudge, fit_beside, judge_version, left_by, served_judge
from controller.quantities import GIB
from controller.spec.judge import JudgeSpec
from controller.spec.service import parse_version
from controller.spec.version import VersionSpec
from tests.fakes.checkpoints import write_checkpoint

KV = 256 << 20
HOST = (Device("host", "host", 64 * GIB, 8 * GIB),)


def gpu(free_gpus: float) -> tuple[Device, ...]:
    return (Device("gpu", "gpu0", 80 * GIB, 80 * GIB, "n", free_gpus),)


def of(
    tmp_path: Path, devices: tuple[Device, ...], **more: object
) -> tuple[VersionSpec, Fingerprint, ServedJudge]:
    """A canary with 1 GiB of KV cache, and a judge of the same weights."""
    tmp_path.mkdir(exist_ok=True)
    model = str(write_checkpoint(tmp_path / "j-7b"))
    judge = JudgeSpec.model_validate({"model": model, **more})
    version = judge_version(judge, devices, kv_bytes=KV)
    fingerprint = fingerprint_checkpoint(Path(model), engine_arguments=version.engine_arguments())
    on_host = devices[0].kind == "host"
    sizes = {"kv_cache_memory_bytes": "1GiB"} if on_host else {"gpu_memory_utilization": 0.5}
    canary = parse_version({"model": model, **sizes})
    return canary, fingerprint, served_judge(judge, version, fingerprint, devices)


def test_on_a_host_it_takes_the_cache_that_its_engine_takes_by_itself(tmp_path: Path) -> None:
    canary, fingerprint, judge = of(tmp_path, HOST)

    assert judge.version.kv_cache_memory_bytes == KV
    assert fit_beside(canary, fingerprint, HOST, judge).fits
    assert left_by(canary, fingerprint, HOST)[0].free_bytes < 8 * GIB - GIB


def test_other_sizes_are_another_judge_by_name(tmp_path: Path) -> None:
    _, _, one = of(tmp_path / "1", HOST)
    _, _, other = of(tmp_path / "2", HOST, max_model_len=128)

    assert one.model.startswith("j-7b-")
    assert one.model != other.model
    assert one.engine.version == f"v-{one.model.removeprefix('j-7b-')}"


@pytest.mark.parametrize(("free", "fits"), [(8 * GIB, True), (3 * GIB, False)])
def test_both_must_fit_into_what_is_free(tmp_path: Path, free: int, fits: bool) -> None:
    devices = (Device("host", "host", 64 * GIB, free),)
    canary, fingerprint, judge = of(tmp_path, devices)
    found = fit_beside(canary, fingerprint, devices, judge)

    assert fit_beside(canary, fingerprint, devices, None).fits
    assert found.fits is fits
    assert (
        "the judge's engine does not fit beside the canary: a second engine needs" in found.text
    ) is not fits


@pytest.mark.parametrize(("gpus", "fits"), [(0.5, True), (1.0, False)])
def test_on_a_gpu_it_takes_the_share_that_the_canary_leaves(tmp_path: Path, gpus: float, fits: bool) -> None:
    canary, fingerprint, judge = of(tmp_path, gpu(1.0), gpus=gpus, gpu_memory_utilization=0.4)

    assert judge.version.kv_cache_memory_bytes is None
    assert fit_beside(canary, fingerprint, gpu(1.0), judge).fits is fits


def test_beside_an_endpoint_it_has_all_that_is_free(tmp_path: Path) -> None:
    _, fingerprint, judge = of(tmp_path, HOST)
    canary = parse_version({"url": "http://10.0.0.1"})

    assert fit_beside(canary, fingerprint, HOST, judge).fits
    assert left_by(canary, fingerprint, HOST) == HOST
