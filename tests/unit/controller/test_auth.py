"""Bearer tokens and roles."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from controller.auth import Identity, Role, admin_token, make_token, token_digest
from controller.errors import BadInput


def test_the_admin_token_is_created_once(tmp_path: Path) -> None:
    assert admin_token(tmp_path / "home") == admin_token(tmp_path / "home")


def test_tokens_differ_and_their_digests_too() -> None:
    first, second = make_token(), make_token()

    assert token_digest(first) != token_digest(second)


@pytest.mark.parametrize(
    ("role", "covered"),
    [(Role.VIEWER, 1), (Role.OPERATOR, 2), (Role.ADMIN, 3)],
)
def test_each_role_includes_the_lesser_ones(role: Role, covered: int) -> None:
    assert sum(Identity("x", role).role.covers(needed) for needed in Role) == covered


def test_a_token_that_cannot_be_written_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk `status` ended with a traceback."""

    def is_full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("controller.auth.os.fdopen", is_full)
    with pytest.raises(BadInput, match=r"admin.token cannot be written \(No space left on device\); free"):
        admin_token(tmp_path)

    assert list(tmp_path.iterdir()) == []
