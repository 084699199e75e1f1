"""A second engine fits, or the refusal names the value, the limit and the remedy."""

from __future__ import annotations

import pytest

from controller.errors import NoRoom
from controller.planning.capacity import Device, fit, need_bytes, require_fit
from controller.planning.fingerprint import Fingerprint
from controller.quantities import GIB
from controller.spec.service import parse_version

SMALL = Fingerprint("checkpoint", "L", "llama", (("quantization", ""),), (), (), 3_000_000, 750_000)
BIG = Fingerprint(
    "checkpoint", "L", "llama", (("quantization", ""),), (), (), 140_000_000_000, 70_000_000_000
)
A_GPU = Device("gpu", "GPU 0", 80 * GIB, 36 * GIB)
A_HOST = Device("host", "this host", 16 * GIB, 5 * GIB)


def gpus(count: int, free_gib: int) -> list[Device]:
    return [Device("gpu", f"GPU {index}", 80 * GIB, free_gib * GIB) for index in range(count)]


def test_a_gpu_engine_takes_its_share_of_the_whole_device() -> None:
    version = parse_version({"model": "m", "gpu_memory_utilization": 0.45})

    assert need_bytes(version, SMALL, A_GPU) == 36 * GIB
    assert fit(version, SMALL, [A_GPU]).fits


def test_a_refusal_on_a_gpu_names_the_share_that_would_fit() -> None:
    result = fit(parse_version({"model": "m"}), SMALL, [A_GPU])

    assert result.text == (
        "a second engine needs 72.0 GiB on GPU 0, 36.0 GiB are free of 80.0 GiB; "
        "lower gpu_memory_utilization to 0.45, or free 36.0 GiB"
    )


def test_a_host_engine_takes_tensors_cache_and_code() -> None:
    version = parse_version({"model": "m", "kv_cache_memory_bytes": 64 << 20})

    assert need_bytes(version, SMALL, A_HOST) == 3_000_000 + (64 << 20) + 1_200_000_000


def test_a_refusal_on_a_host_names_the_cache() -> None:
    full = Device("host", "this host", 16 * GIB, GIB)

    with pytest.raises(
        NoRoom, match=r"a second engine needs 5.1 GiB on this host, 1.0 GiB are free of 16.0 GiB; "
    ):
        require_fit(parse_version({"model": "m"}), SMALL, [full])


def test_tensor_parallel_shares_the_tensors_and_needs_as_many_gpus() -> None:
    version = parse_version({"model": "m", "tensor_parallel_size": 4, "gpu_memory_utilization": 0.45})

    assert fit(version, BIG, gpus(4, 40)).fits
    assert not fit(version, BIG, gpus(3, 40)).fits
    assert need_bytes(version, BIG, A_GPU) == 36 * GIB


def test_tensors_that_exceed_the_share_of_the_device_count_in_full() -> None:
    version = parse_version({"model": "m", "tensor_parallel_size": 2, "gpu_memory_utilization": 0.1})

    assert need_bytes(version, BIG, A_GPU) == 70_000_000_000


def test_replicas_are_placed_whole_and_the_refusal_counts_them() -> None:
    version = parse_version({"model": "m", "replicas": 3, "gpu_memory_utilization": 0.45})

    assert fit(version, SMALL, gpus(2, 40), replicas=2).fits
    assert fit(version, SMALL, gpus(2, 40)).text.startswith("replica 3 of 3 needs 36.0 GiB")


def test_another_dtype_changes_the_size_of_the_tensors() -> None:
    full = parse_version({"model": "m", "dtype": "float32", "kv_cache_memory_bytes": 1 << 20})
    half = parse_version({"model": "m", "dtype": "bfloat16", "kv_cache_memory_bytes": 1 << 20})

    assert need_bytes(full, SMALL, A_HOST) - need_bytes(half, SMALL, A_HOST) == 1_500_000


def test_an_external_endpoint_needs_no_memory() -> None:
    assert fit(parse_version({"url": "http://a/v1"}), SMALL, []).fits


def test_without_a_device_nothing_fits() -> None:
    assert not fit(parse_version({"model": "m"}), SMALL, []).fits
