"""Ports of this host's loopback address, the only one that anything of ours listens on by default."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
# Below the ports that the kernel gives to outgoing connections: none of those takes one of these between the
# choice and the start of its server.
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
    """That many different ports, free a moment ago. Raises OSError when there are not so many."""
    chosen: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(chosen) == count:
            return chosen
        if is_free(port):
            chosen.append(port)
    raise OSError(f"fewer than {count} free ports of {HOST} in {PORTS.start}-{PORTS.stop - 1}; free some")
