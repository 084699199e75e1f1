"""What is reserved for versions that have not loaded yet is no longer free."""

from __future__ import annotations

from controller.planning.capacity import Device, fit
from controller.planning.fingerprint import Fingerprint
from controller.planning.reservations import Reservation, unreserved
from controller.quantities import GIB
from controller.spec.service import parse_version
from controller.spec.version import VersionSpec

SMALL = Fingerprint("checkpoint", "L", "llama", (("quantization", ""),), (), (), 3_000_000, 750_000)


def spec_of(**settings: object) -> VersionSpec:
    return parse_version({"model": "m", **settings})


def gpu(index: int, free_gib: int, free_gpus: float | None = None) -> Device:
    return Device("gpu", f"GPU {index}", 80 * GIB, free_gib * GIB, f"host-{index}", free_gpus)


def test_a_reservation_takes_memory_and_gpus_of_the_devices_that_it_fits_on() -> None:
    half = spec_of(gpu_memory_utilization=0.45)

    left = unreserved(
        [gpu(0, 80, 1.0), gpu(1, 20, 1.0)], [Reservation("mail", "v-1", half, SMALL, replicas=1)]
    )

    assert [one.free_bytes for one in left] == [44 * GIB, 20 * GIB]
    assert [one.free_gpus for one in left] == [0.5, 1.0]
    assert [one.reserved_for for one in left] == [("mail v-1",), ()]


def test_a_version_that_fits_into_free_memory_does_not_fit_into_reserved_memory() -> None:
    half, device = spec_of(gpu_memory_utilization=0.45), gpu(0, 70)
    reserved = unreserved([device], [Reservation("mail", "v-1", half, SMALL, replicas=1)])

    assert fit(half, SMALL, [device]).fits
    assert fit(half, SMALL, reserved).text == (
        "a second engine needs 36.0 GiB on GPU 0, 34.0 GiB are free of 80.0 GiB; 36.0 GiB are reserved for "
        "mail v-1, which has not loaded yet: wait until it has, or lower gpu_memory_utilization to 0.42, or "
        "free 2.0 GiB"
    )


def test_gpus_that_are_reserved_for_another_version_are_named() -> None:
    whole = spec_of(gpus=1.0, gpu_memory_utilization=0.3)
    reserved = unreserved([gpu(0, 70, 1.0)], [Reservation("mail", "v-1", whole, SMALL, replicas=1)])

    result = fit(whole, SMALL, reserved)

    assert "needs 1 GPUs, 0 are not reserved; 24.0 GiB are reserved for mail v-1, which" in result.text


def test_a_replica_that_has_taken_a_part_of_its_memory_leaves_nothing_negative() -> None:
    """It is loading: what it has taken is no longer free, and it still counts whole."""
    left = unreserved([gpu(0, 20)], [Reservation("mail", "v-1", spec_of(), SMALL, replicas=2)])

    assert left[0].free_bytes == 20 * GIB


def test_without_reservations_nothing_changes() -> None:
    devices = (gpu(0, 20, 0.5),)

    assert unreserved(devices, []) == devices
    assert unreserved([], [Reservation("mail", "v-1", spec_of(), SMALL, replicas=2)]) == ()
