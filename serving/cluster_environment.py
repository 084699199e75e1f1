"""Environment variables of a Ray cluster: the token of its drivers, loopback alone, the ports of Serve."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

_before: dict[str, str | None] = {}  # what `enter` replaced


def enter(folder: Path) -> None:
    """This process's own variables become those of a driver of the cluster in this folder, until `leave`."""
    variables = of_driver(folder)
    for name in variables:
        _before.setdefault(name, os.environ.get(name))
    os.environ.update(variables)


def leave() -> None:
    """As before `enter`; another Ray begun from here would look for a token that may be gone."""
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()


def of_driver(folder: Path) -> dict[str, str]:
    """Of a process that connects to the cluster in this folder."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's default (15) would let every other process take precedence over requests.
        "RAY_worker_niceness": "0",
        # Ray's single-node mode: every server listens on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def of_cluster(folder: Path, haproxy_ports: Sequence[int], longest_stream_s: int) -> Mapping[str, str]:
    """Of the cluster's own processes. haproxy_ports: of its metrics, its statistics and Serve's fallback."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    metrics_port, statistics_port, fallback_port = haproxy_ports
    # Ports of replicas behind HAProxy: below the ephemeral range, and random so that clusters seldom collide.
    first = random.SystemRandom().randrange(20_000, 31_000)
    return {
        **of_driver(folder),
        "PYTHONPATH": root if not path else f"{root}{os.pathsep}{path}",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(longest_stream_s),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 500),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "h" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "h" / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "h" / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "h"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "h" / "server-state"),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
    }
