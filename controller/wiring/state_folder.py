"""Files of the state folder that the controller keeps in step with the store: admin token, database URL."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

from controller import telemetry
from controller.auth import Identity, Role, admin_token, token_digest
from controller.errors import BadInput, CanaryctlError
from controller.private_file import read_private, write_private
from controller.rollout.ports import Clock
from controller.settings import Settings
from controller.store.database_url import parsed_url
from controller.store.sql import SqlStore

RENEW_S = 3600.0
EXPIRES_S = 7 * 86_400.0  # of the admin token of a controller that renews it no more


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


class AdminToken:
    """The state folder's admin token: whatever `admin.token` holds now is valid, and nothing it held before.

    Several controllers may share a database, each with a folder and so a token of its own. A token that its
    controller has not renewed for `EXPIRES_S` is void: that controller was replaced.
    Implements `api.bearer_auth.Identities`.
    """

    def __init__(self, home: Path, store: SqlStore, clock: Clock) -> None:
        self._home = home
        self._path = home / "admin.token"
        self._store = store
        self._clock = clock
        # Not the host's name and the path: containers repeat them, and a new one has others.
        self._origin = _folder_id(home)
        self._stored: tuple[int, int, int] | None = None  # inode, time, size of the file that was stored
        self._stored_at_s = 0.0
        self._fault = ""  # what is wrong with the file, so that it is logged once
        self._lock = threading.Lock()

    def store(self) -> None:
        """Store the token if the file changed, or to renew it; created (0600) if it is missing. Raises
        Unreachable."""
        with self._lock:
            now_s = self._clock.now_s()
            is_new = 0.0 <= now_s - self._stored_at_s < RENEW_S
            if self._stored is not None and is_new and self._file() in (None, self._stored):
                return
            token = admin_token(self._home)
            file = self._file()
            self._store.put_token(
                token_digest(token), Identity("admin", Role.ADMIN), at_s=now_s, origin=self._origin
            )
            self._stored, self._stored_at_s = file, now_s

    def identity(self, digest: str) -> Identity | None:
        """Owner of the bearer token with this digest; None: unknown token.

        A broken `admin.token` makes none valid, and keeps no other token from being. Nor does a database that
        cannot be written: what was stored last is valid until it expires.
        """
        try:
            self.store()
        except CanaryctlError as exc:
            if str(exc) != self._fault:
                is_broken = isinstance(exc, BadInput)
                what = "the admin's token cannot be read" if is_broken else "the admin's token is not renewed"
                telemetry.error(what, exc)
            self._fault = str(exc)
        else:
            self._fault = ""
        return self._store.identity(digest, since_s=self._clock.now_s() - EXPIRES_S)

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
