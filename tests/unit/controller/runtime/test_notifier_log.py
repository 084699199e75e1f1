"""The notifier that logs: each notice once, and no key for ever."""

from __future__ import annotations

import pytest

from controller import telemetry
from controller.runtime import notifier_log
from controller.runtime.notifier_log import LogNotifier


def test_a_notice_is_logged_once_and_the_oldest_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(telemetry, "event", lambda what, **fields: told.append(fields["key"]))
    monkeypatch.setattr(notifier_log, "MAX_KEYS", 3)
    notifier = LogNotifier()

    for key in ("a", "a", "b", "c", "c", "d", "d"):
        assert notifier.send(key, "info", "text")

    assert (told, list(notifier._sent)) == (["a", "b", "c", "d"], ["b", "c", "d"])
