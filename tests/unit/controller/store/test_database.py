"""Database of the store: what is refused, file modes, errors, concurrent openers."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import BadInput, Unreachable
from controller.store.sql import SqlStore


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused_with_its_name_and_a_remedy(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")

    with pytest.raises(BadInput, match=rf"network file system \({kind}\).*PostgreSQL"):
        SqlStore(f"sqlite:///{tmp_path / 'state.db'}", mounts=mounts)

    assert not (tmp_path / "state.db").exists()


@pytest.mark.parametrize("place", ["mysql://x/y", "sqlite://", "no url"])
def test_an_unsupported_database_is_refused(place: str) -> None:
    with pytest.raises(BadInput, match=r"use sqlite:///FILE"):
        SqlStore(place)


def test_a_file_that_is_not_a_database_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("this text is not a database, and long enough to show it" * 100)

    with pytest.raises(Unreachable, match=r"state\.db does not answer: file is not a database; restore"):
        SqlStore(f"sqlite:///{tmp_path / 'state.db'}")
