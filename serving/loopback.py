"""Addresses to listen on: free ports of the loopback address, where every server listens by default."""

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


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to this address, for a server. Raises OSError, OverflowError."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError):
        listening.close()
        raise
    return listening


def free_ports(count: int) -> list[int]:
    """`count` different ports that were free when checked. Raises OSError when there are fewer."""
    chosen: list[int] = []
    tried: set[int] = set()
    # A generator of its own, seeded by the system: a caller that seeds `random` changes no port.
    draws = random.Random()
    while len(tried) < len(PORTS):
        if len(chosen) == count:
            return chosen
        port = draws.choice(PORTS)
        if port not in tried and is_free(port):
            chosen.append(port)
        tried.add(port)
    raise OSError(f"fewer than {count} free ports of {HOST} in {PORTS.start}-{PORTS.stop - 1}; free some")
