"""The end of a stored rollout that no controller will go on with."""

from __future__ import annotations

import time
from dataclasses import replace

from controller.rollout.machine import abandon
from controller.store.sql import SqlStore


def end_rollout(store: SqlStore, rollout: str, why: str, *, token: int | None = None) -> None:
    """End it as failed, its commands with it: nobody is left to carry them out. token: of the lease; None:
    nobody leads."""
    stored = store.load(rollout)
    if stored is None:
        return
    ended = abandon(stored.state, time.time(), why)
    if asked := store.commands(rollout, after_seq=ended.commands_through):
        ended = replace(ended, commands_through=asked[-1].seq)
    store.commit(ended, (), expected_version=stored.version, evidence=None, token=token)
