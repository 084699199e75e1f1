"""What the database says of the services while no controller answers. It creates and migrates none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from controller.errors import CanaryctlError
from controller.quantities import percent
from controller.rollout.observation import CommandKind, ManualCommand
from controller.rollout.serialization import state_from_json
from controller.rollout.state import RolloutState
from controller.settings import Settings
from controller.spec.label import title
from controller.store.row_specs import label_of
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore


def last_known(settings: Settings, service: str | None) -> tuple[str, ...]:
    """Lines on one service (None: on all) as last stored; what keeps them from being read is a line, too."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return ()
    try:
        with closing(SqlStore(settings.database_url, may_migrate=False)) as store:
            rows = [row for row in store.services() if service in (None, row.name)]
            return tuple(line for row in rows for line in _lines(store, row))
    except CanaryctlError as exc:
        return (f"nor can the database be read: {exc}",)


def _lines(store: SqlStore, row: ServiceRow) -> Iterator[str]:
    stable = title(row.stable, label_of(store.version(row.name, row.stable)).shown)
    yield f"{row.name}, as last stored: stable {stable}{', being taken down' if row.removing else ''}"
    newest = next(iter(store.rollouts(row.name, limit=1)), None)
    if newest is not None:
        state = state_from_json(newest.state)
        asked = store.commands(newest.id, after_seq=state.commands_through)
        back = next((one for one in reversed(asked) if one.kind is CommandKind.ROLLBACK), None)
        if back is not None and not state.is_final:
            yield f"{row.name}: rollout {state.id}: {_requested(back)}"
        else:
            yield f"{row.name}: {_rollout(state)}"
    if (event := store.last_event(row.name)) is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_s))
        yield f"{row.name}: last event {at}, by {event.actor}: {event.text}"


def _requested(back: ManualCommand) -> str:
    """A rollback that waits for a controller. By `--direct`, the route table has it already."""
    at = time.strftime("%H:%M:%S", time.localtime(back.at_s))
    reason = f" ({back.reason})" if back.reason else ""
    return (
        f"rollback requested at {at} by {back.actor}{reason}; its canary gets no traffic once the routers "
        "know, and the next controller unloads it: canaryctl up"
    )


def _rollout(state: RolloutState) -> str:
    phase = state.phase.value.replace("_", " ")
    if state.is_final:
        return f"newest rollout {state.id} ended, {phase}: {state.reason}"
    canary = f"canary {title(state.canary.id, state.canary.label)} at {percent(state.weight_bp)}"
    routers = "; the routers return its traffic to stable within a minute" if state.weight_bp else ""
    return f"rollout {state.id} in {phase}, {canary}{routers}"
