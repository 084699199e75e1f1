"""What users get by the route tables, where no database tells. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.errors import Unreachable
from controller.quantities import FULL_BP, percent
from controller.settings import Settings
from controller.wiring import cluster
from serving.fleet.types import VersionStatus
from serving.messages import SplitStatus as TableStatus

TIMEOUT_S = 2.0  # of one question to Ray
BRIEF_S = 0.25  # of one that a rollback waits for
RETRY_S = 0.1
NOT_KNOWN = "so it is not known what users get; try again"


@dataclass(frozen=True, slots=True)
class Served:
    """What the route table of one service says."""

    service: str
    split: TableStatus | None  # None: the table does not answer

    @property
    def serves(self) -> str | None:
        """The version that gets every request, or what the canary leaves; None: none is in service."""
        split = self.split
        if split is None:
            return None
        return split.canary if split.canary is not None and split.weight_bp == FULL_BP else split.stable


def serving_now(
    service: str,
    table_of: Callable[[str], TableStatus | None],
    versions_of: Callable[[str], Sequence[VersionStatus] | None],
    tables: Callable[[], Sequence[str]],
    *,
    wait_s: float = TIMEOUT_S,
) -> str | None:
    """The version that users get under this name, or that is loaded for it; None: it is free.

    table_of, versions_of: None where that does not answer. tables: the names that have a route table. Raises
    Unreachable where it is not known after `wait_s`: the name may be in use.
    """
    ends_at_s = time.monotonic() + wait_s
    while True:
        table, versions = table_of(service), versions_of(service)
        if table is not None and table.stable is not None:
            return table.stable
        names = None if table is not None else listed(tables)
        if versions is not None and (table is not None or (names is not None and service not in names)):
            return next((one.version for one in versions if one.phase != "gone"), None)
        if time.monotonic() >= ends_at_s:
            what = "the fleet" if versions is None else f"the route table of {service}"
            raise Unreachable(
                f"{what} does not answer, so it is not known whether {service} is served already; try again; "
                "if it stays so, see docs/at-3-am.md"
            )
        time.sleep(RETRY_S)


def listed(tables: Callable[[], Sequence[str]]) -> Sequence[str] | None:
    """None: Ray does not answer."""
    try:
        return tables()
    except Exception:  # noqa: BLE001 - whoever asks says that it is not known
        return None


def served_lines(settings: Settings, service: str | None) -> tuple[str, ...]:
    """A line for one service (None: for each), also where its table, or Ray, does not answer; none without
    a cluster."""
    tables = read_tables(settings, service)
    if tables is None:
        is_up = settings.cluster_path.exists()
        return (f"the route tables do not answer, {NOT_KNOWN}",) if is_up else ()
    return tuple(_line(one.service, one.split) for one in tables)


def read_tables(settings: Settings, service: str | None, *, wait_s: float = 0.0) -> tuple[Served, ...] | None:
    """The splits of the tables; None: Ray does not answer, or there is no cluster.

    wait_s: how long it is asked again, until all answer; a host that is busy answers late.
    """
    ends_at_s = time.monotonic() + wait_s
    while settings.cluster_path.exists():
        tables = _read_once(settings, service)
        is_whole = tables is not None and all(one.split is not None for one in tables)
        if is_whole or time.monotonic() >= ends_at_s:
            return tables
        time.sleep(RETRY_S)
    return None


def _read_once(settings: Settings, service: str | None) -> tuple[Served, ...] | None:
    try:
        cluster.connect(settings)
        from serving.table.open_tables_ray import OpenTables
        from serving.table.traffic_ray import RayTraffic

        traffic = RayTraffic(timeout_s=TIMEOUT_S)
        names = OpenTables().services(TIMEOUT_S) if service is None else (service,)
        splits = {name: traffic.observe(name) for name in names}
    except Exception:  # noqa: BLE001 - these lines stand beside an error that says what is wrong
        return None
    return tuple(Served(name, split) for name, split in splits.items())


def _line(service: str, split: TableStatus | None) -> str:
    if split is None:
        return f"the route table of {service} does not answer, {NOT_KNOWN}"
    head = f"{service}, by its route table: "
    if split.stable is None and not split.canary:
        return f"{head}no version has been put into service"
    if split.canary is None or not split.weight_bp:
        return f"{head}100 % of requests to {split.stable}"
    rollout = f" (rollout {split.rollout})" if split.rollout else ""
    if split.weight_bp == FULL_BP:
        return f"{head}100 % of requests to {split.canary}{rollout}"
    stable, canary = percent(FULL_BP - split.weight_bp), percent(split.weight_bp)
    return f"{head}{stable} of requests to {split.stable}, {canary} to {split.canary}{rollout}"
