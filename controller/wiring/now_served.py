"""What users get by the route tables, where no database tells. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from controller.errors import Unreachable
from controller.quantities import FULL_BP, percent
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.settings import Settings
from controller.store.sql import SqlStore
from controller.wiring import cluster
from serving.fleet.types import VersionStatus
from serving.messages import SplitStatus as TableStatus

TIMEOUT_S = 2.0
RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class Served:
    """The split of one service."""

    service: str
    stable: str | None  # None: no version has been put into service yet
    canary: str | None  # None: no canary in the table
    weight_bp: int
    rollout: str  # empty: none

    @property
    def serves(self) -> str | None:
        """The version that gets every request, or what the canary leaves; None: none is in service."""
        return self.canary if self.canary is not None and self.weight_bp == FULL_BP else self.stable


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
        names = None if table is not None else _listed(tables)
        if versions is not None and (table is not None or (names is not None and service not in names)):
            return next((one.version for one in versions if one.phase != "gone"), None)
        if time.monotonic() >= ends_at_s:
            what = "the fleet" if versions is None else f"the route table of {service}"
            raise Unreachable(
                f"{what} does not answer, so it is not known whether {service} is served already; try again; "
                "if it stays so, see docs/at-3-am.md"
            )
        time.sleep(RETRY_S)


def _listed(tables: Callable[[], Sequence[str]]) -> Sequence[str] | None:
    """None: Ray does not answer."""
    try:
        return tables()
    except Exception:  # noqa: BLE001 - whoever asks says that it is not known
        return None


def served_lines(settings: Settings, service: str | None) -> tuple[str, ...]:
    """A line for one service (None: for each); none where the tables cannot be read."""
    return tuple(map(_line, read_tables(settings, service) or ()))


def read_tables(settings: Settings, service: str | None) -> tuple[Served, ...] | None:
    """The splits of the tables that answer; None: Ray does not."""
    if not settings.cluster_path.exists():
        return None
    try:
        cluster.connect(settings)
        from serving.table.open_tables_ray import open_services
        from serving.table.traffic_ray import RayTraffic

        traffic = RayTraffic(timeout_s=TIMEOUT_S)
        names = open_services() if service is None else (service,)
        splits = {name: traffic.observe(name) for name in names}
    except Exception:  # noqa: BLE001 - these lines stand beside an error that says what is wrong
        return None
    return tuple(
        Served(name, split.stable, split.canary, split.weight_bp, split.rollout)
        for name, split in splits.items()
        if split is not None
    )


def older_copies(settings: Settings) -> tuple[str, ...]:
    """A line for each service whose users get a version that its stored state does not lead to: the database
    is an older copy, from before a promotion or an undo. Empty: none is, or the tables cannot be read."""
    with closing(SqlStore(settings.database_url, may_migrate=False, may_create=False)) as store:
        stored = {row.name: row.stable for row in store.services()}
        tables = read_tables(settings, None) if stored else None
        return tuple(
            f"{one.service}: users get {one.serves} by the route table, but by this database {stable}"
            for one in tables or ()
            if (stable := stored.get(one.service)) is not None
            and one.serves not in (None, stable)
            and not _leads_to(store, one.service, str(one.serves))
        )


def _leads_to(store: SqlStore, service: str, version: str) -> bool:
    """Whether a rollout that has not ended is of this version; True, too, of one that cannot be read."""
    newest = next(iter(store.rollouts(service, limit=1)), None)
    if newest is None or newest.ended_at_s is not None:
        return False
    try:
        state = state_from_json(newest.state)
    except UnreadableState:
        return True
    return version in (state.stable.id, state.canary.id)


def _line(served: Served) -> str:
    head = f"{served.service}, by its route table: "
    if served.stable is None and not served.canary:
        return f"{head}no version has been put into service"
    if served.canary is None or not served.weight_bp:
        return f"{head}100 % of requests to {served.stable}"
    rollout = f" (rollout {served.rollout})" if served.rollout else ""
    if served.weight_bp == FULL_BP:
        return f"{head}100 % of requests to {served.canary}{rollout}"
    stable, canary = percent(FULL_BP - served.weight_bp), percent(served.weight_bp)
    return f"{head}{stable} of requests to {served.stable}, {canary} to {served.canary}{rollout}"
