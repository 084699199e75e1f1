"""Bearer tokens and roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.auth import Identity, Role, admin_token, make_token, token_digest


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
