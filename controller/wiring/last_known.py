"""What the database says of the services while no controller answers. It creates and migrates none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from controller.errors import BadInput, CanaryctlError, LostDatabase, Unreachable
from controller.evidence.snapshot import stored_status
from controller.quantities import percent
from controller.rollout.observation import CommandKind, ManualCommand
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.rollout.state import RolloutState
from controller.settings import Settings
from controller.spec.label import title
from controller.store.database import shown_url
from controller.store.database_url import parsed_url
from controller.store.read_only import read_only_line
from controller.store.row_specs import label_of
from controller.store.rows import RolloutRow, ServiceRow
from controller.store.sql import SqlStore
from controller.store.sqlite_files import sqlite_file
from controller.views.models import RolloutView
from controller.views.rollout import rollout_view, unread_view


def last_known(settings: Settings, service: str | None) -> tuple[str, ...]:
    """Lines on one service (None: on all) as last stored; what keeps them from being read is a line, too."""

    def lines(store: SqlStore) -> list[str]:
        rows = [row for row in store.services() if service in (None, row.name)]
        return [line for row in rows for line in _lines(store, row)]

    return _read(settings, lines)


def known_history(
    settings: Settings, service: str | None, *, limit: int, rollout: str | None = None
) -> tuple[tuple[RolloutView, ...], tuple[str, ...]]:
    """Rollouts of one service (None: of all) as last stored, newest first, and lines on what keeps them from
    being read. rollout: this one alone."""
    views: list[RolloutView] = []

    def read(store: SqlStore) -> list[str]:
        names = [service] if service is not None else [row.name for row in store.services()]
        rows = [row for name in names for row in store.rollouts(name, limit=limit)]
        views.extend(_view(store, row) for row in rows if rollout in (None, row.id))
        is_missing = rollout is not None and not views
        return [f"the database has no rollout {rollout} among the newest {limit}"] if is_missing else []

    lines = _read(settings, read)
    return tuple(views), lines


def lost_database(settings: Settings, *, needs_service: bool = True) -> str | None:
    """What is wrong with a database that a cluster was started with and that holds nothing, as one clause;
    None: nothing, or it cannot be told. needs_service: one without a service holds nothing."""
    if not settings.cluster_path.exists():
        return None
    try:
        with closing(_opened(settings)) as store:
            holds_any = not needs_service or bool(store.services())
    except LostDatabase:
        return _gone(settings)
    except CanaryctlError:
        return None  # whoever needs it is told why it cannot be read
    if holds_any:
        return None
    return _empty(settings)


def stored_names(settings: Settings) -> tuple[str, ...] | None:
    """Names of the services that the database knows; None: it cannot be read."""
    try:
        with closing(_opened(settings)) as store:
            return tuple(row.name for row in store.services())
    except CanaryctlError:
        return None


def has_service(settings: Settings) -> bool:
    """False: nothing was ever served from this state folder, or all of it was taken down."""
    if settings.cluster_path.exists():
        return True
    try:
        with closing(_opened(settings)) as store:
            return bool(store.services())
    except LostDatabase:
        return False
    except CanaryctlError:
        return True  # not known; who starts it is told why it cannot be read


def opened_to_write(settings: Settings) -> SqlStore:
    """The store. Raises Unreachable where its file is lost: a new one would know nothing that serves; and
    BadInput where it is not known which it is."""
    if settings.database_fault:
        raise BadInput(settings.database_fault)
    if (lost := lost_database(settings)) is not None:
        raise Unreachable(f"{lost}; restore it")
    return SqlStore(settings.database_url, may_create=False)


def _opened(settings: Settings) -> SqlStore:
    return SqlStore(settings.database_url, may_migrate=False, may_create=False)


def _gone(settings: Settings) -> str:
    return f"the database {_place(settings)} is gone or empty"


def _empty(settings: Settings) -> str:
    return f"the database {_place(settings)} holds no service, though Ray runs and may serve"


def _place(settings: Settings) -> str:
    path = sqlite_file(settings.database_url)
    return str(path) if path is not None else shown_url(parsed_url(settings.database_url))


def _read(settings: Settings, lines: Callable[[SqlStore], Sequence[str]]) -> tuple[str, ...]:
    may_serve = settings.cluster_path.exists()
    path = sqlite_file(settings.database_url)
    if path is not None and not path.exists() and not may_serve:
        return ()
    try:
        with closing(_opened(settings)) as store:
            how = (read_only_line(_place(settings)),) if store.database.is_read_only else ()
            if may_serve and not store.services():
                return (*how, f"{_empty(settings)}; restore it before canaryctl up")
            return (*how, *lines(store))
    except CanaryctlError as exc:
        if may_serve and isinstance(exc, LostDatabase):
            return (f"{_gone(settings)}; restore it before canaryctl up",)
        return (f"nor can the database be read: {exc}",)


def _view(store: SqlStore, row: RolloutRow) -> RolloutView:
    """A stored rollout, also one that this release cannot read. `reason` of a running one: what it does."""
    try:
        state = state_from_json(row.state)
    except UnreadableState as exc:
        return unread_view(row.service, row.id, label_of(row), str(exc), row.created_at_s, row.ended_at_s)
    view = rollout_view(state, stored_status(store.evidence(row.id)), label=label_of(row))
    if state.is_final:
        return view
    text = _newest(store, row)
    return view.model_copy(update={"reason": text, "notes": (*view.notes, text)})


def _lines(store: SqlStore, row: ServiceRow) -> Iterator[str]:
    stable = title(row.stable, label_of(store.version(row.name, row.stable)).shown)
    yield f"{row.name}, as last stored: stable {stable}{', being taken down' if row.removing else ''}"
    newest = next(iter(store.rollouts(row.name, limit=1)), None)
    if newest is not None:
        yield f"{row.name}: {_newest(store, newest)}"
    if (event := store.last_event(row.name)) is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_s))
        yield f"{row.name}: last event {at}, by {event.actor}: {event.text}"


def _newest(store: SqlStore, row: RolloutRow) -> str:
    """What the newest rollout does, or that a rollback of it waits, or why it cannot be read."""
    try:
        state = state_from_json(row.state)
    except UnreadableState as exc:
        return f"rollout {row.id} cannot be read ({exc})"
    back = waiting_rollback(store, state)
    if back is not None and not state.is_final:
        return f"rollout {state.id}: {_requested(back)}"
    return _rollout(state)


def waiting_rollback(store: SqlStore, state: RolloutState) -> ManualCommand | None:
    """The newest rollback that is stored for the rollout and that nobody has read yet; None: none is."""
    asked = store.commands(state.id, after_seq=state.commands_through)
    return next((one for one in reversed(asked) if one.kind is CommandKind.ROLLBACK), None)


def is_rollback_asked(store: SqlStore, newest: RolloutRow) -> bool:
    """Whether a rollback that nobody has read yet is stored for the rollout."""
    try:
        state = state_from_json(newest.state)
    except UnreadableState:
        return False  # of another release: one more does no harm
    return waiting_rollback(store, state) is not None


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
        return f"rollout {state.id} ended, {phase}: {state.reason}"
    canary = f"canary {title(state.canary.id, state.canary.label)} at {percent(state.weight_bp)}"
    routers = "; the routers return its traffic to stable within a minute" if state.weight_bp else ""
    return f"rollout {state.id} in {phase}, {canary}{routers}"
