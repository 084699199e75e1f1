"""Authentication of API requests by bearer token, and the role that each route requires.

Invariants: a request whose token is not known costs no more than a look-up, in threads that do nothing else;
the token of this controller's own file is known without the database, and `rollback` and `undo` share their
look-ups with no other route.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from fastapi import Request
from starlette.exceptions import HTTPException

from controller.api.slow_calls import look_up_calls
from controller.auth import Identity, Role, token_digest

UNKNOWN_S = 2.0  # for so long a token that was unknown is not looked up again
MAX_UNKNOWN = 1000

Caller: TypeAlias = Callable[[Request], Awaitable[Identity]]


class Identities(Protocol):
    """Owners of bearer tokens."""

    def identity(self, digest: str) -> Identity | None: ...


class TokenLookups:
    """Owners of bearer tokens, looked up in threads of their own. Used from one event loop."""

    def __init__(
        self,
        identities: Identities,
        *,
        held: Callable[[str], Identity | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """held: the owner of a token that is known without the database; None: there is none such."""
        self._identities = identities
        self._held = held
        self._clock = clock
        self._files, self._urgent_files = look_up_calls(), look_up_calls()
        self._rest, self._urgent = look_up_calls(), look_up_calls()
        self._unknown: dict[str, float] = {}  # digests, with the time until which they are not looked up

    async def identity(self, digest: str, *, is_urgent: bool = False) -> Identity | None:
        """Owner of the token; None: it is unknown, or was `UNKNOWN_S` ago. Raises Unreachable.

        is_urgent: in threads apart from those for other requests.
        """
        held = self._held
        if held is not None:
            files = self._urgent_files if is_urgent else self._files
            found = await files.run(lambda: held(digest))
            if found is not None:
                return found
        if self._clock() < self._unknown.get(digest, 0.0):
            return None
        calls = self._urgent if is_urgent else self._rest
        found = await calls.run(lambda: self._identities.identity(digest))
        if found is None:
            self._remember(digest)
        return found

    def _remember(self, digest: str) -> None:
        self._unknown.pop(digest, None)
        if len(self._unknown) >= MAX_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[digest] = self._clock() + UNKNOWN_S


def requires(lookups: TokenLookups, role: Role, *, is_urgent: bool = False) -> Caller:
    """A FastAPI dependency: the caller's identity. 401 without a known token, 403 without the role.

    is_urgent: see `TokenLookups.identity`.
    """

    async def authenticate(request: Request) -> Identity:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        identity = None
        if scheme.lower() == "bearer" and token:
            identity = await lookups.identity(token_digest(token), is_urgent=is_urgent)
        if identity is None:
            raise HTTPException(401, "a bearer token is needed; admin.token in the state folder holds one")
        if not identity.role.covers(role):
            raise HTTPException(
                403, f"role {identity.role.value} may not do this; use a token with role {role.value}"
            )
        return identity

    return authenticate
