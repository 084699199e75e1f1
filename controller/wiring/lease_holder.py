"""Holder of the lease: which process of which host it is, and whether that process still runs."""

from __future__ import annotations

import os
import socket

import psutil

from controller.quantities import whole
from controller.store.sql import SqlStore
from serving.process_start import boot_id, start_ticks


def lease_holder() -> str:
    """This process as `host,pid,start`, which a reused pid does not match.

    Not with slashes: for earlier releases another start is a dead process, but another host is left alone.
    """
    pid = os.getpid()
    return f"{_host()},{pid},{start_ticks(pid)}"


def host_of(holder: str) -> tuple[str, str]:
    """Name and boot id of a holder's host; empty where they are not known."""
    name, _, rest = holder.partition("/")[0].partition(",")
    return name, rest.partition(",")[0]


def own_pid(holder: str) -> int | None:
    """The process of this host that a holder is; None: it is another host's."""
    host, pid, _ = _process_of(holder)
    return pid if host == _host() else None


def process_here(holder: str) -> tuple[int, int] | None:
    """Pid and start of a holder that is of this boot and process table; None: it is not, or not known."""
    host, pid, start = _process_of(holder)
    return (pid, start) if host == _host() and pid is not None and start is not None else None


def _host() -> str:
    """Name of this boot of this host and of the process table that is seen from here.

    Two hosts, or two containers of one host, may have the same host name, and each has a process 7.
    """
    table = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()},{boot_id()},{table}"


def release_orphaned_lease(store: SqlStore) -> None:
    """Release the lease if its holder is a process of this host that no longer exists."""
    lease = store.lease()
    host, pid, start = _process_of(lease.holder)
    if host != _host() or pid is None:
        return
    try:
        found = start_ticks(pid)
    except psutil.AccessDenied:  # there is one, of which nothing is known: its lease has a term
        return
    if found is None or start not in (None, found):
        store.release_lease(lease.token)


def _process_of(holder: str) -> tuple[str, int | None, int | None]:
    """Host, pid and start of a holder; None: not known.

    Earlier releases wrote `host/pid/start time`: by the wall clock, which may have been set since.
    """
    if "/" in holder:
        host, pid, _ = (*holder.split("/", 2), "", "")[:3]
        return host, whole(pid), None
    host, pid, start = ("", "", *holder.rsplit(",", 2))[-3:]
    return host, whole(pid), whole(start)
