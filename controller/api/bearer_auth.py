"""Authentication of API requests by bearer token, and the role that each route requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import Request
from starlette.exceptions import HTTPException

from controller.auth import Identity, Role, token_digest


class Identities(Protocol):
    """Owners of bearer tokens."""

    def identity(self, digest: str) -> Identity | None: ...


def requires(identities: Identities, role: Role) -> Callable[[Request], Identity]:
    """A FastAPI dependency: the caller's identity. 401 without a known token, 403 without the role."""

    def authenticate(request: Request) -> Identity:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        identity = identities.identity(token_digest(token)) if scheme.lower() == "bearer" and token else None
        if identity is None:
            raise HTTPException(401, "a bearer token is needed; admin.token in the state folder holds one")
        if not identity.role.covers(role):
            raise HTTPException(
                403, f"role {identity.role.value} may not do this; use a token with role {role.value}"
            )
        return identity

    return authenticate
