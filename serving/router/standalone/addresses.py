"""Addresses of servers in one spelling, which tells those that are the same. Pure: no name is resolved."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from serving.targets import Endpoint

_LOOPBACK = "127.0.0.1"
# As inet_aton reads an address of IPv4: of one to four numbers, decimal, octal or hexadecimal.
_NUMBERS = re.compile(r"(?:0x[0-9a-f]+|[0-9]+)(?:\.(?:0x[0-9a-f]+|[0-9]+)){0,3}")


def server_of(url: str) -> tuple[str, str, int, str]:
    """What requests to this base URL reach: scheme, host, port and base path. Raises ValueError.

    Check: http://H and http://h.:80/v1 are the same, and so are http://localhost:1 and http://0.0.0.0:1.
    """
    endpoint = Endpoint.parsed(url)
    host, port = endpoint.address
    return endpoint.scheme, _reached(host), port, endpoint.base


def is_one_of(url: str, listening: Iterable[str]) -> bool:
    """Whether a request to this URL reaches one of these addresses (host:port) that are listened at."""
    _, host, port, _ = server_of(url)
    for one in listening:
        own, _, own_port = one.rpartition(":")
        if int(own_port) != port:
            continue
        if host == _reached(own) or (_is_any(own) and host.startswith("127.")):
            return True
    return False


def _reached(host: str) -> str:
    """The host that a connection to this one reaches: one name of loopback, IPv4 as four numbers."""
    host = host.lower().strip("[]").removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return _LOOPBACK
    address = _address(host)
    if address is None:
        return host
    return _LOOPBACK if address.is_unspecified or str(address) == "::1" else str(address)


def _is_any(host: str) -> bool:
    address = _address(host.strip("[]"))
    return address is not None and address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if _NUMBERS.fullmatch(host):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
