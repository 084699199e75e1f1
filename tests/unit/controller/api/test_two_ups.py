"""Two people who change different keys of one service at once: neither takes back what the other did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.store.rows import ServiceRow
from serving.access import digest_of
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

ANN, BOB = Identity("ann", Role.ADMIN), Identity("bob", Role.ADMIN)
JUDGE = {"url": "http://127.0.0.1:8000/v1", "model": "judge", "share": "20%"}


def keys(*names: str) -> dict[str, object]:
    return {"keys": [{"name": one, "sha256": digest_of(f"sk-{one}")} for one in names], "keys_required": True}


def test_a_key_that_was_revoked_meanwhile_stays_revoked(
    controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"service": "chat", "model": str(write_checkpoint(tmp_path / "m", seed=1))}
    controller.commands.up({**base, "clients": keys("leaked", "good"), "judge": JUDGE}, ANN)
    real = controller.store.set_keys

    def another_is_sooner(*given: object, **more: object) -> None:
        monkeypatch.setattr(controller.store, "set_keys", real)
        controller.commands.up({**base, "clients": keys("good")}, ANN)
        real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(controller.store, "set_keys", another_is_sooner)
    controller.commands.up({**base, "judge": {**JUDGE, "share": "50%"}}, BOB)

    row: ServiceRow = controller.store.service("chat")
    spec = json.loads(row.spec)
    assert [one["name"] for one in spec["clients"]["keys"]] == ["good"]
    assert spec["judge"]["share"] == "50%"
