"""Files of the state folder that the controller keeps in step with the store: admin token, database URL."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import sqlalchemy as sa

from controller.auth import Identity, Role, admin_token, token_digest, write_private
from controller.rollout.ports import Clock
from controller.settings import Settings
from controller.store.sql import SqlStore


def remember_database(settings: Settings) -> None:
    """Write the database's URL, which worked, to the state folder; see `settings.load_settings`."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        # The next command may run in another folder.
        url = url.set(database=str(Path(url.database).absolute()))
    text = url.render_as_string(hide_password=False)
    try:
        is_known = settings.database_path.read_text().strip() == text
    except FileNotFoundError:
        is_known = False
    if not is_known:
        write_private(settings.database_path, text)


class AdminToken:
    """The state folder's admin token: whatever `admin.token` holds now is valid, and nothing it held before.

    Implements `api.bearer_auth.Identities`.
    """

    def __init__(self, home: Path, store: SqlStore, clock: Clock) -> None:
        self._home = home
        self._path = home / "admin.token"
        self._store = store
        self._clock = clock
        # Controllers on several hosts share a database, and each has a folder of its own.
        self._origin = f"{socket.gethostname()}:{self._path}"
        self._stored: tuple[int, int, int] | None = None  # inode, time, size of the file that was stored
        self._lock = threading.Lock()

    def store(self) -> None:
        """Store the token if the file changed; created (0600) if it is missing. Raises Unreachable."""
        with self._lock:
            if self._stored is not None and self._file() in (None, self._stored):
                return
            token = admin_token(self._home)
            file = self._file()
            now_s = self._clock.now_s()
            self._store.put_token(
                token_digest(token), Identity("admin", Role.ADMIN), at_s=now_s, origin=self._origin
            )
            self._stored = file

    def identity(self, digest: str) -> Identity | None:
        """Owner of the bearer token with this digest; None: unknown token."""
        self.store()
        return self._store.identity(digest)

    def _file(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
