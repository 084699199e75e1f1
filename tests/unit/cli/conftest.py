"""Commands here find no other canaryctl on this host, whatever runs on the machine of the tests."""

from __future__ import annotations

import pytest

from controller.wiring import elsewhere


@pytest.fixture(autouse=True)
def alone_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "process_table", lambda: iter(()))
