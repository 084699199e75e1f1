"""Files of the state folder that the controller keeps in step with the store: admin token, database URL."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controller import telemetry
from controller.auth import Identity, Role, admin_token, read_admin_token, token_digest
from controller.background import Background
from controller.errors import BadInput
from controller.private_file import read_private, write_private
from controller.rollout.ports import Clock
from controller.settings import Settings
from controller.store.database_url import parsed_url
from controller.store.sql import SqlStore

RENEW_S = 3600.0
STORE_LIMIT_S = 60.0  # of one write; one that hangs is tried again
RETRY_S = 30.0  # after a write that failed
EXPIRES_S = 7 * 86_400.0  # of the admin token of a controller that renews it no more
ADMIN = Identity("admin", Role.ADMIN)


def remember_database(settings: Settings) -> None:
    """Write the database's URL, which worked, to the state folder; see `settings.load_settings`."""
    url = parsed_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        # The next command may run in another folder.
        url = url.set(database=str(Path(url.database).absolute()))
    text = url.render_as_string(hide_password=False)
    try:
        known = read_private(settings.database_path, remedy="remove it")
    except BadInput:
        known = None  # it is written anew, or that says why it cannot be
    if known != text:
        write_private(settings.database_path, text)


@dataclass(frozen=True, slots=True)
class _Held:
    """What `admin.token` held when it was read last."""

    file: tuple[int, int, int] | None  # inode, time, size; None: it was missing
    digest: str | None  # None: no token


class AdminToken:
    """The state folder's admin token: whatever `admin.token` holds now is valid, and nothing it held before.

    Several controllers may share a database, each with a folder and so a token of its own. A token that its
    controller has not renewed for `EXPIRES_S` is void for the others: that controller was replaced.
    Implements `api.bearer_auth.Identities`.

    Invariant: a request never waits for a write. What the file holds is known in memory; the database gets it
    in the background, from one thread at a time, which waits after a failure.
    """

    def __init__(
        self,
        home: Path,
        store: SqlStore,
        clock: Clock,
        start: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """start: runs work in the background; None: in a thread."""
        self._home = home
        self._path = home / "admin.token"
        self._store = store
        self._clock = clock
        self._storing = Background("admin-token", limit_s=STORE_LIMIT_S, start=start)
        # Not the host's name and the path: containers repeat them, and a new one has others.
        self._origin = _folder_id(home)
        self._held = _Held(None, None)
        self._void: frozenset[str] = frozenset()  # held before, and may be stored still
        self._stored: str | None = None  # the digest that the database has
        self._stored_at_s = 0.0
        self._failed_at_s: float | None = None  # None: the last write succeeded
        self._fault = ""  # what is wrong, so that it is logged once
        self._lock = threading.Lock()  # never held while a file or the database is waited for

    def store(self) -> None:
        """Store the token; created (0600) if it is missing. MUST come before the first `identity`. Raises
        Unreachable, BadInput, OSError."""
        now_s = self._clock.now_s()
        try:
            digest = token_digest(admin_token(self._home))
        except BadInput:
            self._revoke()
            raise
        self._read()
        void = self._void
        self._store.put_token(digest, ADMIN, at_s=now_s, origin=self._origin)
        with self._lock:
            self._stored, self._stored_at_s, self._failed_at_s = digest, now_s, None
            self._void -= void  # the database has them no more
            if self._held.digest not in (None, digest):  # the file has changed meanwhile
                self._void |= {digest}

    def held(self, digest: str) -> Identity | None:
        """The admin where `admin.token` holds this token; None: it does not. Never waits for the database."""
        self._read()
        self._store_if_due()
        return ADMIN if digest == self._held.digest else None

    def identity(self, digest: str) -> Identity | None:
        """Owner of the bearer token with this digest; None: unknown token.

        A broken or missing `admin.token` makes none valid, and keeps no other token from being. Nor does a
        database that cannot be written: what the file holds is valid here.
        """
        if (found := self.held(digest)) is not None:
            return found
        if digest in self._void:
            return None
        return self._store.identity(digest, since_s=self._clock.now_s() - EXPIRES_S)

    def _read(self) -> None:
        """Read the file where it is another than before. What it held is void, also where it is broken or
        gone: so is a token revoked that has leaked. `store` makes a missing one."""
        file = self._file()
        if file == self._held.file:
            return
        digest = None
        try:
            token = read_admin_token(self._home)
            digest = token_digest(token) if token is not None else None
        except BadInput as exc:
            self._log("the admin's token cannot be read", exc)
        with self._lock:
            before = (self._held.digest, self._stored)
            self._void = (self._void | {one for one in before if one is not None}) - {digest}
            self._held = _Held(file, digest)

    def _revoke(self) -> None:
        """Delete the folder's token from the database: its file is broken."""
        self._store.forget_tokens(ADMIN, origin=self._origin)
        with self._lock:
            self._stored = None

    def _store_if_due(self) -> None:
        now_s = self._clock.now_s()
        with self._lock:
            is_fresh = 0.0 <= now_s - self._stored_at_s < RENEW_S
            is_known = self._held.file is not None and self._held.digest == self._stored
            has_just_failed = self._failed_at_s is not None and 0.0 <= now_s - self._failed_at_s < RETRY_S
        if not has_just_failed and not (is_fresh and is_known):
            self._storing.begin("store", self._store_in_background)

    def _store_in_background(self) -> None:
        try:
            self.store()
        except Exception as exc:  # noqa: BLE001 - told, and tried again; nobody waits for it
            with self._lock:
                self._failed_at_s = self._clock.now_s()
            self._log("the admin's token is not renewed", exc)
        else:
            self._fault = ""

    def _log(self, what: str, exc: Exception) -> None:
        if str(exc) != self._fault:
            self._fault = str(exc)
            telemetry.error(what, exc)

    def _file(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _folder_id(home: Path) -> str:
    """A random name of this state folder, from `folder.id`, which is created if it is missing."""
    path = home / "folder.id"
    name = read_private(path, remedy="remove it, and the controller writes another")
    if not name:
        name = f"folder-{secrets.token_hex(8)}"
        write_private(path, name)
    return name
