"""The token goes to no program of another user that took the controller's port."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from controller.cli import listener
from controller.cli.listener import listener_uids, require_own_listener
from controller.errors import Unreachable

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def table(folder: Path, uid: int, state: str = "0A") -> tuple[Path]:
    """A table with one socket on port 7878."""
    line = f"   0: 0100007F:1EC6 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid} 0 7 1\n"
    path = folder / "tcp"
    path.write_text(HEADER + line)
    return (path,)


def test_a_listener_of_another_user_gets_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "TABLES", table(tmp_path, uid=54321))

    with pytest.raises(Unreachable, match=r"port 7878 is held by another user \(uid 54321\)"):
        require_own_listener("http://127.0.0.1:7878", tmp_path)


@pytest.mark.parametrize(
    ("uid", "state", "url"),
    [
        (os.getuid(), "0A", "http://127.0.0.1:7878"),
        (0, "0A", "http://127.0.0.1:7878"),
        (54321, "01", "http://127.0.0.1:7878"),  # connected, not listening
        (54321, "0A", "http://127.0.0.1:7879"),
        (54321, "0A", "http://controller.example:7878"),
    ],
)
def test_ones_own_controller_and_roots_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, state: str, url: str
) -> None:
    monkeypatch.setattr(listener, "TABLES", table(tmp_path, uid, state))

    require_own_listener(url, tmp_path)


def test_the_user_of_a_real_listener_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listener_uids(server.getsockname()[1]) == {os.getuid()}
