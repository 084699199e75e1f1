"""Memory that is promised to versions which have not loaded yet, so that two services never plan into it.

What a device reports as free says nothing of an engine that is planned or still loading. A reservation is no
row of its own that could be forgotten: it is what the store holds already (a service's stable version, a
rollout's canary) without the replicas that the fleet reports as ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.planning.capacity import Device, Room
from controller.planning.fingerprint import Fingerprint
from controller.spec.version import VersionSpec


@dataclass(frozen=True, slots=True)
class Reservation:
    """Replicas of a version that may take memory at any time: planned, loading, or to be restarted."""

    service: str
    version: str
    spec: VersionSpec
    size: Fingerprint | int  # int: bytes on each of its devices, as planned
    replicas: int  # those that are not ready


def unreserved(devices: Sequence[Device], reservations: Sequence[Reservation]) -> tuple[Device, ...]:
    """The devices with the memory and the GPUs that are free and promised to nobody.

    A replica that is loading counts whole, though a part of its memory is no longer free: too little is left
    over for minutes, never too much. A reservation that does not fit takes what it can.
    """
    if not devices or not reservations:
        return tuple(devices)
    room = Room(devices)
    promised: dict[int, list[str]] = {}
    for one in reservations:
        for place in room.take(one.spec, one.size, one.replicas).places:
            names = promised.setdefault(place, [])
            if (name := f"{one.service} {one.version}") not in names:
                names.append(name)
    return tuple(
        replace(
            device,
            free_bytes=room.free_bytes[place],
            free_gpus=room.free_gpus.get(device.node, device.free_gpus),
            reserved_bytes=device.free_bytes - room.free_bytes[place],
            reserved_for=tuple(promised.get(place, ())),
        )
        for place, device in enumerate(devices)
    )
