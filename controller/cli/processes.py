"""What `up` starts and `down` ends on this host: a Ray cluster and the detached controller.

Invariants: everything is checked before anything is started; what runs already is left as it is; only what
the state folder names is ever ended.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from controller.cli.client import Client
from controller.errors import BusyPort, CanaryctlError, Conflict, Unreachable
from controller.settings import Settings, save_config
from serving.loopback import is_free

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0


@contextmanager
def one_at_a_time(settings: Settings) -> Iterator[None]:
    """Hold the state folder's lock. Raises Conflict when another `up` or `down` has it."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"another canaryctl up or down works in {settings.home}; wait for it") from exc
        yield


def start(settings: Settings, *, ingress_port: int | None, api_port: int | None) -> Settings:
    """A cluster and a controller that answer; those that do already are left alone. Returns their settings.

    Raises BusyPort, Conflict when other ports are asked for than the present ones, Unreachable.
    """
    from controller.wiring import cluster

    has_cluster, has_api = cluster.is_running(settings), _own_health(settings) is not None
    settings = _with_ports(settings, ingress_port, api_port, has_ingress=has_cluster, has_api=has_api)
    health = _own_health(settings)
    if health is None and not is_free(settings.config.api_port):
        holder = "another program" if Client(settings).health() is None else "another canaryctl"
        raise BusyPort(
            f"port {settings.config.api_port} on {settings.host} is taken by {holder}; "
            "choose another with --api-port"
        )
    if not has_cluster:
        if not is_free(settings.config.ingress_port):
            raise BusyPort(
                f"port {settings.config.ingress_port} on {settings.host} is taken by another program; "
                "choose another with --port"
            )
        if health is not None:
            stop_controller(settings)  # it belongs to a cluster that is gone
            health = None
        settings = save_config(settings, settings.config)
        cluster.start(settings)
    if health is None:
        settings = save_config(settings, settings.config)
        try:
            _start_controller(settings)
        except CanaryctlError:
            if not has_cluster:
                cluster.stop(settings)  # nobody else would ever end what this command started
            raise
    return settings


def stop_controller(settings: Settings) -> bool:
    """End this state folder's controller; False: none of its own answers."""
    health = _own_health(settings)
    if health is None:
        return False
    pid = int(health["pid"])
    os.kill(pid, signal.SIGTERM)
    if not _until(lambda: not _is_alive(pid), timeout_s=STOP_TIMEOUT_S):
        os.kill(pid, signal.SIGKILL)
        _until(lambda: not _is_alive(pid), timeout_s=STOP_TIMEOUT_S)
    return True


def _own_health(settings: Settings) -> Mapping[str, Any] | None:
    """What this state folder's controller says; None: none answers, or it is another folder's."""
    client = Client(settings)
    health = client.health()
    return health if health is not None and client.is_ours() else None


def _with_ports(
    settings: Settings,
    ingress_port: int | None,
    api_port: int | None,
    *,
    has_ingress: bool,
    has_api: bool,
) -> Settings:
    wanted = {"ingress_port": ingress_port, "api_port": api_port}
    in_use = {"ingress_port": has_ingress, "api_port": has_api}
    for name, port in wanted.items():
        present = getattr(settings.config, name)
        if in_use[name] and port is not None and port != present:
            kind = name.partition("_")[0]
            raise Conflict(f"{kind} port is {present} and in use; canaryctl down first to move it to {port}")
    changes = {name: port for name, port in wanted.items() if port is not None}
    return settings.model_copy(update={"config": settings.config.model_copy(update=changes)})


def _start_controller(settings: Settings) -> None:
    with settings.log_path.open("ab") as log:
        log.seek(0, os.SEEK_END)
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "controller.cli", "controller"],
            env={**os.environ, "CANARYCTL_HOME": str(settings.home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a ^C in the terminal is for the command, not for the controller
        )
    client = Client(settings)

    def is_ready() -> bool:
        if process.poll() is not None:
            raise Unreachable(f"the controller ended at once ({_last_line(settings, begin)}); "
                              f"look into {settings.log_path}")  # fmt: skip
        health = client.health()
        return health is not None and bool(health["leading"])

    if not _until(is_ready, timeout_s=START_TIMEOUT_S):
        process.terminate()
        raise Unreachable(
            f"the controller did not answer within {START_TIMEOUT_S:g} s; look into {settings.log_path}"
        )


def _last_line(settings: Settings, begin: int) -> str:
    with settings.log_path.open("rb") as log:
        log.seek(begin)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError as exc:
        raise CanaryctlError(f"controller {pid} belongs to another user; end it as that user") from exc
    # Our own child that ended is a zombie until it is waited for.
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return True


def _until(holds: Callable[[], bool], *, timeout_s: float, pause_s: float = 0.1) -> bool:
    ends_at_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_at_s:
        if holds():
            return True
        time.sleep(pause_s)
    return False
