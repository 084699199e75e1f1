"""Addresses of endpoints' names, looked up in a thread of its own for each host.

Rules:
1. A lookup blocks its thread, for 10 s where a name server is silent. One host has one thread at most, which
   all who ask wait for, so no name's lookup waits for another's (the event loop's own threads are few).
2. What was found is good for FRESH_S. After that it is looked up again; where that takes longer than
   PATIENCE_S or the name server fails, what was found last counts, for STALE_S. That a name does not exist is
   an answer, and ends that.
3. An address that is written as one needs no lookup.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import TypeAlias

from serving.clock import boot_s

FRESH_S = 1.0
PATIENCE_S = 1.0
STALE_S = 600.0
NAMES_LIMIT = 1024  # that are remembered

AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
Lookup: TypeAlias = Callable[[str], list[AddressInfo]]


def system_lookup(host: str) -> list[AddressInfo]:
    """What the system finds for a host, with port 0; blocks. Raises OSError, or ValueError for no name."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return [one for one in found if one[0] in (socket.AF_INET, socket.AF_INET6)]  # type: ignore[misc]


class _Name:
    """What is known of one host."""

    __slots__ = ("at_s", "found", "running")

    def __init__(self) -> None:
        self.found: list[AddressInfo] = []
        self.at_s = 0.0  # of what was found
        self.running: asyncio.Future[list[AddressInfo]] | None = None


class Resolver:
    """The names of a router's endpoints. Use it in one event loop."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._names: dict[str, _Name] = {}

    async def addresses(self, host: str, port: int) -> list[AddressInfo]:
        """The addresses of a host, best first; at least one. Raises OSError, or ValueError for no name."""
        if (literal := _literal(host, port)) is not None:
            return [literal]
        if len(self._names) >= NAMES_LIMIT and host not in self._names:
            self._names = {name: one for name, one in self._names.items() if one.running is not None}
        name = self._names.setdefault(host, _Name())
        now_s = boot_s()
        if not name.found or now_s - name.at_s >= FRESH_S:
            await self._renew(host, name, may_be_stale=bool(name.found) and now_s - name.at_s < STALE_S)
        return [(*one[:4], (one[4][0], port, *one[4][2:])) for one in name.found]

    async def _renew(self, host: str, name: _Name, *, may_be_stale: bool) -> None:
        running = name.running or self._begin(host, name)
        try:
            # Shielded: others wait for the same lookup.
            await asyncio.wait_for(asyncio.shield(running), PATIENCE_S if may_be_stale else None)
        except TimeoutError:
            if not may_be_stale:
                raise
        except socket.gaierror as exc:
            if not may_be_stale or exc.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                name.found = []
                raise
        if not name.found:
            raise socket.gaierror(socket.EAI_NONAME, "no address of IPv4 or IPv6")

    def _begin(self, host: str, name: _Name) -> asyncio.Future[list[AddressInfo]]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def end(found: list[AddressInfo] | None, error: BaseException | None) -> None:
            name.running = None
            if error is not None:
                future.set_exception(error)
                future.exception()  # perhaps nobody waits any more
            else:
                name.found, name.at_s = found or [], boot_s()
                future.set_result(name.found)

        def work() -> None:
            found: list[AddressInfo] | None = None
            error: BaseException | None = None
            try:
                found = self._lookup(host)
            except Exception as exc:  # noqa: BLE001 - raised where it is waited for
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(end, found, error)

        try:
            threading.Thread(target=work, name=f"lookup {host}", daemon=True).start()
        except RuntimeError as exc:  # the system has no more threads
            raise OSError(f"no thread to look up {host}: {exc}") from exc
        name.running = future
        return future


def _literal(host: str, port: int) -> AddressInfo | None:
    """The address that is written as one; None: it is a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if "%" in host:
        return None  # with a zone, which the system reads
    if address.version == 4:
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0)
