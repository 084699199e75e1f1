"""Who listens on a port of this host: the token goes to a controller of one's own user or of root's.

Any user may bind a free port above 1024 while the controller is down, and answer as it does.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from controller.errors import Unreachable
from controller.quantities import whole

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = "0A"
_LOCAL = ("127.0.0.1", "::1", "localhost")


def require_own_listener(url: str, home: Path) -> None:
    """Raises Unreachable when another user listens on the port of this loopback URL.

    home: the state folder, whose owner may run the controller. A host without /proc/net tells nothing.
    """
    parts = urlsplit(url)
    if parts.hostname not in _LOCAL or parts.port is None:
        return
    try:
        trusted = {0, os.getuid(), home.stat().st_uid}
    except OSError:
        trusted = {0, os.getuid()}
    if others := listener_uids(parts.port) - trusted:
        raise Unreachable(
            f"port {parts.port} is held by another user (uid {min(others)}), so it was not sent the token; "
            "end that program, or use another port: canaryctl up --api-port PORT"
        )


def listener_uids(port: int) -> set[int]:
    """User ids of the sockets that listen on the port; empty: none does, or it cannot be told."""
    found = set()
    for table in TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines if f":{port:04X} " in line):
            if len(fields) > 7 and fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(whole(fields[7]) or 0)
    return found
