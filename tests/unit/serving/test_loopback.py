"""Free ports of this host."""

from __future__ import annotations

import socket
from pathlib import Path

from serving.loopback import free_ports, is_free


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(8)

    assert len(set(ports)) == 8
    assert all(is_free(port) for port in ports)


def test_no_outgoing_connection_takes_a_free_port_before_its_server_starts() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert max(free_ports(200)) < lowest


def test_a_port_with_a_listening_server_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)

    assert is_free(port)
