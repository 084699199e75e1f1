"""Bearer tokens and roles of the API. The store holds only a token's SHA-256 digest.

Invariant: a token's text exists in its owner's file and in the request, never in the store or in a log.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from controller.errors import BadInput
from controller.private_file import read_private, write_private

TOKEN_BYTES = 32
MIN_TOKEN_CHARACTERS = 16


class Role(StrEnum):
    """Permissions of a token; each role includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """True: this role includes `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Identity:
    """Sender of a request, as logs and events show it."""

    name: str
    role: Role

    def for_actor(self, actor: str) -> Identity:
        """The same sender, who acts for this person; empty: for nobody else."""
        return self if actor in ("", self.name) else replace(self, name=f"{actor} via {self.name}")


def make_token() -> str:
    """A fresh token, 256 random bits, safe in a header and in a file."""
    return "cnry_" + secrets.token_urlsafe(TOKEN_BYTES)


def make_secret() -> str:
    """A fresh shared secret between routers and engines of one service, 256 random bits."""
    return secrets.token_hex(TOKEN_BYTES)


def token_digest(token: str) -> str:
    """Digest of a token, for the store. A plain hash is enough: a random token cannot be guessed."""
    return hashlib.sha256(token.encode()).hexdigest()


def admin_token(home: Path) -> str:
    """Admin token of a state folder, from `admin.token`, which is created (0600) if it is missing.

    Raises BadInput for a file that cannot be read or holds no token, OSError where it cannot be made.
    """
    token = read_admin_token(home)
    if token is None:
        token = make_token()
        write_private(home / "admin.token", token)
    return token


def read_admin_token(home: Path) -> str | None:
    """The same where it exists; None: it is missing. Raises BadInput."""
    path = home / "admin.token"
    token = read_private(path, remedy="remove it, and the controller writes another")
    if token is None:
        return None
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise BadInput(
            f"{path} holds {len(token)} characters, a token has at least {MIN_TOKEN_CHARACTERS} on one line; "
            "remove it, and the controller writes another"
        )
    return token
