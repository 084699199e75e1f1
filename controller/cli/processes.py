"""Processes on this host: start and stop the Ray cluster and the detached controller.

Invariants: every check precedes the first start; what is already running is left alone; only processes
recorded in the state folder are ever stopped.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from controller.cli.client import Client
from controller.errors import BusyPort, CanaryctlError, Conflict, Unreachable
from controller.settings import Settings, save_config
from serving.loopback import is_free
from serving.own_programs import environment_anywhere, module_command

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
PAUSE_S = 0.1
MAX_LOG_BYTES = 50 << 20  # of controller.log, when a controller starts


@contextmanager
def exclusive_access(settings: Settings) -> Iterator[None]:
    """Hold the state folder's lock. Raises Conflict when another `up` or `down` holds it."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        lock = _opened(settings.home / "up.lock")
        if lock is not None:
            stack.enter_context(lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Conflict(f"another canaryctl up or down is using {settings.home}; wait for it") from exc
        yield


def _opened(lock: Path) -> IO[str] | None:
    """The file; on a disk that has become read-only as it is, None: without it. `down` ends what serves all
    the same, which no other folder's `down` could."""
    try:
        return lock.open("w")
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
    return lock.open() if lock.exists() else None


def start(settings: Settings, *, ingress_port: int | None, api_port: int | None) -> Settings:
    """Start the cluster and the controller unless they run already; the settings in effect.

    Raises BusyPort, Unreachable, and Conflict when a running one uses another port than the requested.
    """
    from controller.store.sql import SqlStore
    from controller.wiring import cluster

    has_cluster, has_api = cluster.is_running(settings), _own_health(settings) is not None
    settings = _with_ports(settings, ingress_port, api_port, has_ingress=has_cluster, has_api=has_api)
    health = _own_health(settings)
    if health is None and not is_free(settings.config.api_port):
        owner = "another program" if Client(settings).health() is None else "another canaryctl"
        raise _busy(settings, settings.config.api_port, owner, "--api-port")
    if not has_cluster:
        if not is_free(settings.config.ingress_port):
            raise _busy(settings, settings.config.ingress_port, "another program", "--port")
        if health is not None:
            stop_controller(settings)  # it belongs to a cluster that is gone
            health = None
        settings = save_config(settings, settings.config)
        SqlStore(settings.database_url).close()  # while nothing serves; a controller creates none
        cluster.start(settings)
    if health is None:
        settings = save_config(settings, settings.config)
        try:
            _start_controller(settings)
        except CanaryctlError:
            if not has_cluster:
                cluster.stop(settings)  # started by this command, and nothing else would stop it
            raise
    return settings


@dataclass(frozen=True, slots=True)
class Running:
    """What of a state folder runs already."""

    has_cluster: bool
    has_controller: bool
    is_replaced: bool  # the controller has another database open than the one in its place now


def running(settings: Settings) -> Running:
    """What runs now."""
    from controller.wiring import cluster

    health = _own_health(settings)
    is_replaced = health is not None and health.get("lost_database") == "replaced"
    return Running(cluster.is_running(settings), health is not None, is_replaced)


def stop_without_log(settings: Settings) -> bool:
    """Stop a controller whose database has lost its log; as it ends it writes what it holds into the file,
    which nobody else MUST have opened before. False: there is none."""
    if (_own_health(settings) or {}).get("lost_database") != "log":
        return False
    stop_controller(settings)
    return True


def stop_started(settings: Settings, before: Running) -> None:
    """Stop what was started since `before`; a controller alone, without its cluster, serves nobody either."""
    if not before.has_cluster:
        stop(settings)
    elif not before.has_controller:
        stop_controller(settings)


def stop(settings: Settings) -> None:
    """Stop the controller and the cluster."""
    from controller.wiring import cluster

    stop_controller(settings)
    cluster.stop(settings)


def stop_controller(settings: Settings) -> None:
    """Stop this state folder's controller, if it answers. Raises Unreachable where it is not the process that
    the folder has recorded: another host's, or a container's, may have the number of any process here."""
    from controller.wiring.own_process import is_own

    health = _own_health(settings)
    if health is None:
        return
    pid = int(health["pid"])
    if not is_own(settings, pid):
        raise Unreachable(
            f"the controller at {settings.api_url} is not the process {pid} of this host that "
            f"{settings.process_path} names: it runs in a container or elsewhere; stop it there, then try "
            "again"
        )
    _signal(pid, signal.SIGTERM)
    if not _wait_until(lambda: not _is_alive(pid), timeout_s=STOP_TIMEOUT_S):
        if is_own(settings, pid):
            _signal(pid, signal.SIGKILL)
        _wait_until(lambda: not _is_alive(pid), timeout_s=STOP_TIMEOUT_S)


def _signal(pid: int, number: signal.Signals) -> None:
    """Raises CanaryctlError for another user's process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as exc:
        raise _foreign(pid) from exc


def _foreign(pid: int) -> CanaryctlError:
    return CanaryctlError(f"controller {pid} belongs to another user; stop it as that user")


def restart_controller(settings: Settings) -> None:
    """Stop this state folder's controller and start it in this process's environment; traffic goes on."""
    stop_controller(settings)
    _start_controller(settings)


def _own_health(settings: Settings) -> Mapping[str, Any] | None:
    """Health of this state folder's controller; None: none answers, or it belongs to another folder."""
    client = Client(settings)
    health = client.health()
    return health if health is not None and client.accepts_token() else None


def _busy(settings: Settings, port: int, owner: str, option: str) -> BusyPort:
    return BusyPort(f"port {port} on {settings.host} is taken by {owner}; choose another with {option}")


def _with_ports(
    settings: Settings,
    ingress_port: int | None,
    api_port: int | None,
    *,
    has_ingress: bool,
    has_api: bool,
) -> Settings:
    requested = {"ingress_port": ingress_port, "api_port": api_port}
    in_use = {"ingress_port": has_ingress, "api_port": has_api}
    changes = {name: port for name, port in requested.items() if port is not None}
    for name, port in changes.items():
        current = getattr(settings.config, name)
        if in_use[name] and port != current:
            kind = name.partition("_")[0]
            raise Conflict(
                f"the {kind} port is {current} and in use; to change it to {port}, first run canaryctl down"
            )
    return settings.model_copy(update={"config": settings.config.model_copy(update=changes)})


def _start_controller(settings: Settings) -> None:
    _rotate(settings.log_path)
    with settings.log_path.open("ab") as log:
        log.seek(0, os.SEEK_END)
        offset = log.tell()
        process = subprocess.Popen(
            module_command("controller.cli", "controller"),
            env={**environment_anywhere(os.environ), "CANARYCTL_HOME": str(settings.home)},
            cwd=settings.home,  # it stays, which the folder of a job or a work tree may not
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # ^C in the terminal must not reach the controller
        )
    client = Client(settings)

    def is_ready() -> bool:
        if process.poll() is not None:
            raise Unreachable(
                f"the controller exited immediately ({_last_line(settings, offset)}); see {settings.log_path}"
            )
        health = client.health()
        return health is not None and bool(health["leading"])

    if not _wait_until(is_ready, timeout_s=START_TIMEOUT_S):
        process.terminate()
        raise Unreachable(
            f"the controller did not answer within {START_TIMEOUT_S:g} s; see {settings.log_path}"
        )


def _rotate(log: Path) -> None:
    """Put a large log aside, in place of the one before; a controller that runs keeps its own open."""
    try:
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
    except FileNotFoundError:
        return


def _last_line(settings: Settings, offset: int) -> str:
    with settings.log_path.open("rb") as log:
        log.seek(offset)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it logged nothing"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError as exc:
        raise _foreign(pid) from exc
    # A child of this process that exited stays a zombie until it is waited for.
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return True


def _wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """True once the condition holds; False: it did not within the timeout."""
    ends_at_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_at_s:
        if condition():
            return True
        time.sleep(PAUSE_S)
    return False
