"""Launches made from version specs: GPUs, dtype, external endpoints."""

from __future__ import annotations

import pytest

from controller.spec.service import parse_version
from controller.wiring.launches import launch_of
from serving.credentials import KeyReference
from serving.fleet.types import Launch


@pytest.mark.parametrize(
    ("given", "on_gpu", "gpus"),
    [
        ({}, False, 0.0),
        ({}, True, 1.0),
        ({"gpu_memory_utilization": 0.45}, True, 0.5),
        ({"gpus": 0.25}, True, 0.25),
        ({"tensor_parallel_size": 4}, True, 4.0),
        ({"tensor_parallel_size": 4, "gpu_memory_utilization": 0.45}, True, 2.0),
    ],
)
def test_a_launch_reserves_the_gpus_that_its_engine_uses(
    given: dict[str, object], on_gpu: bool, gpus: float
) -> None:
    spec = parse_version({"model": "/m", **given})

    launch = launch_of("chat", "v-1", "s", spec, replicas=2, on_gpu=on_gpu, memory_bytes=None)

    assert launch.gpus_per_replica == gpus
    assert "tensor_parallel_size" not in launch.engine_args


def test_dtype_auto_is_left_out_of_the_engine_arguments() -> None:
    auto = launch_of(
        "c", "v", "s", parse_version({"model": "/m"}), replicas=1, on_gpu=False, memory_bytes=None
    )
    half = parse_version({"model": "/m", "dtype": "bfloat16"})

    assert "dtype" not in auto.engine_args
    named = launch_of("c", "v", "s", half, replicas=1, on_gpu=False, memory_bytes=None)
    assert named.engine_args["dtype"] == "bfloat16"


def test_the_url_of_an_external_endpoint_is_used_as_written() -> None:
    spec = parse_version({"url": "http://10.0.0.7:8000/v1"})

    launch = launch_of("c", "v", "s", spec, replicas=1, on_gpu=False, memory_bytes=None)

    assert (launch.url, launch.model_dir) == ("http://10.0.0.7:8000/v1", None)


def test_the_launch_of_an_endpoint_names_its_model_and_refers_to_its_key() -> None:
    spec = parse_version({"url": "http://x", "model": "large", "api_key_env": "KEY"})

    launch = launch_of("c", "v", "s", spec, replicas=1, on_gpu=False, memory_bytes=None)

    assert (launch.endpoint_model, launch.api_key) == ("large", KeyReference("env", "KEY"))
    assert Launch.from_json(launch.to_json()) == launch
