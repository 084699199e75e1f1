"""Direct rollbacks that no store took: when and why, kept in the state folder for the next controller's log.

The route table's tombstone moves the traffic, and holds none of that.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from controller import telemetry
from controller.auth import Identity, Role, write_private
from controller.errors import UnknownService
from controller.quantities import finite
from controller.rollout.observation import CommandKind
from controller.settings import Settings
from controller.store.sql import SqlStore

DIRECT = Identity("direct", Role.ADMIN)


def keep_order(settings: Settings, rollout: str, reason: str, *, at_s: float) -> Path:
    """Write the order to the state folder, one file for each rollout. Raises OSError."""
    path = _folder(settings) / f"{rollout}.json"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(path, json.dumps({"rollout": rollout, "reason": reason, "at_s": at_s}))
    return path


def carry_out_orders(settings: Settings, store: SqlStore) -> None:
    """Store each order as the command that it stands for. One whose rollout is unknown or over is dropped.

    Raises Unreachable, with the orders still kept.
    """
    for path in sorted(_folder(settings).glob("*.json")):
        order = _read(path)
        if order is not None:
            rollout, reason, at_s = order
            with suppress(UnknownService):
                store.append_command(rollout, CommandKind.ROLLBACK, DIRECT, reason=reason, at_s=at_s)
        else:
            telemetry.warning("a direct rollback's reason cannot be read", file=str(path))
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[str, str, float] | None:
    """Rollout, reason and time; None: the file is not as written."""
    try:
        data = json.loads(path.read_text())
        rollout, reason, at_s = data["rollout"], data["reason"], finite(data["at_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_whole = isinstance(rollout, str) and isinstance(reason, str) and at_s is not None
    return (rollout, reason, at_s) if is_whole and at_s is not None else None


def _folder(settings: Settings) -> Path:
    return settings.home / "direct"
