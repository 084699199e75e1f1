"""Free ports of the loopback address, on which every server of canaryctl listens by default."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
# Below the kernel's ephemeral range: no outgoing connection can take a chosen port before its server starts.
PORTS = range(10_000, 20_000)


def is_free(port: int) -> bool:
    """True when a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """`count` different ports that were free when checked. Raises OSError when there are fewer."""
    chosen: list[int] = []
    # A generator of its own, seeded by the system: a caller that seeds `random` changes no port. Not
    # SystemRandom, which takes 10 ms for the 10,000 draws.
    for port in random.Random().sample(PORTS, len(PORTS)):
        if len(chosen) == count:
            return chosen
        if is_free(port):
            chosen.append(port)
    raise OSError(f"fewer than {count} free ports of {HOST} in {PORTS.start}-{PORTS.stop - 1}; free some")
