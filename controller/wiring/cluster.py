"""The Ray cluster of a state folder: `up` starts it, the controller connects to it, `down` stops it."""

from __future__ import annotations

from controller.errors import BadInput, BusyPort, CanaryctlError, Unreachable
from controller.private_file import read_private, write_private
from controller.settings import Settings
from controller.wiring.elsewhere import no_cluster
from serving import cluster_ray


def is_running(settings: Settings) -> bool:
    """True: the Ray cluster that `up` started accepts connections."""
    handle = _handle(settings)
    return handle is not None and cluster_ray.is_running(handle)


def start(settings: Settings) -> None:
    """Start a Ray head; remains of an earlier one are stopped first. Raises BusyPort, Unreachable, OSError
    where it cannot be recorded; nothing runs then."""
    stop(settings)
    path, wanted = settings.cluster_path, str(settings.home)
    ray = cluster_ray.ClusterSettings(http_port=settings.config.ingress_port, owner=wanted)
    try:
        cluster_ray.start(ray, record=lambda handle: write_private(path, handle.to_json()))
    except BaseException as exc:
        # What was interrupted a second time may still run: `down` ends it.
        if not cluster_ray.folders_of(wanted):
            path.unlink(missing_ok=True)
        if isinstance(exc, cluster_ray.PortBusy):
            raise BusyPort(f"{exc} with --port") from exc
        if isinstance(exc, cluster_ray.ClusterError):
            raise Unreachable(str(exc)) from exc
        raise


def stop(settings: Settings) -> bool:
    """Stop the cluster that `up` started, and nothing else; False: there is none. A record that cannot be
    read is set aside, and the cluster found by its processes."""
    try:
        handle = _handle(settings)
    except Unreachable:
        handle = None
    if handle is None and not settings.cluster_path.exists():
        return False
    folders = cluster_ray.folders_of(str(settings.home))
    found = [cluster_ray.ClusterHandle("", 0, folder, ()) for folder in sorted(folders)]
    try:
        for one in found if handle is None else [handle]:
            cluster_ray.stop(one)
    except cluster_ray.ClusterError as exc:
        raise CanaryctlError(str(exc)) from exc
    if handle is None:
        settings.cluster_path.replace(settings.cluster_path.with_suffix(".unreadable"))
    settings.cluster_path.unlink(missing_ok=True)
    return True


def connect(settings: Settings) -> None:
    """Connect this process to the cluster of this state folder. Raises Unreachable."""
    handle = _handle(settings)
    if handle is None:
        raise Unreachable(no_cluster(settings))
    try:
        cluster_ray.connect(handle)
    except cluster_ray.ClusterError as exc:
        raise Unreachable(str(exc)) from exc


def has_variable(settings: Settings, name: str) -> bool:
    """Whether the cluster's processes were started with this environment variable; True: it is not known."""
    handle = _handle(settings)
    return handle is None or cluster_ray.has_variable(handle, name)


def _handle(settings: Settings) -> cluster_ray.ClusterHandle | None:
    remedy = "to end what it was of, then start anew: canaryctl down, then canaryctl up"
    try:
        text = read_private(settings.cluster_path, remedy=remedy)
        return cluster_ray.ClusterHandle.from_json(text) if text is not None else None
    except BadInput as exc:
        raise Unreachable(str(exc)) from exc
    except cluster_ray.ClusterError as exc:
        raise Unreachable(f"{settings.cluster_path}: {exc}; {remedy}") from exc
