"""A second engine fits, or the refusal names the value, the limit and the remedy."""

from __future__ import annotations

from dataclasses import replace

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
        "a second engine needs 73.6 GiB on GPU 0, 36.0 GiB are free of 80.0 GiB; "
        "lower gpu_memory_utilization to 0.45, or free 37.6 GiB"
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


def test_weights_that_exceed_the_engines_share_of_an_empty_device_are_refused() -> None:
    version = parse_version({"model": "m", "gpu_memory_utilization": 0.45})
    weights = replace(SMALL, tensor_bytes=40 * GIB, parameters=20 * GIB)

    assert fit(version, weights, gpus(1, 80)).text == (
        "the weights take 40.0 GiB on each GPU, and gpu_memory_utilization 0.45 of 80.0 GiB allows 36.0 GiB; "
        "raise gpu_memory_utilization to 0.51 or more, or raise tensor_parallel_size above 1"
    )


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"tensor_parallel_size": 2}, True),
        ({"quantization": "fp8"}, True),
        ({"engine": {"cpu_offload_gb": 8}}, True),
        ({"dtype": "float32"}, False),
    ],
)
def test_what_shrinks_the_weights_on_a_gpu_counts(settings: dict[str, object], fits: bool) -> None:
    weights = replace(SMALL, tensor_bytes=40 * GIB, parameters=20 * GIB)
    version = parse_version({"model": "m", "gpu_memory_utilization": 0.45, **settings})

    assert fit(version, weights, gpus(2, 80)).fits is fits


def reserved(free_gpus: float) -> list[Device]:
    return [replace(one, node="10.0.0.1", free_gpus=free_gpus) for one in gpus(2, 80)]


@pytest.mark.parametrize(
    ("settings", "free_gpus", "fits"),
    [
        ({"gpus": 1}, 0.0, False),
        ({"gpus": 1}, 1.0, True),
        ({"gpus": 0.5}, 0.5, True),
        ({"gpus": 1, "replicas": 2}, 1.0, False),
        ({"gpu_memory_utilization": 0.45}, 0.5, True),
        ({"tensor_parallel_size": 2, "gpu_memory_utilization": 0.9}, 1.0, False),
    ],
)
def test_gpus_that_ray_has_reserved_are_not_free(
    settings: dict[str, object], free_gpus: float, fits: bool
) -> None:
    result = fit(parse_version({"model": "m", **settings}), SMALL, reserved(free_gpus))

    assert result.fits is fits
    assert fits or "are not reserved; give both versions gpus below 1" in result.text


def test_gpus_are_refused_where_no_host_has_one() -> None:
    result = fit(parse_version({"model": "m", "gpus": 1}), SMALL, [A_HOST])

    assert result.text == ("gpus 1: no host of the cluster has a GPU; leave gpus out, or add such a host")


def test_a_share_of_a_gpu_takes_its_share_of_the_memory() -> None:
    assert need_bytes(parse_version({"model": "m", "gpus": 0.5}), SMALL, A_GPU) == 36 * GIB


def test_workers_on_one_host_share_its_memory_and_not_each_its_own() -> None:
    one = parse_version({"model": "m", "dtype": "bfloat16", "kv_cache_memory_bytes": GIB})
    four = parse_version(
        {"model": "m", "dtype": "bfloat16", "kv_cache_memory_bytes": GIB, "tensor_parallel_size": 4}
    )

    assert need_bytes(four, SMALL, A_HOST) - need_bytes(one, SMALL, A_HOST) == 3 * (GIB + 1_200_000_000)


def test_a_half_precision_checkpoint_doubles_on_a_host_where_float32_is_the_default() -> None:
    half = replace(SMALL, tensor_bytes=1_500_000)

    assert need_bytes(parse_version({"model": "m"}), half, A_HOST) == need_bytes(
        parse_version({"model": "m"}), SMALL, A_HOST
    )


def test_replicas_are_placed_on_every_host_of_the_cluster() -> None:
    hosts = [Device("host", f"host of 10.0.0.{n}", 16 * GIB, 6 * GIB, f"10.0.0.{n}") for n in (1, 2)]
    version = parse_version({"model": "m", "replicas": 2})

    assert fit(version, SMALL, hosts).fits
    assert not fit(version, SMALL, hosts[:1]).fits


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
