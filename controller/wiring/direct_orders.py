"""Direct rollbacks that no store took: when and why, kept in the state folder for the next controller's log.

The route table's tombstone moves the traffic, and holds none of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from controller import telemetry
from controller.auth import Identity, Role
from controller.errors import CanaryctlError, UnknownService, Unreachable
from controller.private_file import write_private
from controller.quantities import finite
from controller.rollout.observation import CommandKind
from controller.settings import Settings
from controller.store.sql import SqlStore

DIRECT = Identity("direct", Role.ADMIN)


@dataclass(frozen=True, slots=True)
class Order:
    """A direct rollback. service, actor: empty in a file of an earlier release."""

    service: str
    rollout: str
    reason: str
    at_s: float
    actor: str = ""  # who asked for it; empty: nobody was named


def keep_order(settings: Settings, order: Order) -> Path:
    """Write the order to the state folder, one file for each rollout. Raises OSError."""
    path = _folder(settings) / f"{order.rollout}.json"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(path, json.dumps(asdict(order)))
    return path


def carry_out_orders(settings: Settings, store: SqlStore, is_newest: Callable[[str], bool | None]) -> None:
    """Store each order as the command that it stands for. One whose rollout is unknown or over is dropped.

    is_newest: whether the store knows all that was done to the service (None: not known); until it does, an
    order waits. Raises Unreachable for the first that could not be read, stored or removed, after the others;
    it is kept.
    """
    failed: list[CanaryctlError] = []
    for path in sorted(_folder(settings).glob("*.json")):
        try:
            _carry_out(path, store, is_newest)
        except CanaryctlError as exc:
            failed.append(exc)
        except OSError as exc:
            what = exc.strerror or type(exc).__name__
            failed.append(Unreachable(f"{path}, an order that was carried out, stays: {what}; remove it"))
    if failed:
        raise failed[0]


def _carry_out(path: Path, store: SqlStore, is_newest: Callable[[str], bool | None]) -> None:
    """Raises OSError, Unreachable."""
    try:
        order = _parsed(path.read_bytes())
    except FileNotFoundError:
        return
    except OSError as exc:
        # Such as too many open files, or an order that another user wrote: not one that is malformed.
        what = exc.strerror or type(exc).__name__
        raise Unreachable(
            f"{path}, an order of a direct rollback, cannot be read: {what}; let the controller's user read "
            "it, or remove it"
        ) from exc
    if order is not None:
        if order.service and not is_newest(order.service):
            return
        known = store.commands(order.rollout, after_seq=0)
        # Of a file that could not be removed, or of a database that was an older copy.
        is_stored = any((one.kind, one.at_s) == (CommandKind.ROLLBACK, order.at_s) for one in known)
        with suppress(UnknownService):
            if not is_stored:
                by = DIRECT.for_actor(order.actor)
                store.append_command(
                    order.rollout, CommandKind.ROLLBACK, by, reason=order.reason, at_s=order.at_s
                )
    else:
        telemetry.warning("a direct rollback's reason cannot be read", file=str(path))
    path.unlink(missing_ok=True)


def _parsed(text: bytes) -> Order | None:
    """The order; None: the text is not as written."""
    try:
        data = json.loads(text)
        at_s = finite(data["at_s"])
        service, rollout, reason = data.get("service", ""), data["rollout"], data["reason"]
        actor = data.get("actor", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_whole = all(isinstance(one, str) for one in (service, rollout, reason, actor))
    return Order(service, rollout, reason, at_s, actor) if is_whole and at_s is not None else None


def _folder(settings: Settings) -> Path:
    return settings.home / "direct"
