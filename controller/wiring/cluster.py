"""The Ray cluster of a state folder: `up` starts it, the controller connects to it, `down` stops it."""

from __future__ import annotations

from controller.errors import BusyPort, CanaryctlError, Unreachable
from controller.settings import Settings
from serving import cluster_ray


def is_running(settings: Settings) -> bool:
    """True: the Ray cluster that `up` started accepts connections."""
    handle = _handle(settings)
    return handle is not None and cluster_ray.is_running(handle)


def start(settings: Settings) -> None:
    """Start a Ray head; remains of an earlier one are stopped first. Raises BusyPort, Unreachable."""
    stop(settings)
    try:
        handle = cluster_ray.start(cluster_ray.ClusterSettings(http_port=settings.config.ingress_port))
    except cluster_ray.PortBusy as exc:
        raise BusyPort(f"{exc} with --port") from exc
    except cluster_ray.ClusterError as exc:
        raise Unreachable(str(exc)) from exc
    settings.cluster_path.write_text(handle.to_json())


def stop(settings: Settings) -> bool:
    """Stop the cluster that `up` started, and nothing else; False: there is none."""
    handle = _handle(settings)
    if handle is None:
        return False
    try:
        cluster_ray.stop(handle)
    except cluster_ray.ClusterError as exc:
        raise CanaryctlError(str(exc)) from exc
    settings.cluster_path.unlink(missing_ok=True)
    return True


def connect(settings: Settings) -> None:
    """Connect this process to the cluster of this state folder. Raises Unreachable."""
    handle = _handle(settings)
    if handle is None:
        raise Unreachable("no Ray cluster of canaryctl runs on this host; start one: canaryctl up")
    try:
        cluster_ray.connect(handle)
    except cluster_ray.ClusterError as exc:
        raise Unreachable(str(exc)) from exc


def has_variable(settings: Settings, name: str) -> bool:
    """Whether the cluster's processes were started with this environment variable; True: it is not known."""
    handle = _handle(settings)
    return handle is None or cluster_ray.has_variable(handle, name)


def _handle(settings: Settings) -> cluster_ray.ClusterHandle | None:
    try:
        return cluster_ray.ClusterHandle.from_json(settings.cluster_path.read_text())
    except FileNotFoundError:
        return None
    except cluster_ray.ClusterError as exc:
        raise Unreachable(f"{settings.cluster_path}: {exc}") from exc
